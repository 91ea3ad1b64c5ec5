"""What a server answered, compared with training and with later clicks."""

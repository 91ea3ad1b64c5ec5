"""Logged recommendations of a server, compared with training and with later clicks."""

"""Log of requests and of the lists that answered them."""

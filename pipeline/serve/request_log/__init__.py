"""Log of requests and their recommendation lists."""

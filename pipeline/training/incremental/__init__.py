"""Training window by window, and warm starts."""

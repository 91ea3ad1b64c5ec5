"""Errors, artifact directories, base of the config, column names."""

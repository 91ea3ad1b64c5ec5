"""Session-based recommendation from raw click logs to a live service."""

__version__ = "0.1.0"

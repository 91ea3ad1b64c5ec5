"""A model that is brought up to date with the logs of each day."""

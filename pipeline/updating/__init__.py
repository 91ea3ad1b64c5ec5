"""Updates of a served model with the logs of each day."""

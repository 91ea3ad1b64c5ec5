"""NVTabular operators of the workflow."""

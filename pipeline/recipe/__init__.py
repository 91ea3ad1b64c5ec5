"""The YAML recipe as typed config; defaults stand beside the fields."""

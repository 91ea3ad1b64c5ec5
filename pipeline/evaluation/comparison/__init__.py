"""Several runs and the baselines on the same targets, with paired tests."""

"""Benchmarks of this project and others: equal work in turn, on one core, in one run."""

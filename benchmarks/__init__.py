"""Measuring this project beside others: the same work in turn, on one core, in one run."""

"""One page about a run: how it learned, how good it is, for whom, at what cost."""

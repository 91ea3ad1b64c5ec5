"""Report page of a run: learning curves, metrics, groups of targets, time and memory."""

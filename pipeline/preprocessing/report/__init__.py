"""One page about data: what was read, how sessions look, what drifts between its parts."""

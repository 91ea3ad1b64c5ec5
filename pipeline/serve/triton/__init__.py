"""Start, restart and stop of Triton."""

"""`python -m benchmarks gpu`: what the GPU stack of this machine does, and how fast."""

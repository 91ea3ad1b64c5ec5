"""Export of a run: TorchScript, top-K, Triton configuration, request tables."""

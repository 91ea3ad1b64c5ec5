"""Kernels with no knowledge of sessions: catalogue cross-entropy, dropout, token pruning."""

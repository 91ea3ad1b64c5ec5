"""Prediction tasks: the next item, binary and regression targets."""

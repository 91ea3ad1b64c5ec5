"""Stable orders of integers, several times as fast as NumPy's."""

import numpy as np


def stable_order(keys: np.ndarray) -> np.ndarray:
    """(N,) positions of the int64 `keys` from low to high, equal ones in their order.

    Key and position are packed into one integer where they fit, and those are sorted as they are:
    NumPy has vector instructions for that, and none for a stable order of positions.
    """
    if not len(keys):
        return np.empty(0, np.int64)
    low, high = int(keys.min()), int(keys.max())
    bits = max(1, (len(keys) - 1).bit_length())
    if high - low >= 1 << (63 - bits):
        return np.argsort(keys, kind="stable")
    packed = ((keys - low) << bits) | np.arange(len(keys))
    packed.sort()
    return packed & ((1 << bits) - 1)


def order_by(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N,) positions by `first`, among equal ones by `second`, among those in their order."""
    order = stable_order(second)
    return order[stable_order(first[order])]

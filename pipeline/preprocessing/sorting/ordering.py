"""Stable sorting of integers, faster than NumPy's for the keys of a log."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_DIGIT_BITS = 16
"""Width up to which NumPy sorts integers by counting (radix sort) instead of comparing."""
_RUN_LENGTH = 64
"""Minimum mean length of ascending runs at which merging is faster than counting."""


def stable_order(keys: NDArray[Any]) -> NDArray[Any]:
    """(N,) positions that sort `keys`, as `np.argsort(keys, kind="stable")`.

    Integers in few ascending runs, as in sorted blocks, and integers of more than two digits are
    packed with their position into one int64 each, whose runs NumPy merges. Others are sorted by
    two digits of 16 bits. NumPy itself sorts everything but signed integers.
    """
    if not len(keys):
        return np.empty(0, np.int64)
    if keys.dtype.kind != "i":
        return np.argsort(keys, kind="stable")
    low, high = int(keys.min()), int(keys.max())
    position_bits = max(1, (len(keys) - 1).bit_length())
    if high - low >= 1 << (63 - position_bits):
        return np.argsort(keys, kind="stable")
    num_runs = 1 + int(np.count_nonzero(keys[1:] < keys[:-1]))
    if high - low < 1 << (2 * _DIGIT_BITS) and num_runs * _RUN_LENGTH > len(keys):
        return _radix_order((keys - low).astype(np.uint32))
    packed = ((keys - low) << position_bits) | np.arange(len(keys))
    packed.sort(kind="stable")
    return packed & ((1 << position_bits) - 1)


def _radix_order(keys: NDArray[Any]) -> NDArray[Any]:
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    upper = (keys >> _DIGIT_BITS).astype(np.uint16)
    return order[np.argsort(upper[order], kind="stable")]


def order_by(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """(N,) positions that sort by `first`, then by `second`; ties keep their order."""
    order = stable_order(first)
    one, other = first[order], second[order]
    if not ((one[1:] == one[:-1]) & ~(other[1:] >= other[:-1])).any():  # `>=` is False for NaN
        return order  # fast path: the log is in the order of time
    order = stable_order(second)
    return order[stable_order(first[order])]

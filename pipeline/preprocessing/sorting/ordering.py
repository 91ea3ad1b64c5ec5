"""Stable orders: of the integers that a log has, sorted or not, faster than NumPy's."""

import numpy as np

_DIGIT = 16
"""Bits that NumPy sorts by counting, in place of comparing."""
_RUN = 64
"""Keys of a rising run, in the mean, from which on merging runs is faster than counting."""


def stable_order(keys: np.ndarray) -> np.ndarray:
    """(N,) positions of the `keys` from low to high, equal ones in their order, NaN and NaT last.

    Integers that come in few rising runs, as those of sorted blocks, are packed with their
    positions into one each, whose runs are merged, and so are those that two digits do not hold;
    others are sorted by two digits. What is no signed integer is left to NumPy.
    """
    if not len(keys):
        return np.empty(0, np.int64)
    if keys.dtype.kind != "i":
        return np.argsort(keys, kind="stable")
    low, high = int(keys.min()), int(keys.max())
    bits = max(1, (len(keys) - 1).bit_length())
    if high - low >= 1 << (63 - bits):
        return np.argsort(keys, kind="stable")
    runs = 1 + int(np.count_nonzero(keys[1:] < keys[:-1]))
    if high - low < 1 << (2 * _DIGIT) and runs * _RUN > len(keys):
        return _by_digits((keys - low).astype(np.uint32))
    packed = ((keys - low) << bits) | np.arange(len(keys))
    packed.sort(kind="stable")
    return packed & ((1 << bits) - 1)


def _by_digits(keys: np.ndarray) -> np.ndarray:
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    upper = (keys >> _DIGIT).astype(np.uint16)
    return order[np.argsort(upper[order], kind="stable")]


def order_by(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N,) positions by `first`, among equal ones by `second`, among those in their order."""
    order = stable_order(first)
    one, other = first[order], second[order]
    if not ((one[1:] == one[:-1]) & ~(other[1:] >= other[:-1])).any():  # NaN is neither
        return order  # as in a log that is written as time goes on
    order = stable_order(second)
    return order[stable_order(first[order])]

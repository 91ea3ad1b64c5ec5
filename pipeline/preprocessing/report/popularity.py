"""How interactions spread over items."""

from typing import Any

import numpy as np

_POINTS = 48


def summary(counts: np.ndarray) -> dict[str, Any]:
    """Of (V,) interactions of each item; items without any are left out.

    `curve` is a list of [share of the items, share of the interactions that fall on so many of the
    most popular ones]. `gini` is 0 where all items are equally popular and near 1 where one has
    everything. Shares are None without any interaction.
    """
    falling = -np.sort(-counts[counts > 0])
    size, total = len(falling), int(falling.sum())
    if not size:
        return {"items": 0, "gini": None, "top_1_percent": None, "top_10_percent": None,
                "curve": []}  # fmt: skip
    reached = np.cumsum(falling)
    ranks = np.unique(np.rint(np.geomspace(1, size, _POINTS)).astype(np.int64))
    # sum of count x rank, the most popular last
    weighted = int((falling * np.arange(size, 0, -1)).sum())
    return {
        "items": size,
        "gini": _short(2 * weighted / (size * total) - (size + 1) / size),
        "top_1_percent": _short(int(reached[-(-size // 100) - 1]) / total),
        "top_10_percent": _short(int(reached[-(-size // 10) - 1]) / total),
        "curve": [[_short(rank / size), _short(int(reached[rank - 1]) / total)] for rank in ranks],
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")

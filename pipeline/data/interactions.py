"""Interactions of one part of a data directory as ragged arrays, for what needs no model."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.core.columns import ITEM, TIMESTAMP
from pipeline.data.loader import read_sessions


class Interactions(NamedTuple):
    """Sessions one after the other, oldest interaction first."""

    values: np.ndarray
    """(interactions,) item indices."""
    offsets: np.ndarray
    """(sessions + 1,) where each begins."""
    times: np.ndarray
    """(interactions,) microseconds since 1970 UTC, or a number that stands for the order."""


def read_interactions(
    data: Path,
    part: str,
    *,
    by_time: bool = False,
    rows: Mapping[str, np.ndarray] | None = None,
) -> Interactions:
    """Sessions in the order of an unshuffled loader, or by the time of their end, if `by_time`.

    `rows` has other indices, see `data_indices.Rows`. ArtifactError if the part is not there.
    """
    table = read_sessions(data, part, [ITEM, TIMESTAMP])
    if by_time:
        times = table[TIMESTAMP].combine_chunks()
        ends = times.flatten().to_numpy()[times.offsets.to_numpy()[1:] - 1]
        table = table.take(np.argsort(ends, kind="stable"))
    lists = table[ITEM].combine_chunks()
    lengths = np.diff(lists.offsets.to_numpy())
    items = lists.flatten().to_numpy()
    return Interactions(
        rows[ITEM][items] if rows and ITEM in rows else items,
        np.concatenate([[0], np.cumsum(lengths)]),
        table[TIMESTAMP].combine_chunks().flatten().to_numpy(),
    )

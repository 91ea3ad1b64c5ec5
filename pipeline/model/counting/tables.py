"""Scorers from the tables of a file, checked because the file is not trusted."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.core.config import Config
from pipeline.model.counting.scorer import (
    SESSION_TABLES,
    NeighbourScorer,
    PopularityScorer,
    Scorer,
    SessionKnnScorer,
)
from pipeline.recipe.counting import SessionKnnOptions

_NEIGHBOUR_TABLES = ("offsets", "items", "weights", "position_weights")
_TYPES = {"weights": torch.float32, "popularity": torch.float32}
_INDEX_TYPES = (torch.int32, torch.int64)


def read_scorer(options: Config, tables: Mapping[str, Tensor], num_items: int) -> Scorer:
    """Scorer of `options` with these buffers.

    ValueError unless the tables are valid for `num_items` items; KeyError for a missing table.
    """
    popularity = tables["popularity"]
    _check(popularity.shape == (num_items,), "popularity")
    for name, table in tables.items():
        _check_type(name, table)
    if isinstance(options, SessionKnnOptions):
        _check_session_tables(tables, num_items, options)
        lambda_inh = options.lambda_inh if options.weights == "stan" else 0.0
        scorer: Scorer = SessionKnnScorer(
            popularity, {name: tables[name] for name in SESSION_TABLES}, options.k, lambda_inh
        )
    elif set(tables) == {"popularity"}:
        scorer = PopularityScorer(popularity)
    else:
        _check_ragged(tables["offsets"], tables["items"], num_items, "items")
        _check(tables["weights"].shape == tables["items"].shape, "weights")
        scorer = NeighbourScorer(popularity, *(tables[name] for name in _NEIGHBOUR_TABLES))
    _check(set(scorer.state_dict()) == set(tables), "names")
    return scorer.eval()


def _check_session_tables(
    tables: Mapping[str, Tensor], num_items: int, options: SessionKnnOptions
) -> None:
    num_sessions = len(tables["session_factors"])
    _check_ragged(
        tables["posting_offsets"], tables["posting_sessions"], num_sessions, "posting_sessions"
    )
    _check_ragged(tables["session_offsets"], tables["session_items"], num_items, "session_items")
    _check(len(tables["posting_offsets"]) == num_items + 1, "posting_offsets")
    _check(len(tables["session_offsets"]) == num_sessions + 1, "session_offsets")
    _check(tables["item_factors"].shape == (num_items,), "item_factors")
    same = tables["position_weights"].shape == tables["neighbour_weights"].shape
    _check(same, "neighbour_weights")
    for of, name in (("posting", "sessions"), ("session", "items")):
        positions = tables[f"{of}_positions"]
        count = len(tables[f"{of}_{name}"]) if options.weights == "stan" else 0
        _check(positions.shape == (count,), f"{of}_positions")


def _check_ragged(offsets: Tensor, values: Tensor, most: int, name: str) -> None:
    """ValueError unless `offsets` cut `values` into rows and `values` are indices below `most`."""
    ends = offsets.dim() == 1 and len(offsets) > 0 and int(offsets[0]) == 0
    _check(ends and int(offsets[-1]) == len(values), name)
    _check(bool((offsets.diff() >= 0).all()), name)
    _check(not len(values) or 0 <= int(values.min()) <= int(values.max()) < most, name)


def _check_type(name: str, table: Tensor) -> None:
    if not table.is_floating_point():
        _check(table.dtype in _INDEX_TYPES and table.dim() == 1, name)
        return
    _check(table.dtype == _TYPES.get(name, torch.float64) and table.dim() == 1, name)
    _check(bool(table.isfinite().all()), name)


def _check(is_right: bool, name: str) -> None:
    if not is_right:
        raise ValueError(f"the table {name} is damaged")

"""Example sessions of the report: items of the session, next item, recommendations."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.core.columns import FIRST_ITEM
from pipeline.data.directory import Data
from pipeline.data.loader import RaggedBatch
from pipeline.data.sessions import read_interactions, session_ids
from pipeline.evaluation.ranking import Seen
from pipeline.evaluation.recommender import Recommendations, Recommender, to_raw_ids
from pipeline.evaluation.targets import evaluation_loader, rank_queries
from pipeline.model.run import Run

_SESSIONS_AT_ONCE = 4096
_SEED = 0


def example_sessions(
    run: Run | Path,
    data: Data | Path,
    part: str,
    *,
    count: int = 8,
    k: int = 10,
    filter_seen: bool = False,
) -> list[dict[str, Any]]:
    """`count` random sessions, drawn with a fixed seed, with `k` recommendations each.

    An entry has raw ids: the `session`, the `clicked` items and the `next` item, None for an item
    outside the catalogue; the `rank` of the next item, and the `recommended` items with scores.
    With `filter_seen` the items of a session are neither ranked nor recommended.
    """
    data = Data.open(data)
    recommender = Recommender.open(run)
    catalogue = recommender.catalogue
    index_mapping = recommender.run.index_mapping(data)
    interactions = read_interactions(data.path, part, rows=index_mapping)
    rows = _random_sessions(np.diff(interactions.offsets), count)
    ids = session_ids(data.path, part)
    loader = evaluation_loader(
        data.path, part, recommender.model, _SESSIONS_AT_ONCE, indices=index_mapping
    )
    examples = []
    end_of_batch = 0
    for batch in loader:
        first, end_of_batch = end_of_batch, end_of_batch + batch.lengths.numel()
        chosen = rows[(rows >= first) & (rows < end_of_batch)]
        if not len(chosen):
            continue
        batch_rows = torch.from_numpy(chosen - first).to(batch.lengths.device)
        recommendations, ranks = _recommend(recommender, batch, batch_rows, k, filter_seen)
        records = recommendations.records(ids[chosen] if ids is not None else [None] * len(chosen))
        for row, rank, record in zip(chosen, ranks, records, strict=True):
            begin, end = interactions.offsets[row : row + 2]
            *clicked, last = _raw_ids(interactions.values[begin:end], catalogue)
            example = {
                "session": _scalar(record["session_id"]),
                "clicked": clicked,
                "next": last,
                "rank": None if last is None else rank,
                "recommended": [
                    {**entry, "hit": last is not None and entry["item_id"] == last}
                    for entry in record["recommendations"]
                ],
            }
            examples.append(example)
    return examples


def _random_sessions(lengths: NDArray[Any], count: int) -> NDArray[Any]:
    """Up to `count` of the sessions with a next item, ascending."""
    eligible = np.flatnonzero(lengths > 1)
    generator = np.random.default_rng(_SEED)
    rows = generator.choice(eligible, min(count, len(eligible)), replace=False, shuffle=False)
    return np.sort(rows)


@torch.inference_mode()
def _recommend(
    recommender: Recommender, batch: RaggedBatch, rows: Tensor, k: int, filter_seen: bool
) -> tuple[Recommendations, list[int]]:
    """Recommendations after all items but the last of each session, and the rank of the last."""
    model, catalogue = recommender.model, recommender.catalogue
    device = model.device
    stops = batch.lengths[rows] - 1
    window = recommender.newest(batch, rows, stops)
    items, begins = batch.sequences[model.inputs.item], batch.offsets[rows]
    targets = items[begins + stops]
    seen = excluded = None
    if filter_seen:
        bounds = (items - FIRST_ITEM, begins, begins + stops)
        seen = Seen(*(values.to(device) for values in bounds))
        # the whole session, beyond the L that the model reads
        excluded = recommender.items(batch, rows, stops)
    best = model.top_k(window, min(k, len(catalogue)), excluded=excluded)
    ranked = rank_queries(
        model,
        model.session_queries(window),
        model.items(),
        targets.to(device) - FIRST_ITEM,
        seen=seen,
    )
    return to_raw_ids(best, catalogue), ranked.ranks.tolist()


def _raw_ids(indices: NDArray[Any], catalogue: NDArray[Any]) -> list[Any]:
    return [_scalar(catalogue[i - FIRST_ITEM]) if i >= FIRST_ITEM else None for i in indices]


def _scalar(value: Any) -> Any:
    """Convert a NumPy scalar to a Python one, for JSON."""
    return value.item() if isinstance(value, np.generic) else value

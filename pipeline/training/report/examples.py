"""A few sessions as a person reads them: what was clicked, what came next, what was recommended."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.core.columns import FIRST_ITEM
from pipeline.data.directory import Data
from pipeline.data.interactions import read_interactions
from pipeline.data.loader import SessionLoader, session_ids
from pipeline.evaluation.ranking import Seen, rank_in_catalogue
from pipeline.evaluation.recommendations import to_raw_ids
from pipeline.evaluation.recommender import Recommender
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
    """`count` sessions drawn by a fixed seed, asked for what came last in them.

    Each is {"session", "clicked", "next", "rank", "recommended"}: raw ids, oldest first, None for
    an item that the catalogue does not have; the rank of what came next, None where that is
    unknown; and the best `k` items with their scores and whether they are what came next. With
    `filter_seen` what was clicked is neither ranked nor recommended.
    """
    data = Data.open(data)
    recommender = Recommender.open(run)
    model, catalogue = recommender.model, recommender.catalogue
    longest = model.inputs.max_sequence_length
    assert longest is not None  # noqa: S101
    rows_of = recommender.run.index_mapping(data)
    interactions = read_interactions(data.path, part, rows=rows_of)
    lengths = np.diff(interactions.offsets)
    eligible = np.flatnonzero(lengths > 1)
    drawn = np.random.default_rng(_SEED).choice(
        eligible, min(count, len(eligible)), replace=False, shuffle=False
    )
    chosen = np.sort(drawn)
    ids = session_ids(data.path, part)
    loader = SessionLoader(
        data.path,
        part,
        item=model.inputs.item,
        features=model.inputs.feature_names,
        batch_size=_SESSIONS_AT_ONCE,
        indices=rows_of,
    )
    device = next(model.parameters()).device
    found: list[dict[str, Any]] = []
    first = 0
    for batch in loader:
        size = batch.lengths.numel()
        rows = torch.from_numpy(chosen[(chosen >= first) & (chosen < first + size)] - first)
        rows = rows.to(batch.lengths.device)
        if len(rows):
            stops = batch.lengths[rows] - 1
            window = batch.window(rows, (stops - longest).clamp(min=0), stops).to(device)
            sequence, begins = batch.sequences[model.inputs.item], batch.offsets[rows]
            targets = sequence[begins + stops]
            seen = excluded = None
            if filter_seen:
                seen = Seen(
                    *(x.to(device) for x in (sequence - FIRST_ITEM, begins, begins + stops))
                )
                # also what lies further back than the model reads
                whole = batch.window(rows, torch.zeros_like(stops), stops)
                excluded = whole.features[model.inputs.item].to(device)
            with torch.inference_mode():
                best = model.top_k(window, min(k, len(catalogue)), excluded=excluded)
                lists = to_raw_ids(best, catalogue)
                ranks = rank_in_catalogue(
                    model.session_embeddings(window),
                    model.item_embeddings(),
                    targets.to(device) - FIRST_ITEM,
                    seen=seen,
                ).ranks.tolist()
            records = lists.records(ids[(rows + first).cpu()] if ids is not None else [None] * size)
            for row, rank, record in zip((rows + first).tolist(), ranks, records, strict=False):
                begin, end = interactions.offsets[row : row + 2]
                raw = _raw_ids(interactions.values[begin:end], catalogue)
                found.append(
                    {
                        "session": _plain(record["session_id"]),
                        "clicked": raw[:-1],
                        "next": raw[-1],
                        "rank": rank if raw[-1] is not None else None,
                        "recommended": [
                            {**entry, "hit": raw[-1] is not None and entry["item_id"] == raw[-1]}
                            for entry in record["recommendations"]
                        ],
                    }
                )
        first += size
    return found


def _raw_ids(indices: np.ndarray, catalogue: np.ndarray) -> list[Any]:
    return [_plain(catalogue[i - FIRST_ITEM]) if i >= FIRST_ITEM else None for i in indices]


def _plain(value: Any) -> Any:
    """What JSON takes, of a NumPy number too."""
    return value.item() if isinstance(value, np.generic) else value

"""`pipeline evaluate`: a run beside the baselines, on the same targets of one part of the data."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.columns import FIRST_ITEM, ITEM
from pipeline.core.errors import ArtifactError
from pipeline.data.directory import Data
from pipeline.data.interactions import read_interactions
from pipeline.data.loader import SessionLoader
from pipeline.evaluation.baselines.models import BASELINES, rank_by_baselines
from pipeline.evaluation.breakdowns import Targets, break_down, describe_targets
from pipeline.evaluation.metrics import (
    DEFAULT_CUTOFFS,
    Ranked,
    gains,
    list_metrics,
    margin,
    ranking_metrics,
)
from pipeline.evaluation.targets import Positions, prefixes, rank_targets
from pipeline.model.device import best_device, peak_memory_mb
from pipeline.model.run import Run

_SESSIONS_AT_ONCE = 4096
_GROUP_METRICS = ("recall", "ndcg", "mrr")
"""Metrics of a breakdown; the others follow from them."""


def evaluate(
    run: Run | Path,
    data: Data | Path,
    *,
    part: str = "test",
    positions: Positions | None = None,
    cutoffs: tuple[int, ...] = DEFAULT_CUTOFFS,
    baselines: bool = True,
    filter_seen: bool | None = None,
) -> dict[str, Any]:
    """Metrics of a run, and of the baselines, on one part of `data`, over the full catalogue.

    Where `positions` is not given, every position but the first is a target, or the last alone in
    data that were split by leave-one-out; where `filter_seen` is not given, the recipe of the data
    decides whether what came before a target is ranked. `data` may be what preprocessing made of
    other logs, going on from the run's data: what is new there is unknown to all models. Baselines
    learn from its train part, and are left out where that is the part to rank.
    Returns {"part", "positions", "filter_seen", "sessions", "targets", "unknown_targets",
    "other_data", "new_items", "catalogue_items", "results", "margins", "differences", "breakdowns",
    "cost"}. `other_data` is whether the run was trained on other sessions than the train part of
    the data, `new_items` how many of their items it does not know. By a model's name, `results` has
    its metrics, those of ranks and those of its top-K lists, a list for each target, None for what
    is not defined, such as the popularity bias where training saw none of the targets; `margins`
    has half the 95 % intervals of the metrics of ranks (see `metrics.margin`). `differences` has,
    by metric, how far the run is above the best baseline, and the margin of that. `breakdowns` has
    the same for groups of targets, `cost` seconds and memory.
    ArtifactError if `data` has another catalogue that does not go on from the run's, or other
    features, or other statistics of these, or training sessions that are cut shorter.
    """
    run, data = Run.open(run), Data.open(data)
    rows = run.index_mapping(data)
    other_data = bool(rows) or not run.was_trained_on(data)
    recipe = data.recipe
    positions = positions or recipe.target_positions
    filter_seen = recipe.filter_seen if filter_seen is None else filter_seen
    model = run.model.to(best_device())
    longest = model.inputs.max_sequence_length
    assert longest is not None  # noqa: S101
    loader = SessionLoader(
        data.path,
        part,
        item=model.inputs.item,
        features=model.inputs.feature_names,
        batch_size=_SESSIONS_AT_ONCE,
        indices=rows,
    )
    own = _name(run)
    begin = time.monotonic()
    rankings = {
        own: rank_targets(model, loader, positions, list_lengths=cutoffs, filter_seen=filter_seen)
    }
    seconds = {own: time.monotonic() - begin}
    ranked = rankings[own]
    if not len(ranked.ranks):
        raise ArtifactError(
            f"{data.path} has no {part} session of two interactions or more: nothing to predict."
        )
    num_rows = model.inputs.item_table.num_embeddings
    new_items = len(rows.get(ITEM, range(num_rows))) - num_rows
    baselines = baselines and not (other_data and part == "train")
    history = read_interactions(data.path, "train", by_time=True, rows=rows)
    counts = np.bincount(history.values, minlength=num_rows)[FIRST_ITEM:]
    interactions = read_interactions(data.path, part, rows=rows)
    targets = describe_targets(interactions, positions)
    # groups and baselines see the same targets as the model
    assert np.array_equal(targets.items, ranked.targets)  # noqa: S101
    if baselines:
        sessions = interactions.values, interactions.offsets
        before = prefixes(*sessions, positions, longest)
        # also what lies further back than a model reads
        whole = prefixes(*sessions, positions, 2**31) if filter_seen else None
        begin = time.monotonic()
        for name, found in rank_by_baselines(
            history.values,
            history.offsets,
            num_rows,
            *before,
            list_lengths=cutoffs,
            seen=None if whole is None else (whole.values, whole.offsets),
        ):
            rankings[name] = found
            seconds[name] = time.monotonic() - begin
            begin = time.monotonic()
    worth = {name: gains(found.ranks, cutoffs) for name, found in rankings.items()}
    num_sessions = len(np.unique(targets.sessions))
    return {
        "part": part,
        "positions": positions,
        "filter_seen": filter_seen,
        "sessions": num_sessions,
        "targets": len(ranked.ranks),
        "unknown_targets": int((ranked.targets < FIRST_ITEM).sum()),
        "other_data": other_data,
        "new_items": new_items,
        "catalogue_items": num_rows - FIRST_ITEM,
        "results": {name: _metrics(found, cutoffs, counts) for name, found in rankings.items()},
        "margins": {
            name: {metric: margin(values, targets.sessions) for metric, values in found.items()}
            for name, found in worth.items()
        },
        "differences": _differences(worth, own, targets.sessions),
        "breakdowns": _breakdowns(
            worth,
            targets,
            counts,
            tuple(f"{metric}@{cutoff}" for cutoff in cutoffs for metric in _GROUP_METRICS),
            by_time=recipe.timestamp is not None,
        ),
        "cost": {
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "sessions_per_second": round(num_sessions / max(seconds[own], 1e-9), 1),
            "targets_per_second": round(len(ranked.ranks) / max(seconds[own], 1e-9), 1),
            "peak_memory_mb": peak_memory_mb(next(model.parameters()).device),
            "device": str(next(model.parameters()).device),
        },
    }


def _name(run: Run) -> str:
    return f"{run.name} (run)" if run.name in BASELINES else run.name


def _metrics(
    found: Ranked, cutoffs: tuple[int, ...], counts: np.ndarray
) -> dict[str, float | None]:
    return {
        **ranking_metrics(found.ranks, cutoffs),
        **list_metrics(found.exposure, cutoffs, found.targets, counts),
    }


def _differences(
    worth: dict[str, dict[str, np.ndarray]], own: str, sessions: np.ndarray
) -> dict[str, dict[str, Any]]:
    """By metric, the run against the baseline that has the highest mean; on the same targets."""
    baselines = [name for name in worth if name != own]
    if not baselines:
        return {}
    found = {}
    for metric, values in worth[own].items():
        best = max(baselines, key=lambda name: float(worth[name][metric].mean()))
        difference = values - worth[best][metric]
        found[metric] = {
            "baseline": best,
            "difference": float(difference.mean()),
            "margin": margin(difference, sessions),
        }
    return found


def _breakdowns(
    worth: dict[str, dict[str, np.ndarray]],
    targets: Targets,
    counts: np.ndarray,
    metrics: tuple[str, ...],
    *,
    by_time: bool,
) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for by, groups in break_down(targets, counts, by_time=by_time).items():
        found[by] = []
        for label, members in groups:
            sessions = targets.sessions[members]
            entry: dict[str, Any] = {
                "group": label,
                "targets": int(members.sum()),
                "sessions": len(np.unique(sessions)),
                "results": {},
                "margins": {},
            }
            for name, of_each in worth.items():
                of_group = {metric: of_each[metric][members] for metric in metrics}
                entry["results"][name] = {m: float(v.mean()) for m, v in of_group.items()}
                entry["margins"][name] = {m: margin(v, sessions) for m, v in of_group.items()}
            found[by].append(entry)
    return found

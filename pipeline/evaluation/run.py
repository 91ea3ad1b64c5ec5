"""`pipeline evaluate`: a run and the baselines, ranked on the same targets of one part."""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.core.columns import FIRST_ITEM, ITEM, SESSION
from pipeline.core.errors import ArtifactError
from pipeline.data.directory import Data
from pipeline.data.loader import SessionLoader
from pipeline.data.sessions import Interactions, count_sessions, read_interactions, session_ids
from pipeline.evaluation.baselines import BASELINES, rank_by_baselines
from pipeline.evaluation.breakdowns import Group, Targets, break_down, describe_targets
from pipeline.evaluation.column_groups import check_columns, group_by_columns
from pipeline.evaluation.list_metrics import (
    ListContext,
    check_metrics,
    item_categories,
    make_context,
    requested_metrics,
)
from pipeline.evaluation.metrics import (
    DEFAULT_CUTOFFS,
    Ranked,
    behind_every_list,
    best_row,
    gains,
    list_metrics,
    margin,
    means_and_margins,
)
from pipeline.evaluation.result import (
    TRAINING_MEAN,
    Cost,
    Difference,
    Evaluation,
    GroupResult,
    Margins,
    TargetResult,
)
from pipeline.evaluation.target_metrics import TargetPredictions, target_metrics, target_values
from pipeline.evaluation.target_predictions import fill_values, mean_targets, predict_targets
from pipeline.evaluation.targets import Positions, evaluation_loader, prefixes, rank_targets
from pipeline.model.device import best_device, peak_memory_mb
from pipeline.model.model import Model
from pipeline.model.run import Run
from pipeline.recipe.preprocess import Preprocess

_SESSIONS_PER_BATCH = 4096
_GROUP_METRICS = ("recall", "ndcg", "mrr")
"""Metrics of a breakdown; the others follow from them."""

Gains = Mapping[str, NDArray[Any]]
"""(N,) gains of the targets by `metric@K`; their means are the metrics."""


@dataclass(frozen=True)
class Protocol:
    """Settings of an evaluation: the targets, their ranking and the metrics."""

    part: str
    positions: Positions
    cutoffs: tuple[int, ...]
    filter_seen: bool
    baselines: bool
    metrics: tuple[str, ...] = ()
    """Metrics on request, see `pipeline.evaluation.list_metrics`."""
    by: tuple[str, ...] = ()
    """Columns to group the targets by."""


@dataclass(frozen=True)
class _Ranking:
    """Ranks of the targets by the run, which is first, and by the baselines."""

    by_model: dict[str, Ranked]
    seconds: dict[str, float]
    targets: Targets
    item_counts: NDArray[Any]
    """(items,) training interactions."""
    lists: ListContext | None
    """None without a metric on request."""
    by_column: dict[str, list[Group]]


# Long: half of it is the docstring of a public function.
def evaluate(
    run: Run | Path,
    data: Data | Path,
    *,
    part: str = "test",
    positions: Positions | None = None,
    cutoffs: tuple[int, ...] = DEFAULT_CUTOFFS,
    baselines: bool = True,
    filter_seen: bool | None = None,
    metrics: tuple[str, ...] = (),
    by: tuple[str, ...] = (),
) -> Evaluation:
    """Rank the targets of one part of `data` in the full catalogue; return metrics of each model.

    Predictions of target tasks are compared with their targets.

    `positions` is "all", every interaction except the first, or "last"; the default is "all", and
    "last" for data split by leave-one-out. `filter_seen` excludes the interactions before a target
    from its ranking; the default is that of the data's recipe. `metrics` adds metrics of
    `pipeline.evaluation.list_metrics`: novelty, diversity and others, or all. `by` are columns of
    `data` for further groups of targets. `data` may extend the run's data by other logs; its new
    items are unknown to all models. Baselines learn from the train part of `data`, and are left out
    if a run that was trained on other data ranks that part.

    ConfigError for an unknown metric or column. ArtifactError if `data` does not extend the run's
    catalogue, has other features or statistics, or shorter training sessions; also for a part
    without targets.
    """
    run, data = Run.open(run), Data.open(data)
    data.check_sessions(part, "train")
    recipe = data.recipe
    index_mapping = run.index_mapping(data)
    other_data = bool(index_mapping) or not run.was_trained_on(data)
    protocol = Protocol(
        part,
        positions or recipe.target_positions,
        cutoffs,
        recipe.filter_seen if filter_seen is None else filter_seen,
        baselines and not (other_data and part == "train"),
        check_metrics(metrics, data.fitted),
        check_columns(by, data.fitted),
    )
    num_items = run.model.inputs.item_table.num_embeddings - FIRST_ITEM
    start = time.monotonic()
    tasks = _evaluate_tasks(run, data, protocol)
    seconds = {run.name: time.monotonic() - start}
    if run.model.ranks_items:
        ranking = _rank(run, data, protocol, index_mapping)
        ranked, seconds = _ranking_results(ranking, protocol, recipe), ranking.seconds
        ranked["ranks"] = _ranks_table(ranking, data, part)
    else:
        ranked = _no_ranking(data, part)
    return Evaluation(
        part=part,
        positions=protocol.positions,
        filter_seen=protocol.filter_seen,
        other_data=other_data,
        new_items=len(index_mapping[ITEM]) - FIRST_ITEM - num_items if ITEM in index_mapping else 0,
        catalogue_items=num_items,
        tasks=tasks,
        cost=_cost(run.model, seconds, ranked["sessions"], ranked["targets"]),
        **ranked,
    )


def _ranking_results(ranking: _Ranking, protocol: Protocol, recipe: Preprocess) -> dict[str, Any]:
    """Return the fields of an Evaluation that depend on the ranks."""
    cutoffs, targets = protocol.cutoffs, ranking.targets
    gains_by_model = {
        name: gains_of(ranked, cutoffs, ranking.lists) for name, ranked in ranking.by_model.items()
    }
    means = means_and_margins(gains_by_model, targets.sessions)
    usual = break_down(targets, ranking.item_counts, by_time=recipe.timestamp is not None)
    by_column = {
        f"{name} (column)" if name in usual else name: groups
        for name, groups in ranking.by_column.items()
    }
    return {
        "sessions": len(np.unique(targets.sessions)),
        "targets": len(targets.items),
        "unknown_targets": int((targets.items < FIRST_ITEM).sum()),
        "results": {
            name: {
                **means["results"][name],
                **list_metrics(ranked.exposure, cutoffs, ranked.targets, ranking.item_counts),
            }
            for name, ranked in ranking.by_model.items()
        },
        "margins": means["margins"],
        "differences": _differences(gains_by_model, targets.sessions),
        "by": tuple(by_column),
        "breakdowns": _breakdowns(ranking, gains_by_model, by_column | usual),
    }


def gains_of(ranked: Ranked, cutoffs: tuple[int, ...], context: ListContext | None) -> Gains:
    """Gains of the ranks, and values of the requested metrics, by `metric@K`."""
    own = gains(behind_every_list(ranked.ranks, ranked.targets), cutoffs)
    return own if context is None else own | requested_metrics(ranked, context)


def _ranks_table(ranking: _Ranking, data: Data, part: str) -> pa.Table:
    """Ranks of each target by model, with raw ids."""
    targets = ranking.targets
    ids = session_ids(data.path, part)
    items = read_interactions(data.path, part)
    # data may have items that an older run lacks
    starts = items.offsets[targets.sessions]
    indices = items.values[starts + targets.num_before]
    vocabulary = data.fitted.item
    row = indices - vocabulary.first
    return pa.table(
        {
            SESSION: targets.sessions if ids is None else ids[targets.sessions],
            "position": targets.num_before,
            ITEM: vocabulary.values.take(pa.array(row, mask=row < 0)),
            **{name: ranked.ranks for name, ranked in ranking.by_model.items()},
        }
    )


def _no_ranking(data: Data, part: str) -> dict[str, Any]:
    """Return empty fields for a run that does not rank items."""
    empty = ("results", "margins", "differences", "breakdowns")
    counts = {"targets": 0, "unknown_targets": 0, "sessions": count_sessions(data.path, part)}
    return {**counts, **{name: {} for name in empty}, "by": ()}


def predict_run_targets(run: Run, data: Data, protocol: Protocol) -> dict[str, TargetPredictions]:
    """Predictions of the target tasks by name; empty for a run without target tasks.

    ArtifactError if the run has only target tasks and the part lacks the target of one.
    """
    model = run.model.to(best_device())
    if not model.all_targets:
        return {}
    loader = _loader(run, data, protocol.part)
    predicted = predict_targets(model, loader, protocol.positions)
    for name, values in predicted.items():
        if not len(values.targets) and not model.ranks_items:
            raise ArtifactError(f"{data.path} has no {protocol.part} session with a {name!r}.")
    return predicted


def training_means(run: Run, data: Data) -> dict[str, float]:
    """Mean target of each task over the train part of `data`."""
    model = run.model.to(best_device())
    return mean_targets(model, _loader(run, data, "train")) if model.all_targets else {}


def _loader(run: Run, data: Data, part: str) -> SessionLoader:
    indices = run.index_mapping(data)
    return evaluation_loader(data.path, part, run.model, _SESSIONS_PER_BATCH, indices=indices)


def _evaluate_tasks(run: Run, data: Data, protocol: Protocol) -> dict[str, TargetResult]:
    """Metrics of the target tasks by name, of the run and of the training mean.

    Errors are those of `predict_run_targets`.
    """
    predicted = predict_run_targets(run, data, protocol)
    means = training_means(run, data) if protocol.baselines else {}
    fills = fill_values(run.model)
    results = {}
    for name, values in predicted.items():
        models = {run.name: values}
        if protocol.baselines:
            models[TRAINING_MEAN] = values.constant(means[name])
        by_model: dict[str, Mapping[str, float | None]] = {
            each: _defined(target_metrics(own)) for each, own in models.items()
        }
        margins: dict[str, Margins] = {each: _target_margins(own) for each, own in models.items()}
        count = len(values.targets)
        mean = float(values.targets.mean(dtype=np.float64)) if count else None
        fill = fills.get(name)
        filled = 0 if fill is None else int(np.isclose(values.targets, fill, rtol=1e-6).sum())
        results[name] = TargetResult(values.kind, count, mean, by_model, fill, filled, margins)
    return results


def _target_margins(values: TargetPredictions) -> dict[str, float | None]:
    assert values.sessions is not None  # noqa: S101
    own = target_values(values)
    return {metric: margin(each, values.sessions) for metric, each in own.items()}


def _defined(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics with None for undefined ones, as JSON values."""
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}


def _rank(
    run: Run, data: Data, protocol: Protocol, index_mapping: Mapping[str, NDArray[Any]]
) -> _Ranking:
    name = f"{run.name} (run)" if run.name in BASELINES else run.name
    ranked, run_seconds = rank_run(run, data, protocol, index_mapping)
    by_model, seconds = {name: ranked}, {name: run_seconds}
    history = read_interactions(data.path, "train", by_time=True, rows=index_mapping)
    interactions = read_interactions(data.path, protocol.part, rows=index_mapping)
    targets = describe_targets(interactions, protocol.positions)
    check_targets(targets, data, protocol.part)
    # groups and baselines have the targets of the model
    assert np.array_equal(targets.items, ranked.targets)  # noqa: S101
    num_rows, longest = run.model.inputs.item_table.num_embeddings, _longest(run)
    if protocol.baselines:
        for baseline, ranked, each_seconds in ranked_baselines(
            history, interactions, num_rows, longest, protocol
        ):
            by_model[baseline], seconds[baseline] = ranked, each_seconds
    item_counts = np.bincount(history.values, minlength=num_rows)[FIRST_ITEM:]
    context = list_context(history, interactions, targets, num_rows, data, protocol)
    by_column = group_by_columns(data, protocol.part, protocol.by, targets)
    return _Ranking(by_model, seconds, targets, item_counts, context, by_column)


def list_context(
    history: Interactions,
    interactions: Interactions,
    targets: Targets,
    num_rows: int,
    data: Data,
    protocol: Protocol,
) -> ListContext | None:
    """Common inputs of the metrics on request; None without any."""
    if not protocol.metrics:
        return None
    codes = item_categories(data.fitted)
    columns = [metric.partition(":")[2] for metric in protocol.metrics if ":" in metric]
    return make_context(
        history,
        interactions,
        targets,
        num_rows,
        cutoffs=protocol.cutoffs,
        metrics=protocol.metrics,
        attributes={column: codes[column] for column in columns},
    )


def _longest(run: Run) -> int:
    longest = run.model.inputs.max_sequence_length
    assert longest is not None  # noqa: S101  a run has one
    return longest


def rank_run(
    run: Run, data: Data, protocol: Protocol, index_mapping: Mapping[str, NDArray[Any]]
) -> tuple[Ranked, float]:
    """Rank the targets of a part by a run; return the ranks and the seconds."""
    model = run.model.to(best_device())
    loader = evaluation_loader(
        data.path, protocol.part, model, _SESSIONS_PER_BATCH, indices=index_mapping
    )
    start = time.monotonic()
    ranked = rank_targets(
        model,
        loader,
        protocol.positions,
        list_lengths=protocol.cutoffs,
        filter_seen=protocol.filter_seen,
        keep_lists=bool(protocol.metrics),
    )
    return ranked, time.monotonic() - start


def ranked_baselines(
    history: Interactions,
    interactions: Interactions,
    num_rows: int,
    longest: int,
    protocol: Protocol,
) -> Iterator[tuple[str, Ranked, float]]:
    """Rank the targets of `interactions` by every baseline; yield name, ranks and seconds.

    They learn from `history`, ordered by time, and read the newest `longest` interactions.
    """
    sessions = interactions.values, interactions.offsets
    read = prefixes(*sessions, protocol.positions, longest)
    # whole prefixes, beyond the L that a model reads
    seen = prefixes(*sessions, protocol.positions, 2**31)[:2] if protocol.filter_seen else None
    start = time.monotonic()
    for name, ranked in rank_by_baselines(
        history.values,
        history.offsets,
        num_rows,
        *read,
        longest=longest,
        list_lengths=protocol.cutoffs,
        seen=seen,
        keep_lists=bool(protocol.metrics),
    ):
        yield name, ranked, time.monotonic() - start
        start = time.monotonic()


def check_targets(targets: Targets, data: Data, part: str) -> None:
    """ArtifactError if a part has no target."""
    if not len(targets.items):
        raise ArtifactError(
            f"{data.path} has no {part} session of two interactions or more: nothing to predict."
        )


def _differences(
    gains_by_model: Mapping[str, Gains], sessions: NDArray[Any]
) -> dict[str, Difference]:
    """By metric, the run minus the baseline with the best mean, on the same targets."""
    run_name, *baselines = gains_by_model
    if not baselines:
        return {}
    differences = {}
    for metric, values in gains_by_model[run_name].items():
        if np.isnan(values).any():  # not defined
            continue
        best = best_row({name: gains_by_model[name][metric] for name in baselines}, metric)
        difference = values - gains_by_model[best][metric]
        differences[metric] = Difference(
            best, float(difference.mean()), margin(difference, sessions)
        )
    return differences


def _breakdowns(
    ranking: _Ranking,
    gains_by_model: Mapping[str, Gains],
    groups_by_name: Mapping[str, list[Group]],
) -> dict[str, list[GroupResult]]:
    def result(group: Group) -> GroupResult:
        sessions = ranking.targets.sessions[group.members]
        values = {
            name: {
                metric: each[group.members]
                for metric, each in by_metric.items()
                if metric.split("@")[0] in _GROUP_METRICS
            }
            for name, by_metric in gains_by_model.items()
        }
        counts = int(group.members.sum()), len(np.unique(sessions))
        return GroupResult(
            group.label,
            *counts,
            **means_and_margins(values, sessions),
            differences=_differences(values, sessions),
        )

    return {by: [result(group) for group in groups] for by, groups in groups_by_name.items()}


def _cost(model: Model, seconds: dict[str, float], num_sessions: int, num_targets: int) -> Cost:
    """`seconds` by model, the run first."""
    device = model.device
    model_seconds = max(next(iter(seconds.values())), 1e-9)
    return Cost(
        seconds={name: round(value, 3) for name, value in seconds.items()},
        sessions_per_second=round(num_sessions / model_seconds, 1),
        targets_per_second=round(num_targets / model_seconds, 1),
        peak_memory_mb=peak_memory_mb(device),
        device=str(device),
    )

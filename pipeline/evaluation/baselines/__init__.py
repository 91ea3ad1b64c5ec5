"""Baselines without a network, shown beside every model: counting models with their defaults.

Popularity, co-visitation, sequential rules and session-kNN after Ludewig & Jannach, "Evaluation of
session-based recommendation algorithms" (UMUAI 2018). Sparse scores are computed in chunks, so that
no (N, V) array ever exists. A prefix without an item of the catalogue is scored by popularity.

Letters: N prefixes, b of them in a chunk, M training sessions, V rows of the item table, R rows of
scores.
"""

from collections.abc import Iterator

from pipeline.core.columns import FIRST_ITEM
from pipeline.evaluation.baselines.ranking import (
    FittedBaseline,
    WithoutSeen,
    rank_by_baseline,
)
from pipeline.evaluation.metrics import Ranked
from pipeline.model.counting.fitting import TrainingSessions, fit_scorer
from pipeline.model.counting.sessions import Array, incidence
from pipeline.recipe.counting import COUNTING

BASELINES = ("popularity", "recent-popularity", "co-visitation", "sequential-rules", "session-knn")
"""Counting models that are evaluated as baselines."""
_LONGEST = 50


def fit_baseline(
    name: str,
    values: Array,
    offsets: Array,
    num_rows: int,
    longest: int = _LONGEST,
    **options: object,
) -> FittedBaseline:
    """Fit a baseline to ragged training sessions, oldest first.

    `num_rows` is V; the baseline reads the newest `longest` interactions of a prefix.
    """
    sessions = TrainingSessions(values, offsets, num_rows, longest)
    return FittedBaseline(fit_scorer(sessions, COUNTING[name].model_validate(options)))


def rank_by_baselines(
    train_values: Array,
    train_offsets: Array,
    num_rows: int,
    prefix_values: Array,
    prefix_offsets: Array,
    targets: Array,
    *,
    longest: int = _LONGEST,
    list_lengths: tuple[int, ...] = (),
    seen: tuple[Array, Array] | None = None,
    keep_lists: bool = False,
) -> Iterator[tuple[str, Ranked]]:
    """Fit every baseline in turn; yield its name and the result of `rank_by_baseline`.

    `num_rows` is V; training sessions are ordered by time, oldest first. Baselines read the newest
    `longest` interactions of a prefix. `seen` are the ragged interactions before each target, to
    exclude them from its ranking.
    """
    for name in BASELINES:
        fitted = fit_baseline(name, train_values, train_offsets, num_rows, longest)
        baseline = fitted if seen is None else WithoutSeen(fitted, incidence(*seen, num_rows))
        ranked = rank_by_baseline(
            baseline,
            prefix_values,
            prefix_offsets,
            targets,
            num_items=num_rows - FIRST_ITEM,
            list_lengths=list_lengths,
            keep_lists=keep_lists,
        )
        yield name, ranked

"""Baselines without a network, to compare every model with.

Popularity, co-visitation, sequential rules and session-kNN after Ludewig & Jannach, "Evaluation
of session-based recommendation algorithms" (UMUAI 2018). All count in sparse matrices, a bounded
number of stored scores at a time, so that no (N, V) array ever exists. A prefix without an item of
the catalogue is scored by popularity.

Letters: N prefixes, M training sessions, V rows of the item table, R rows of scores, b of a chunk.
"""

from collections.abc import Callable, Iterator

from pipeline.core.columns import FIRST_ITEM
from pipeline.evaluation.baselines.item_rules import (
    covisitation,
    popularity,
    recent_popularity,
    sequential_rules,
)
from pipeline.evaluation.baselines.ranking import (
    Array,
    Baseline,
    WithoutSeen,
    incidence,
    rank_by_baseline,
)
from pipeline.evaluation.baselines.session_knn import session_knn
from pipeline.evaluation.metrics import Ranked

BASELINES: dict[str, Callable[[Array, Array, int], Baseline]] = {
    "popularity": popularity,
    "recent-popularity": recent_popularity,
    "co-visitation": covisitation,
    "sequential-rules": sequential_rules,
    "session-knn": session_knn,
}
"""Function that fits a baseline to training sessions, by its name."""


def rank_by_baselines(
    train_values: Array,
    train_offsets: Array,
    num_rows: int,
    prefix_values: Array,
    prefix_offsets: Array,
    targets: Array,
    *,
    list_lengths: tuple[int, ...] = (),
    seen: tuple[Array, Array] | None = None,
    keep_lists: bool = False,
) -> Iterator[tuple[str, Ranked]]:
    """Fit every baseline in turn; yield its name and the result of `rank_by_baseline`.

    `num_rows` is V; training sessions are in the order of time, oldest first. `seen` are ragged
    interactions before each target, if they are left out of its ranking.
    """
    for name, fit in BASELINES.items():
        baseline = fit(train_values, train_offsets, num_rows)
        if seen is not None:
            baseline = WithoutSeen(baseline, incidence(*seen, num_rows))
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

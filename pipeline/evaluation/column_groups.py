"""Groups of targets by columns of the data.

A column of items has the value of the target item, as in recall by category; a column of
interactions has the value of the predicted interaction, a column of sessions that of the session.
The most frequent categories form a group each; numbers form four groups of about equal size.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.core.columns import FIRST_ITEM, ITEM, NULL
from pipeline.core.errors import ConfigError, closest
from pipeline.data.directory import Data
from pipeline.data.fitted import Fitted
from pipeline.data.sessions import read_sessions
from pipeline.evaluation.breakdowns import Group, Targets
from pipeline.recipe.features import BucketFeature, NumberFeature

_MOST_GROUPS = 20
"""Maximum categories with a separate group; the others share one."""
_QUANTILES = (0.25, 0.5, 0.75)


def check_columns(columns: tuple[str, ...], fitted: Fitted) -> tuple[str, ...]:
    """Distinct names of columns. ConfigError for a column that the data lack."""
    existing = _columns_by_name(fitted)
    for name in columns:
        if name not in existing:
            raise ConfigError(f"The data have no column {name!r}: {closest(name, existing)}")
    return tuple(dict.fromkeys(columns))


def _columns_by_name(fitted: Fitted) -> dict[str, tuple[str, ...]]:
    """Columns of the sessions by feature: one, or M of a multi-valued feature."""
    features = {feature.name: feature.columns for feature in fitted.recipe.features}
    times = {name: (name,) for name in fitted.recipe.time_feature_names}
    return {ITEM: (ITEM,), **features, **times}


def group_by_columns(
    data: Data, part: str, columns: tuple[str, ...], targets: Targets
) -> dict[str, list[Group]]:
    """Non-empty groups of the targets of a part by column.

    A target with several categories is in the group of each.
    """
    by_name = _columns_by_name(data.fitted)
    groups = {}
    for name in columns:
        table = read_sessions(data.path, part, list(by_name[name]))
        values = np.stack([_at_targets(table[each], targets) for each in by_name[name]], 1)
        if name in data.fitted.vocabularies:
            groups[name] = _by_category(values, _labels(data.fitted, name))
        else:
            groups[name] = _by_number(_in_units(values[:, 0], data.fitted, name))
    return groups


def _at_targets(column: pa.ChunkedArray, targets: Targets) -> NDArray[Any]:
    """Column of (sessions,) values, or lists per session -> (N,) values of the targets."""
    array = column.combine_chunks()
    if not pa.types.is_list(array.type):
        return array.to_numpy(zero_copy_only=False)[targets.sessions]
    starts = array.offsets.to_numpy()[:-1] - array.offsets[0].as_py()
    return array.flatten().to_numpy()[starts[targets.sessions] + targets.num_before]


def _by_category(values: NDArray[Any], label: Callable[[int], str]) -> list[Group]:
    """(N, M) indices, 0 after the last of a multi-valued feature -> groups, the largest first."""
    counts = np.bincount(values.ravel())
    counts[0] = 0  # no category
    order = np.argsort(-counts, kind="stable")[: (counts > 0).sum()]
    named, others = order[:_MOST_GROUPS], order[_MOST_GROUPS:]
    groups = [Group(label(int(index)), (values == index).any(1)) for index in named]
    if len(others) == 1:
        groups.append(Group(label(int(others[0])), (values == others[0]).any(1)))
    elif len(others):
        groups.append(Group(f"{len(others):,} others", np.isin(values, others).any(1)))
    return groups


def _labels(fitted: Fitted, name: str) -> Callable[[int], str]:
    """Function from an index of a categorical feature to its raw value."""
    vocabulary = fitted.vocabularies[name]
    feature = next((each for each in fitted.recipe.features if each.name == name), None)
    bounds = feature.buckets if isinstance(feature, BucketFeature) else None

    def label(index: int) -> str:
        if index < FIRST_ITEM:
            return "missing" if index == NULL else "not in the vocabulary"
        if index < vocabulary.first:
            return f"hash bucket {index - FIRST_ITEM}"
        value = vocabulary.values[index - vocabulary.first].as_py()
        return str(value) if bounds is None else _bucket_label(bounds, int(value))

    return label


def _bucket_label(bounds: tuple[float, ...], bucket: int) -> str:
    """Range of a bucket, the number of bounds at or below a value."""
    if bucket == 0:
        return f"below {bounds[0]:g}"
    if bucket == len(bounds):
        return f"{bounds[-1]:g} or more"
    return f"{bounds[bucket - 1]:g} to below {bounds[bucket]:g}"


def _in_units(values: NDArray[Any], fitted: Fitted, name: str) -> NDArray[Any]:
    """Standardized numbers in the units of the log."""
    statistics = fitted.standardizations.get(name)
    if statistics is None:
        return values.astype(np.float64)
    numbers = values * (statistics.deviation or 1.0) + statistics.mean
    feature = next((each for each in fitted.recipe.features if each.name == name), None)
    # the time since the previous interaction is a logarithm, and is not a feature of the recipe
    is_logarithm = feature is None or (isinstance(feature, NumberFeature) and feature.log)
    return np.expm1(numbers) if is_logarithm else numbers


def _by_number(numbers: NDArray[Any]) -> list[Group]:
    """(N,) numbers -> up to four groups of about equal size; equal numbers are in one group."""
    bounds = np.unique(np.quantile(numbers, _QUANTILES, method="lower"))
    limits = [-np.inf, *bounds[bounds < numbers.max()], np.inf]
    groups = []
    for low, high in pairwise(limits):
        label = f"up to {high:.4g}" if np.isinf(low) else f"above {low:.4g} to {high:.4g}"
        if np.isinf(high):
            label = "all" if np.isinf(low) else f"above {low:.4g}"
        groups.append(Group(label, (numbers > low) & (numbers <= high)))
    return groups

"""The NVTabular graph from raw interactions to encoded sessions, fitted or rebuilt."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from merlin.dag import ColumnSelector
from merlin.dtypes.shape import DefaultShapes
from merlin.schema import ColumnSchema, Schema, Tags
from nvtabular import Workflow
from nvtabular.ops import AddTags, FillMissing, LogOp

from pipeline.core.columns import ITEM, SESSION, TIMESTAMP
from pipeline.core.merlin import has_cudf
from pipeline.data.fitted import Fitted, Standardization, TimestampType, ValueType, Vocabulary
from pipeline.data.values import UNKNOWN_INTEGER
from pipeline.preprocessing.operators import target_encoding
from pipeline.preprocessing.operators.encode import Encode
from pipeline.preprocessing.operators.sessions import Cyclic, Elapsed, GroupSessions, Standardize
from pipeline.preprocessing.operators.target_encoding import (
    TargetEncode,
    fitted_encoding,
    scale_of,
    sums_of,
)
from pipeline.preprocessing.statistics import (
    Moments,
    counts_of,
    moments_of,
    summed,
    together,
    vocabulary_of,
)
from pipeline.recipe.preprocess import Preprocess

ELAPSED = "elapsed"
_COUNTS_ROWS = 4_000_000
"""Counts of values that wait to be summed up."""


@dataclass(frozen=True)
class Statistics:
    """What a part of the training interactions adds to what is learned."""

    counts: dict[str, pa.Table]
    moments: dict[str, Moments]
    sums: dict[str, pa.Table]
    """By feature with `mean_of`."""
    last: int | None
    """Microseconds of the newest; None where the order of the rows stands for time."""


def statistics(recipe: Preprocess, frame: pd.DataFrame) -> Statistics:
    """Of interactions, sessions of which are whole."""
    names = [ITEM, *(f.name for f in recipe.scalar_features if f.kind == "categorical")]
    numbers = _numbers(recipe)
    moments: dict[str, Moments] = {}
    if numbers is not None and len(frame):
        transformed = transform(Workflow(numbers), frame)
        moments = moments_of(transformed, list(transformed.columns))
    sums = {f.name: sums_of(f, frame) for f in recipe.features if f.mean_of is not None}
    last = None if recipe.timestamp is None or frame.empty else int(frame[TIMESTAMP].max())
    return Statistics(counts_of(frame, names), moments, sums, last)


def fit(
    recipe: Preprocess,
    parts: Iterable[Statistics],
    types: dict[str, ValueType],
    timestamp_type: TimestampType | None,
    base: Fitted | None = None,
) -> Fitted:
    """Indices, means and deviations from the statistics of all parts, in their order.

    What `base` knows keeps its index, and new values get the next ones; means and deviations are
    those of `base`, so that a model that was trained on them reads numbers as before.
    """
    last: int | None = None
    feature_of = {c: f.name for f in recipe.features for c in f.columns}
    counts: dict[str, list[pa.Table]] = {}
    moments: dict[str, Moments] = {}
    sums: dict[str, list[pa.Table]] = {}
    for part in parts:
        if part.last is not None:
            last = part.last if last is None else max(last, part.last)
        for name, table in part.sums.items():
            found_sums = sums.setdefault(name, [])
            found_sums.append(table)
            if len(found_sums) > 1 and sum(t.num_rows for t in found_sums[1:]) > _COUNTS_ROWS:
                sums[name] = [target_encoding.together(found_sums, types[name])]
        for name, table in part.counts.items():
            of = feature_of.get(name, name)
            waiting = counts.setdefault(of, [])
            waiting.append(table)
            if len(waiting) > 1 and sum(t.num_rows for t in waiting[1:]) > _COUNTS_ROWS:
                counts[of] = [summed(waiting)]
        for name, found in part.moments.items():
            moments[name] = together(moments[name], found) if name in moments else found
    categorical = {f.name: f for f in recipe.features if f.kind == "categorical"}
    vocabularies = {}
    for name, tables in counts.items():
        feature = categorical.get(name)
        limit = recipe.min_item_count if feature is None else feature.min_count
        kind = types[name if feature is None else feature.columns[0]]
        found = vocabulary_of(summed(tables), limit)
        values = found.cast(pa.int64() if kind == "int64" else pa.string())
        if base is not None:
            values = _behind(base.vocabularies[name].values, values)
        buckets = 0 if feature is None else feature.hash_buckets
        vocabularies[name] = Vocabulary(type=kind, values=values, hash_buckets=buckets)
    standardizations = {
        name: Standardization(mean=found.mean, deviation=found.deviation)
        for name, found in moments.items()
    }
    encodings = {
        feature.name: fitted_encoding(feature, sums[feature.name], types[feature.name])
        for feature in recipe.features
        if feature.name in sums
    }
    standardizations |= {name: scale_of(encoding) for name, encoding in encodings.items()}
    return Fitted(
        recipe=recipe,
        session_type=types[SESSION],
        timestamp_type=timestamp_type,
        vocabularies=vocabularies,
        standardizations=standardizations if base is None else base.standardizations,
        target_encodings=encodings if base is None else base.target_encodings,
        learned_until=last if base is None else base.learned_until,
        items=None if base is None else base.items,
    )


def _behind(known: pa.Array, found: pa.Array) -> pa.Array:
    """`known`, and behind it what of `found` is new."""
    if pa.types.is_integer(found.type):  # where the log holds a text
        found = found.filter(pc.not_equal(found, UNKNOWN_INTEGER))
    return pa.concat_arrays([known, found.filter(pc.invert(pc.is_in(found, known)))])


def with_items(fitted: Fitted, items: pa.Array) -> Fitted:
    """The same with `items` in the catalogue that training never saw, behind those it saw."""
    known = fitted.item
    found = items.cast(known.values.type)
    item = replace(known, values=_behind(known.values, found.take(pc.sort_indices(found))))
    return replace(fitted, vocabularies={**fitted.vocabularies, ITEM: item})


def rebuild(fitted: Fitted, keep: int | None, *, training: bool = False) -> Workflow:
    """The fitted workflow, grouping included.

    `keep`: newest interactions of a session that stay; None keeps all. `training`: the sessions
    are those of training, which it may have been fitted to.
    """
    columns = fitted.of_columns
    encode = Encode(
        vocabularies={name: vocabulary.values for name, vocabulary in columns.items()},
        hash_buckets={name: vocabulary.hash_buckets for name, vocabulary in columns.items()},
        further=[name for feature in fitted.categorical for name in feature.columns[1:]],
    )
    normalize = Standardize(out_dtype=np.float32)
    for name, statistics in fitted.standardizations.items():
        normalize.means[name] = statistics.mean
        normalize.stds[name] = statistics.deviation
    normalize.fitted = True
    session_features = tuple(
        feature.name for feature in fitted.recipe.scalar_features if feature.of == "session"
    )
    targets = TargetEncode(fitted.target_encodings, training=training, until=fitted.learned_until)
    graph = _interaction_graph(fitted.recipe, encode, normalize, targets)
    graph = graph + (ColumnSelector([SESSION]) >> AddTags([Tags.SESSION, Tags.SESSION_ID]))
    graph = graph + (ColumnSelector([TIMESTAMP]) >> AddTags([Tags.TIME]))
    return Workflow(graph >> GroupSessions(SESSION, TIMESTAMP, session_features, keep))


def transform(workflow: Workflow, interactions: pd.DataFrame) -> Any:
    """Sessions as a data frame of the engine, pandas or cuDF."""
    output_schema(workflow, interactions)
    return workflow.transform(_on_engine(interactions))


def output_schema(workflow: Workflow, interactions: pd.DataFrame) -> Any:
    """Merlin's schema of what `transform` gives."""
    if not workflow.output_schema:
        # Merlin's Dataset would have dask look at the row, on a cluster as a task within a task
        types = _on_engine(interactions.iloc[:1]).dtypes
        columns = [
            ColumnSchema(name, dtype=types[name], dims=DefaultShapes.SCALAR) for name in types.index
        ]
        workflow.fit_schema(Schema(columns))
    return workflow.output_schema


def _on_engine(frame: pd.DataFrame) -> Any:
    if not has_cudf():
        return frame
    import cudf

    plain = {
        name: frame[name].astype(frame[name].cat.categories.dtype)
        for name in frame.columns
        if isinstance(frame[name].dtype, pd.CategoricalDtype)
    }
    return cudf.DataFrame.from_pandas(frame.assign(**plain))


def _interaction_graph(
    recipe: Preprocess,
    encode: Encode,
    normalize: Standardize,
    targets: TargetEncode | None = None,
) -> Any:
    """One row an interaction in and out: indices, standardized numbers, time features.

    An operator stands once for each group of tags: NVTabular's executor runs a node anew for each
    of those that read it.
    """
    graph = ColumnSelector([ITEM]) >> encode >> AddTags([Tags.ITEM_ID, Tags.ITEM])
    for names, tags in _groups(recipe, "categorical"):
        graph = graph + (ColumnSelector(names) >> encode >> AddTags(tags))
    for names, tags in _groups(recipe, "continuous"):
        numbers = _numbers(recipe, names)
        means = [f.name for f in recipe.features if f.mean_of is not None and f.name in names]
        if means:
            encoded = ColumnSelector([SESSION, TIMESTAMP, *means]) >> targets
            numbers = encoded if numbers is None else numbers + encoded
        graph = graph + (numbers >> normalize >> FillMissing(0) >> AddTags(tags))
    for feature in recipe.timestamp.features if recipe.timestamp else ():
        if feature != ELAPSED:
            graph = graph + (ColumnSelector([TIMESTAMP]) >> Cyclic(feature))
    return graph


def _groups(recipe: Preprocess, kind: str) -> list[tuple[list[str], list[Tags]]]:
    """Columns of one kind with the tags for what they describe."""
    groups: list[tuple[list[str], list[Tags]]] = []
    for of, tags in (("item", [Tags.ITEM]), ("session", [Tags.SESSION]), ("interaction", [])):
        names = [f.name for f in recipe.scalar_features if f.kind == kind and f.of == of]
        if of == "interaction" and kind == "continuous" and recipe.timestamp:
            names += [ELAPSED] if ELAPSED in recipe.timestamp.features else []
        if names:
            groups.append((names, tags))
    return groups


def _numbers(recipe: Preprocess, names: list[str] | None = None) -> Any:
    """Continuous columns, after their logarithm where they have one; None if there are none.

    Those with `mean_of` are not among them.
    """
    means = {feature.name for feature in recipe.features if feature.mean_of is not None}
    wanted = [name for group, _ in _groups(recipe, "continuous") for name in group]
    wanted = [n for n in wanted if n not in means and (names is None or n in names)]
    logs = {feature.name for feature in recipe.features if feature.log}
    graph = None
    plain = [name for name in wanted if name not in logs and name != ELAPSED]
    logged = [name for name in wanted if name in logs]
    for node in (
        ColumnSelector(plain) >> AddTags([Tags.CONTINUOUS]) if plain else None,
        ColumnSelector(logged) >> LogOp() if logged else None,
        ColumnSelector([SESSION, TIMESTAMP]) >> Elapsed(SESSION, TIMESTAMP) >> LogOp()
        if ELAPSED in wanted
        else None,
    ):
        if node is not None:
            graph = node if graph is None else graph + node
    return graph

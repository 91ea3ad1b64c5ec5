"""The NVTabular graph from interactions to encoded sessions: fit, rebuild, transform, schema."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from merlin.dag import ColumnSelector
from merlin.dtypes.shape import DefaultShapes
from merlin.schema import ColumnSchema, Schema, Tags
from merlin.schema.io.tensorflow_metadata import TensorflowMetadata
from nvtabular import Workflow
from nvtabular.ops import AddTags, FillMissing, LogOp

from pipeline.core.columns import ELAPSED, ITEM, SCHEMA_FILE, SESSION, TIMESTAMP
from pipeline.data.column_schema import VALUE_OF
from pipeline.data.fitted import Fitted, Standardization, TimestampType, ValueType, Vocabulary
from pipeline.data.values import UNKNOWN_INTEGER
from pipeline.preprocessing.expressions import expression_types
from pipeline.preprocessing.operators.encode import Encode
from pipeline.preprocessing.operators.sessions import Cyclic, Elapsed, GroupSessions, Standardize
from pipeline.preprocessing.operators.target_encoding import (
    TargetEncode,
    fit_target_encoding,
    merge_target_sums,
    standardization_of,
    target_sums,
)
from pipeline.preprocessing.statistics import (
    MergeBuffer,
    Moments,
    merge_value_counts,
    moments_of,
    value_counts,
    vocabulary_of,
)
from pipeline.recipe.features import HashedFeature
from pipeline.recipe.preprocess import Preprocess
from pipeline.serve.runtime.expressions import Statistic

_SCHEMA_PROPERTIES = ("domain", "embedding_sizes", "value_count")
"""Merlin's properties that are written; none contains a path of this machine."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of a part of the training interactions."""

    counts: dict[str, pa.Table]
    """Value counts by column."""
    moments: dict[str, Moments]
    """By continuous column, after its logarithm."""
    sums: dict[str, pa.Table]
    """Target sums by feature with `mean_of`."""
    last: int | None
    """Microseconds of the newest interaction; None without a timestamp."""


def statistics(
    recipe: Preprocess, frame: pd.DataFrame, counts: dict[str, pa.Table] | None = None
) -> Statistics:
    """Statistics of the interactions of whole sessions.

    With `counts`, the value counts of the categorical columns, the frame may lack these columns.
    """
    if counts is None:
        counts = value_counts(frame, category_columns(recipe))
    numbers = _numbers(recipe)
    moments: dict[str, Moments] = {}
    if numbers is not None and len(frame):
        transformed = transform(Workflow(numbers), frame)
        moments = {name: moments_of(transformed[name]) for name in transformed.columns}
    sums = {f.name: target_sums(f, frame) for f in recipe.target_encoded_features}
    last = None if recipe.timestamp is None or frame.empty else int(frame[TIMESTAMP].max())
    return Statistics(counts, moments, sums, last)


def category_columns(recipe: Preprocess) -> list[str]:
    """Columns that become indices: the item and the categorical features."""
    return [ITEM, *(f.name for f in recipe.scalar_features if f.kind == "categorical")]


def fit(
    recipe: Preprocess,
    parts: Iterable[Statistics],
    types: dict[str, ValueType],
    timestamp_type: TimestampType | None,
    base: Fitted | None = None,
    expressions: dict[str, Statistic] | None = None,
) -> Fitted:
    """Fitted state from the statistics of all parts, in their order.

    `expressions` are the statistics that expressions read.

    Values of `base` keep their indices and new values get the next ones. Standardizations and
    target encodings stay those of `base`, so that a trained model reads the same inputs.
    """
    merged = _merge_statistics(recipe, parts, types)
    types = types | expression_types(recipe)
    if base is not None:
        standardizations, encodings = base.standardizations, base.target_encodings
    else:
        encodings = {
            feature.name: fit_target_encoding(
                feature, merged.sums[feature.name], types[feature.name]
            )
            for feature in recipe.target_encoded_features
            if feature.name in merged.sums
        }
        standardizations = {
            name: Standardization(mean=moments.mean, deviation=moments.deviation)
            for name, moments in merged.moments.items()
        } | {name: standardization_of(encoding) for name, encoding in encodings.items()}
    return Fitted(
        recipe=recipe,
        session_type=types[SESSION],
        timestamp_type=timestamp_type,
        vocabularies=_fit_vocabularies(recipe, merged.counts, types, base),
        standardizations=standardizations,
        target_encodings=encodings,
        expressions=expressions or {},
        learned_until=merged.last if base is None else base.learned_until,
        items=None if base is None else base.items,
    )


def _merge_statistics(
    recipe: Preprocess, parts: Iterable[Statistics], types: dict[str, ValueType]
) -> Statistics:
    """Statistics of all parts, with the value counts by feature instead of by column."""
    feature_of = {column: f.name for f in recipe.features for column in f.columns}
    counts = MergeBuffer(lambda _, tables: merge_value_counts(tables))
    sums = MergeBuffer(lambda name, tables: merge_target_sums(tables, types[name]))
    moments: dict[str, Moments] = {}
    last: int | None = None
    for part in parts:
        if part.last is not None:
            last = part.last if last is None else max(last, part.last)
        for name, table in part.sums.items():
            sums.add(name, table)
        for column, table in part.counts.items():
            counts.add(feature_of.get(column, column), table)
        for name, of_part in part.moments.items():
            moments[name] = moments.get(name, Moments()).merge(of_part)
    return Statistics(dict(counts.merged()), moments, dict(sums.merged()), last)


def _fit_vocabularies(
    recipe: Preprocess,
    counts: dict[str, pa.Table],
    types: dict[str, ValueType],
    base: Fitted | None,
) -> dict[str, Vocabulary]:
    """Vocabulary of the item and of each categorical feature."""
    features = {f.name: f for f in recipe.categorical_features}
    vocabularies = {}
    for name, table in counts.items():
        feature = features.get(name)
        min_count = recipe.min_item_count if feature is None else feature.min_count
        kind = types[name if feature is None else feature.columns[0]]
        values = vocabulary_of(table, min_count)
        values = values.cast(pa.int64() if kind == "int64" else pa.string())
        if base is not None:
            values = _extended(base.vocabularies[name].values, values)
        hash_buckets = feature.hash_buckets if isinstance(feature, HashedFeature) else 0
        vocabularies[name] = Vocabulary(type=kind, values=values, hash_buckets=hash_buckets)
    return vocabularies


def _extended(vocabulary: pa.Array, values: pa.Array) -> pa.Array:
    """`vocabulary`, followed by the `values` that it lacks."""
    if pa.types.is_integer(values.type):  # the placeholder of text is not a value
        values = values.filter(pc.not_equal(values, UNKNOWN_INTEGER))
    new = values.filter(pc.invert(pc.is_in(values, vocabulary)))
    return pa.concat_arrays([vocabulary, new])


def with_items(fitted: Fitted, items: pa.Array) -> Fitted:
    """Fitted state with `items` outside the training data appended to the catalogue."""
    values = items.cast(fitted.item.values.type)
    values = _extended(fitted.item.values, values.take(pc.sort_indices(values)))
    item = replace(fitted.item, values=values)
    return replace(fitted, vocabularies={**fitted.vocabularies, ITEM: item})


def rebuild(fitted: Fitted, keep: int | None, *, training: bool = False) -> Workflow:
    """Fitted workflow from interactions to sessions.

    `keep` is the number of newest interactions that a session keeps, None for all. `training` is
    true for the training sessions, to which target encodings were fitted.
    """
    vocabularies = fitted.of_columns
    encode = Encode(
        {name: vocabulary.values for name, vocabulary in vocabularies.items()},
        {name: vocabulary.hash_buckets for name, vocabulary in vocabularies.items()},
        padded=[name for feature in fitted.categorical for name in feature.columns[1:]],
    )
    session_features = tuple(
        feature.name for feature in fitted.recipe.scalar_features if feature.of == "session"
    )
    graph = _interaction_graph(fitted.recipe, encode, *_scaling(fitted, training=training))
    graph = graph + (ColumnSelector([SESSION]) >> AddTags([Tags.SESSION, Tags.SESSION_ID]))
    graph = graph + (ColumnSelector([TIMESTAMP]) >> AddTags([Tags.TIME]))
    return Workflow(graph >> GroupSessions(SESSION, TIMESTAMP, session_features, keep))


def rebuild_numbers(fitted: Fitted, *, training: bool) -> Workflow | None:
    """Workflow of the continuous features alone, with one row per interaction; None without any."""
    graph = None
    for node in _scaled_nodes(fitted.recipe, *_scaling(fitted, training=training)):
        graph = node if graph is None else graph + node
    return None if graph is None else Workflow(graph)


def _scaling(fitted: Fitted, *, training: bool) -> tuple[Standardize, TargetEncode]:
    targets = TargetEncode(fitted.target_encodings, training=training, until=fitted.learned_until)
    return Standardize(fitted.standardizations), targets


def transform(workflow: Workflow, interactions: pd.DataFrame) -> pd.DataFrame:
    """Output of the workflow for a data frame of interactions."""
    output_schema(workflow, interactions)
    return workflow.transform(interactions)


def output_schema(workflow: Workflow, interactions: pd.DataFrame) -> Schema:
    """Merlin's schema of the output of `transform`."""
    if not workflow.output_schema:
        # Merlin's Dataset calls dask, which on a cluster would be a task within a task
        types = interactions.iloc[:1].dtypes
        columns = [
            ColumnSchema(name, dtype=types[name], dims=DefaultShapes.SCALAR) for name in types.index
        ]
        workflow.fit_schema(Schema(columns))
    return workflow.output_schema


def write_schema(schema: Schema, recipe: Preprocess, directory: Path) -> None:
    """Write `schema.pbtxt` with Merlin's own writer, without paths of this machine."""
    value_of = {c: {VALUE_OF: f.name} for f in recipe.features for c in f.columns if c != f.name}
    columns = [
        ColumnSchema(
            column.name,
            tags=column.tags,
            dtype=column.dtype,
            properties={k: v for k, v in column.properties.items() if k in _SCHEMA_PROPERTIES}
            | value_of.get(column.name, {}),
            is_list=column.is_list,
            is_ragged=column.is_ragged,
        )
        for column in schema
    ]
    metadata = TensorflowMetadata.from_merlin_schema(Schema(columns))
    for feature in metadata.proto_schema.feature:
        feature.annotation.tag.sort()  # a set, whose order differs between processes
    metadata.to_proto_text_file(str(directory), SCHEMA_FILE)


def _interaction_graph(
    recipe: Preprocess,
    encode: Encode,
    standardize: Standardize,
    targets: TargetEncode | None = None,
) -> Any:
    """Graph with one row per interaction: indices, standardized numbers, time features.

    One node per group of tags, not per column: NVTabular's executor runs a node again for each node
    that reads it.
    """
    graph = ColumnSelector([ITEM]) >> encode >> AddTags([Tags.ITEM_ID, Tags.ITEM])
    for names, tags in _tag_groups(recipe, "categorical"):
        graph = graph + (ColumnSelector(names) >> encode >> AddTags(tags))
    for node in _scaled_nodes(recipe, standardize, targets):
        graph = graph + node
    return graph


def _scaled_nodes(
    recipe: Preprocess, standardize: Standardize, targets: TargetEncode | None
) -> Iterator[Any]:
    """Nodes of the continuous features of interactions: standardized numbers, time features."""
    for names, tags in _tag_groups(recipe, "continuous"):
        numbers = _numbers(recipe, names)
        means = [f.name for f in recipe.target_encoded_features if f.name in names]
        if means:
            encoded = ColumnSelector([SESSION, TIMESTAMP, *means]) >> targets
            numbers = encoded if numbers is None else numbers + encoded
        yield numbers >> standardize >> FillMissing(0) >> AddTags(tags)
    for feature in recipe.timestamp.features if recipe.timestamp else ():
        if feature != ELAPSED:
            yield ColumnSelector([TIMESTAMP]) >> Cyclic(feature)


def _tag_groups(recipe: Preprocess, kind: str) -> list[tuple[list[str], list[Tags]]]:
    """Columns of a kind, grouped by tags."""
    groups: list[tuple[list[str], list[Tags]]] = []
    for of, tags in (("item", [Tags.ITEM]), ("session", [Tags.SESSION]), ("interaction", [])):
        names = [f.name for f in recipe.scalar_features if f.kind == kind and f.of == of]
        if of == "interaction" and kind == "continuous" and recipe.timestamp:
            names += [ELAPSED] if ELAPSED in recipe.timestamp.features else []
        if names:
            groups.append((names, tags))
    return groups


def _numbers(recipe: Preprocess, names: list[str] | None = None) -> Any:
    """Graph of the continuous columns, log-transformed where the recipe says so.

    `names` defaults to all columns without target encodings. None if there is no such column.
    """
    columns = [name for group, _ in _tag_groups(recipe, "continuous") for name in group]
    encodings = {feature.name for feature in recipe.target_encoded_features}
    columns = [c for c in columns if c not in encodings and (names is None or c in names)]
    logs = {feature.name for feature in recipe.log_features}
    plain = [name for name in columns if name not in logs and name != ELAPSED]
    logged = [name for name in columns if name in logs]
    nodes = []
    if plain:
        nodes.append(ColumnSelector(plain) >> AddTags([Tags.CONTINUOUS]))
    if logged:
        nodes.append(ColumnSelector(logged) >> LogOp())
    if ELAPSED in columns:
        elapsed = ColumnSelector([SESSION, TIMESTAMP]) >> Elapsed(SESSION, TIMESTAMP)
        nodes.append(elapsed >> LogOp())
    graph = None
    for node in nodes:
        graph = node if graph is None else graph + node
    return graph

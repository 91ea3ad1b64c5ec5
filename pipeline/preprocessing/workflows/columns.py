"""Columns of a data directory, and their fitted state, from the output of a user's workflow."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from nvtabular import ops

from pipeline.core.columns import ITEM
from pipeline.core.errors import ConfigError
from pipeline.data.fitted import Vocabulary
from pipeline.data.schema import Schema, Tags
from pipeline.preprocessing.parquet_columns import (
    ParquetColumn,
    choose_columns,
    vocabulary_in,
    vocabulary_of_codes,
)
from pipeline.preprocessing.workflows.graph import Lineage, UserWorkflow


@dataclass(frozen=True)
class OutputColumns:
    """Columns of the workflow's output that the data directory keeps."""

    columns: list[ParquetColumn]
    """The item first."""
    lineages: dict[str, Lineage]
    """How each column is made, by its name in the data directory."""
    session: str | None
    """Column of the session's id."""
    notes: list[str]


def output_columns(user: UserWorkflow, session: str) -> OutputColumns:
    """Choose the columns by their tags. ConfigError without an item, or if it has no indices.

    `session` is the session's column in the log.
    """
    schema = Schema.from_merlin(user.output_schema)
    item, features, notes = choose_columns(schema)
    chosen = {column.source for column in (item, *features)}
    columns, lineages = [], {}
    for column in (item, *features):
        lineage = user.lineage(column.source)
        is_index = column.is_index and categorify_of(lineage) is not None
        column = replace(column, raw=lineage.column, is_code=column.is_index and not is_index)
        columns.append(column)
        lineages[column.name] = lineage
    if columns[0].is_code:
        raise ConfigError(
            f"{user.file}: the items of {item.source!r} have no indices. Let Categorify, without "
            "num_buckets, make them."
        )
    untagged = [c.name for c in schema if c.is_list and not _has_kind(c) and c.name not in chosen]
    if untagged:
        notes.append(
            f"Left out {', '.join(untagged)}: neither tagged categorical nor continuous. "
            "AddMetadata(tags=[Tags.CONTINUOUS]) tags a column."
        )
    return OutputColumns(columns, lineages, _session_column(user, session), notes)


def _has_kind(column: Any) -> bool:
    return bool({Tags.CATEGORICAL, Tags.CONTINUOUS} & column.tags)


def _session_column(user: UserWorkflow, session: str) -> str | None:
    """Column of the output with the raw session ids of the log."""
    for column in Schema.from_merlin(user.output_schema):
        lineage = user.lineage(column.name)
        is_key = all(step.name in _groups(step) for step in lineage.path if _is_groupby(step))
        if not column.is_list and lineage.column == session and not lineage.steps and is_key:
            return column.name
    return None


def _is_groupby(step: Any) -> bool:
    return isinstance(step.operator, ops.Groupby)


def _groups(step: Any) -> list[str]:
    names: list[str] = step.operator.groupby_cols
    return names


def categorify_of(lineage: Lineage) -> Any:
    """Step of the Categorify whose indices a column holds.

    None if another operator made the values, and for indices that are not rows of one vocabulary:
    of several columns together, with hash buckets, or of one table for all columns.
    """
    steps = list(lineage.steps)
    while steps and isinstance(steps[-1].operator, ops.FillMissing | ops.FillMedian):
        steps.pop()  # indices are never missing
    if not steps or not isinstance(steps[-1].operator, ops.Categorify):
        return None
    operator = steps[-1].operator
    buckets = operator.num_buckets
    if isinstance(buckets, dict):
        buckets = buckets.get(steps[-1].source)
    one_vocabulary = operator.encode_type == "joint" and not operator.single_table
    return steps[-1] if one_vocabulary and (buckets or 1) == 1 else None


def vocabularies_of(output: OutputColumns, training: Sequence[Path]) -> dict[str, Vocabulary]:
    """Vocabulary of the item and of each categorical feature of a fitted workflow.

    `training` are the files of training sessions, for categories that no operator counts.
    """
    vocabularies = {}
    for column in (c for c in output.columns if c.is_index):
        lineage = output.lineages[column.name]
        if (step := categorify_of(lineage)) is not None:
            vocabularies[column.name] = _of_categorify(step)
        elif (size := _num_codes(lineage)) is not None:
            codes = pa.array(np.arange(size))
            vocabularies[column.name] = Vocabulary(type="int64", values=codes)
        else:
            vocabularies[column.name] = vocabulary_of_codes(column, training)
    if not len(vocabularies[ITEM].values):
        raise ConfigError("The workflow has no item: Categorify has learned none.")
    return vocabularies


def _of_categorify(step: Any) -> Vocabulary:
    name = step.operator.storage_name.get(step.source, step.source)
    return vocabulary_in(Path(step.operator.categories[name]), name)


def _num_codes(lineage: Lineage) -> int | None:
    """Number N of codes 0..N-1 of Bucketize or HashBucket; None for other operators."""
    if not lineage.steps:
        return None
    step = lineage.steps[-1]
    if isinstance(step.operator, ops.Bucketize):
        return len(step.operator.boundaries(step.source)) + 1
    if isinstance(step.operator, ops.HashBucket):
        buckets = step.operator.num_buckets
        return int(buckets[step.source] if isinstance(buckets, dict) else buckets)
    return None

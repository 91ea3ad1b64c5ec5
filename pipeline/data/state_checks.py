"""Checks of the values of fitted state and sessions.

A manifest detects damaged files, not a program that wrote wrong values: a failed check is one clear
line instead of a library error or wrong numbers.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.core.columns import ITEM
from pipeline.core.errors import ArtifactError
from pipeline.data.sessions import session_files

Fitted = Any
"""`pipeline.data.fitted.Fitted`, which imports this module."""
_BATCH = 65_536
"""Sessions per check."""


def check_state(fitted: Fitted, where: Path) -> None:
    """ArtifactError for state that preprocessing does not write."""
    for problem in _problems(fitted):
        raise ArtifactError(f"{where} does not hold together: {problem}.")


def _problems(fitted: Fitted) -> Iterator[str]:
    if ITEM not in fitted.vocabularies:
        yield "it has no items"
    kinds = {fitted.session_type, fitted.timestamp_type or "int64"}
    kinds |= {vocabulary.type for vocabulary in fitted.vocabularies.values()}
    if unknown := kinds - {"int64", "float64", "string"}:
        yield f"{next(iter(unknown))!r} is no type of values"
    for name, vocabulary in fitted.vocabularies.items():
        yield from _problems_of_ids(name, vocabulary.values)
    for name, statistics in fitted.standardizations.items():
        yield from _problems_of_numbers(name, statistics.mean, statistics.deviation)
    for name, encoding in fitted.target_encodings.items():
        yield from _problems_of_ids(name, encoding.values)
        if encoding.counts.min(initial=0) < 0 or not np.isfinite(encoding.sums).all():
            yield f"{name} has counts below 0 or sums that are not finite"
    if not isinstance(fitted.learned_until, int | None):
        yield f"learned_until is {fitted.learned_until!r}"
    if fitted.items is not None:
        yield from _problems_of_ids("the table of items", fitted.items[ITEM])


def _problems_of_numbers(name: str, mean: object, deviation: object) -> Iterator[str]:
    for number in (mean, deviation):
        if isinstance(number, bool) or not isinstance(number, int | float):
            yield f"{name} has {number!r} where a number belongs"
        elif not math.isfinite(number):
            yield f"{name} has a mean or deviation of {number}"
    if isinstance(deviation, int | float) and deviation < 0:
        yield f"{name} has a deviation of {deviation}"


def _problems_of_ids(name: str, values: Any) -> Iterator[str]:
    if values.null_count:
        yield f"{name} has {values.null_count} values that are null"
    elif pc.count_distinct(values).as_py() < len(values):
        yield f"{name} has a value twice"


def check_sessions(data: Path, part: str, fitted: Fitted) -> None:
    """ArtifactError for sessions whose features differ in length or have an index out of range.

    One pass over the categorical columns and the lengths of lists.
    """
    vocabularies = fitted.of_columns
    for file in session_files(data, part):
        for batch in pq.ParquetFile(file).iter_batches(_BATCH):
            for problem in _problems_of_sessions(batch, vocabularies):
                raise ArtifactError(f"{file} does not fit its state: {problem}. Preprocess again.")


def _problems_of_sessions(batch: pa.RecordBatch, vocabularies: dict[str, Any]) -> Iterator[str]:
    lengths = None
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        values = column
        if pa.types.is_list(column.type):
            values = column.flatten()
            length = pc.list_value_length(column)
            if lengths is not None and not length.equals(lengths):
                yield f"the lists of {name} are not as long as those of {ITEM}"
            if name == ITEM or lengths is None:
                lengths = length
        if name not in vocabularies:
            continue
        if column.null_count or values.null_count:
            yield f"{name} has values that are null"
        elif not pa.types.is_integer(values.type):
            yield f"{name} is of type {values.type}"
        elif len(values):
            least, most = (each.as_py() for each in pc.min_max(values).values())
            rows = vocabularies[name].num_rows
            if least < 0 or most >= rows:
                yield f"{name} has the index {most if most >= rows else least} of {rows}"

"""Table form of a fitted workflow's columns: formulas and tables that need no NVTabular.

A server computes them with NumPy (`pipeline/serve/runtime/operator_steps.py`). The table of a
lookup comes from calling the operator on each of its keys, an unknown key and a missing key.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from nvtabular import ops

from pipeline.core.columns import ITEM
from pipeline.core.merlin import has_cudf
from pipeline.data import values
from pipeline.data.fitted import OperatorSteps, Vocabulary
from pipeline.preprocessing.parquet_columns import ParquetColumn
from pipeline.preprocessing.workflows.block_check import operator_name
from pipeline.preprocessing.workflows.columns import categorify_of
from pipeline.preprocessing.workflows.graph import Lineage, Step, keys_of, selector_of
from pipeline.preprocessing.workflows.log import LogColumn

_ARITHMETIC = (
    *(ops.FillMissing, ops.FillMedian, ops.Clip, ops.LogOp),
    *(ops.Normalize, ops.NormalizeMinMax, ops.Bucketize),
)
_UNKNOWN_TEXT = "\x00"
"""Never a value of a log, as reading removes NUL."""


class NoTableFormError(Exception):
    """An operator has no table form; the message is its name."""


@dataclass
class _Column:
    """Intermediate column with its steps so far."""

    dtype: str
    """int64, float32, float64 or string."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    tables: dict[int, pa.Table] = field(default_factory=dict)

    def add(self, op: str, dtype: str | None = None, **constants: Any) -> None:
        self.steps.append({"op": op, **constants})
        self.dtype = dtype or self.dtype


def table_form(
    column: ParquetColumn, lineage: Lineage, of_log: LogColumn, vocabulary: Vocabulary | None
) -> OperatorSteps:
    """Steps from a value of the log to the input of the vocabulary or the model.

    Without a table form the result names the operator as `obstacle`.
    """
    request_type = _request_type(lineage, of_log)
    try:
        _check_path(lineage)
        if of_log.kind == "time":
            raise NoTableFormError(f"the column {of_log.name!r}, which holds times")
        made = _Column(request_type)
        steps = lineage.steps
        if column.is_index and not column.is_code:  # the vocabulary is Categorify's
            steps = steps[: steps.index(categorify_of(lineage))]
        if steps and column.name == ITEM:
            raise NoTableFormError(f"{operator_name(steps[0].operator)} of the item")
        if steps and request_type == "int64" and of_log.dtype == "float64":
            made.add("number", "float64")
        for step in steps:
            _add(made, step)
        _finish(made, column, vocabulary)
    except NoTableFormError as error:
        return OperatorSteps(type=request_type, obstacle=str(error))
    return OperatorSteps(type=request_type, steps=tuple(made.steps), tables=made.tables)


def _request_type(lineage: Lineage, of_log: LogColumn) -> Any:
    """Type of the tensor in a request: integers if they are keys or hashed, else numbers."""
    is_number = bool(lineage.steps) and isinstance(lineage.steps[0].operator, _ARITHMETIC)
    is_number &= all(isinstance(step.operator, _ARITHMETIC) for step in lineage.steps)
    return "float64" if of_log.request_type == "int64" and is_number else of_log.request_type


def _check_path(lineage: Lineage) -> None:
    """NoTableFormError for an operator that selects other interactions than a server."""
    is_interaction = True
    for step in lineage.path:
        operator = step.operator
        if isinstance(operator, ops.Groupby):
            is_interaction = False
            if not operator.ascending:
                raise NoTableFormError("Groupby(ascending=False)")
        if is_interaction and isinstance(operator, ops.Filter | ops.Dropna):
            raise NoTableFormError(f"{operator_name(operator)} before Groupby")
        if isinstance(operator, ops.ListSlice):
            keeps_newest = operator.start < 0 and operator.end == np.iinfo(np.int64).max
            if not keeps_newest:
                raise NoTableFormError("ListSlice, unless it keeps the newest, as ListSlice(-20)")


def _add(made: _Column, step: Step) -> None:
    for kind, formula in _FORMULAS.items():
        if isinstance(step.operator, kind):
            formula(made, step)
            return
    raise NoTableFormError(operator_name(step.operator))


def _finish(made: _Column, column: ParquetColumn, vocabulary: Vocabulary | None) -> None:
    """Convert to the type of the vocabulary, or check that the result is a number."""
    if vocabulary is None:
        if made.dtype == "string":
            raise NoTableFormError(f"{column.source}, which is text")
        if made.dtype == "int64":
            made.add("number", "float64")
    elif vocabulary.type == "int64" and made.dtype.startswith("float"):
        made.add("integer", "int64")
    elif vocabulary.type != made.dtype:
        raise NoTableFormError(f"Categorify of {column.raw}, whose values are numbers")


def _fill(made: _Column, step: Step) -> None:
    operator = step.operator
    if operator.add_binary_cols and step.name != step.source:
        raise NoTableFormError(f"{operator_name(operator)}(add_binary_cols=True)")
    value = operator.fill_val if isinstance(operator, ops.FillMissing) else None
    made.add("fill", value=_plain(operator.medians[step.source] if value is None else value))


def _clip(made: _Column, step: Step) -> None:
    made.add("clip", min=_plain(step.operator.min_value), max=_plain(step.operator.max_value))


def _log(made: _Column, _: Step) -> None:
    made.add("log", "float32")


def _standardize(made: _Column, step: Step) -> None:
    operator = step.operator
    dtype = np.dtype(operator.output_dtype).name
    mean, deviation = operator.means[step.source], operator.stds[step.source]
    made.add("standardize", dtype, mean=_plain(mean), deviation=_plain(deviation))
    made.steps[-1]["dtype"] = dtype


def _scale(made: _Column, step: Step) -> None:
    operator = step.operator
    dtype = np.dtype(operator.output_dtype).name
    made.add(
        "scale",
        dtype,
        min=_plain(operator.mins[step.source]),
        max=_plain(operator.maxs[step.source]),
    )
    made.steps[-1]["dtype"] = dtype


def _bucketize(made: _Column, step: Step) -> None:
    boundaries = [_plain(bound) for bound in step.operator.boundaries(step.source)]
    made.add("bucketize", "int64", boundaries=boundaries)


def _hash(made: _Column, step: Step) -> None:
    if has_cudf():
        raise NoTableFormError("HashBucket on a GPU, whose hashes are others than a CPU's,")
    buckets = step.operator.num_buckets
    buckets = buckets[step.source] if isinstance(buckets, dict) else buckets
    made.add("hash", "int64", buckets=int(buckets))


def _plain(value: Any) -> Any:
    """Convert a constant to JSON types."""
    return value.item() if isinstance(value, np.generic) else value


def _lookup(made: _Column, step: Step) -> None:
    """Add the table of an operator that looks a value up by one key."""
    operator = step.operator
    _check_lookup(step)
    keys = _keys(step)
    dtype = made.dtype
    if dtype.startswith("float"):
        integers = values.as_integers(keys)
        if integers is None:
            raise NoTableFormError(f"{operator_name(operator)}, whose keys are numbers")
        made.add("integer", "int64")
        keys = integers
    keys = keys.cast(pa.int64()) if made.dtype == "int64" else values.as_text(keys)
    unknown = _unknown(keys)
    asked = pd.Series([*keys.to_pylist(), unknown, None if dtype != "int64" else unknown])
    asked = asked.astype({"string": object}.get(dtype, dtype))
    frame = pd.DataFrame({step.source: asked})
    result = operator.transform(selector_of(step.source), frame)[step.name]
    result = pa.array(result.tolist() if result.dtype == object else result, from_pandas=True)
    made.dtype = _dtype_of(result)
    rows = [len(keys) + 1, len(keys), *range(len(keys))]  # missing key, unknown key, then the keys
    padded = pa.concat_arrays([pa.nulls(2, keys.type), keys])
    made.tables[len(made.steps)] = pa.table({"key": padded, "value": result.take(rows)})
    kind = "int64" if pa.types.is_integer(keys.type) else "string"
    made.steps.append({"op": "lookup", "keys": kind, "values": made.dtype})


def _dtype_of(result: pa.Array) -> str:
    if pa.types.is_floating(result.type):
        return str(result.type.to_pandas_dtype().__name__)
    return "int64" if pa.types.is_integer(result.type) else "string"


def _unknown(keys: pa.Array) -> Any:
    """A key outside `keys`."""
    if not pa.types.is_integer(keys.type):
        return _UNKNOWN_TEXT
    used = set(keys.to_pylist())
    return next(number for number in range(len(used) + 1) if number not in used)


def _check_lookup(step: Step) -> None:
    operator, name = step.operator, operator_name(step.operator)
    if len(keys_of(step.node, step.name)) != 1:
        raise NoTableFormError(f"{name} on several columns")
    if isinstance(operator, ops.JoinExternal) and operator.how != "left":
        raise NoTableFormError(f'{name}(how="{operator.how}")')
    if isinstance(operator, ops.Categorify):
        buckets = operator.num_buckets
        buckets = buckets.get(step.source) if isinstance(buckets, dict) else buckets
        if (buckets or 1) != 1:
            raise NoTableFormError(f"{name}(num_buckets={buckets})")


def _keys(step: Step) -> pa.Array:
    """Distinct keys of the operator."""
    operator = step.operator
    if isinstance(operator, ops.JoinExternal):
        on = operator.on_ext if isinstance(operator.on_ext, str) else operator.on_ext[0]
        keys = operator._ext[on]
        keys = keys.to_pandas() if hasattr(keys, "to_pandas") else keys
        array = pa.array(keys, from_pandas=True).drop_null()
        if len(array.unique()) < len(array):
            raise NoTableFormError("JoinExternal with several rows for a key")
        return array
    tables = operator.stats if isinstance(operator, ops.TargetEncoding) else operator.categories
    name = getattr(operator, "storage_name", {}).get(step.source, step.source)
    column = pq.read_table(Path(tables[name]))[name]
    return values.to_array(column).drop_null().unique()


_FORMULAS: dict[Any, Callable[[_Column, Step], None]] = {
    (ops.FillMissing, ops.FillMedian): _fill,
    ops.Clip: _clip,
    ops.LogOp: _log,
    ops.Normalize: _standardize,
    ops.NormalizeMinMax: _scale,
    ops.Bucketize: _bucketize,
    ops.HashBucket: _hash,
    (ops.Categorify, ops.TargetEncoding, ops.JoinGroupby, ops.JoinExternal): _lookup,
}

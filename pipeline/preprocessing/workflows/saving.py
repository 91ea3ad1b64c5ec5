"""A fitted workflow as JSON and tables, which a server with NVTabular rebuilds."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from merlin.dag.ops import ConcatColumns, GroupingOp, SelectionOp, SubsetColumns, SubtractionOp
from nvtabular import ops
from pydantic import ValidationError

from pipeline.core.columns import ITEM
from pipeline.core.merlin import has_cudf
from pipeline.data.fitted import SavedWorkflow
from pipeline.preprocessing.workflows.block_check import operator_name
from pipeline.preprocessing.workflows.columns import OutputColumns
from pipeline.preprocessing.workflows.graph import UserWorkflow
from pipeline.preprocessing.workflows.log import LogColumn, LogFrames
from pipeline.recipe.features import ColumnNumber
from pipeline.recipe.preprocess import Preprocess
from pipeline.serve.runtime.workflows.graph import AGGREGATES, OPERATORS

_CHOICES = (
    *(SelectionOp, ConcatColumns, SubsetColumns, SubtractionOp, GroupingOp),
    ops.DropLowCardinality,
)
"""Operators that select columns."""
_SAME = (ops.AddMetadata, ops.ValueCount, ops.DataStats)
"""Operators that return their input."""


class _NotSavedError(Exception):
    """An operator has no JSON form; the message is its name."""


def save_workflow(
    user: UserWorkflow, recipe: Preprocess, frames: LogFrames, output: OutputColumns, sample: Any
) -> SavedWorkflow:
    """Save a fitted workflow. `sample` is a frame of the log, with example values of each column.

    If an operator cannot be saved, the result names it as `obstacle`.
    """
    tables: dict[str, pa.Table] = {}
    try:
        nodes = [_node(user, number, tables) for number in range(len(user.nodes))]
    except _NotSavedError as error:
        return SavedWorkflow(obstacle=str(error))
    graph = {
        "nodes": nodes,
        "columns": [
            _column(column, recipe, output, sample[column.name]) for column in frames.columns
        ],
        "session": recipe.session,
        "sort": [user.source_of(user.groupby, name) for name in user.groupby.op.sort_cols],
        "outputs": [
            {
                "name": column.name,
                "source": column.source,
                "is_list": column.is_list,
                "kind": "code" if column.is_code else ("index" if column.is_index else "number"),
            }
            for column in output.columns
        ],
    }
    return SavedWorkflow(graph=graph, tables=tables)


def _node(user: UserWorkflow, number: int, tables: dict[str, pa.Table]) -> dict[str, Any]:
    node = user.nodes[number]
    position = {id(other): place for place, other in enumerate(user.nodes)}
    dependencies = [n for n in node.parents_with_dependencies if n not in node.parents]
    outputs = list(node.output_schema.column_names)
    saved: dict[str, Any] = {
        "parents": [position[id(parent)] for parent in node.parents],
        "dependencies": [position[id(dependency)] for dependency in dependencies],
        "inputs": list(node.input_schema.column_names),
        "outputs": outputs,
        "selection": _selection(node.input_columns),
    }
    operator = node.op
    if isinstance(operator, _CHOICES):
        return {**saved, "operator": "SubsetColumns", "arguments": {}, "selection": outputs}
    if isinstance(operator, ops.Filter | ops.Dropna):
        if not _is_behind(node, user.groupby):
            raise _NotSavedError(f"{operator_name(operator)} before Groupby")
        return {
            **saved,
            "operator": "AddMetadata",
            "arguments": {},
        }  # servers keep all sessions
    if isinstance(operator, _SAME):
        return {**saved, "operator": "AddMetadata", "arguments": {}}
    name = operator_name(operator)
    described = OPERATORS.get(name)
    if described is None or type(operator) is not described.kind:
        raise _NotSavedError(name)
    if isinstance(operator, ops.Groupby):
        _check_aggregates(operator)
    hashes = isinstance(operator, ops.HashBucket | ops.HashedCross)
    if has_cudf() and (hashes or getattr(operator, "num_buckets", None)):
        raise _NotSavedError(f"{name} on a GPU, whose hashes are others than a CPU's,")
    saved |= {
        "operator": name,
        "arguments": {key: _plain(_argument(node, key)) for key in described.arguments},
        "state": {key: _plain(getattr(operator, key)) for key in described.state},
        "tables": {
            key: _save_tables(f"{number}.{key}", getattr(operator, key), tables)
            for key in described.tables
        },
    }
    if isinstance(operator, ops.Rename):
        saved["names"] = {old[0]: new for new, old in node.column_mapping.items()}
    if isinstance(operator, ops.JoinExternal):
        saved["table"] = f"{number}.parquet"
        frame = operator._ext
        frame = frame.to_pandas() if hasattr(frame, "to_pandas") else frame
        tables[saved["table"]] = pa.Table.from_pandas(frame, preserve_index=False)
    return saved


def _check_aggregates(operator: Any) -> None:
    """_NotSavedError for a function, or for an aggregate that a server does not compute."""
    for aggregate in (each for names in operator.conv_aggs.values() for each in names):
        if aggregate is not list and aggregate not in AGGREGATES:
            name = getattr(aggregate, "__name__", aggregate)
            raise _NotSavedError(f"Groupby with the aggregate {name}")


def _argument(node: Any, key: str) -> Any:
    operator = node.op
    if isinstance(operator, ops.Bucketize):
        return {name: list(operator.boundaries(name)) for name in node.input_columns.names}
    value = getattr(operator, key)
    if key in ("dtype", "out_dtype") and value is not None:
        return np.dtype(value).name
    return value


def _save_tables(prefix: str, paths: dict[str, str], tables: dict[str, pa.Table]) -> dict[str, str]:
    names = {}
    for number, (key, path) in enumerate(paths.items()):
        if key.startswith("__fold__"):
            continue
        names[key] = f"{prefix}.{number}.parquet"
        tables[names[key]] = pq.read_table(Path(path))
    return names


def _selection(selector: Any) -> list[Any]:
    groups = [list(group.names) for group in selector.subgroups]
    grouped = {name for group in groups for name in group}
    return [*(name for name in selector.names if name not in grouped), *groups]


def _is_behind(node: Any, groupby: Any) -> bool:
    return any(
        parent is groupby or _is_behind(parent, groupby)
        for parent in node.parents_with_dependencies
    )


def _plain(value: Any) -> Any:
    """Convert a value to JSON types."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(each) for each in value]
    if value is list:
        return "list"
    return value.item() if isinstance(value, np.generic) else value


def _column(
    column: LogColumn, recipe: Preprocess, output: OutputColumns, values: Any
) -> dict[str, Any]:
    """JSON of a column of the log: its tensor in a request, and an example value."""
    scopes = {feature.is_list for feature in output.columns if feature.raw == column.name}
    present = values.dropna()
    value = present.iloc[0] if len(present) else None
    is_item = column.name == recipe.item
    return {
        "name": column.name,
        "tensor": ITEM if is_item else _tensor(column.name),
        "dtype": column.dtype,
        "type": column.request_type,
        "scope": "session" if scopes == {False} else "interaction",
        "value": str(value) if column.kind == "time" else _plain(value),
    }


def _tensor(column: str) -> str:
    """Name of a tensor: that of the column unless Triton or requests reserve it."""
    name = re.sub(r"\W+", "_", column).strip("_")
    try:
        return ColumnNumber(name=name, kind="continuous").name
    except ValidationError:
        return f"log_{re.sub('_+', '_', name)}"

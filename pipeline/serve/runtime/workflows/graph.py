"""A fitted NVTabular graph from JSON and Parquet, without code from the files.

An operator is one of `OPERATORS`, built from plain arguments and its saved state. A file can name
neither another class nor another attribute.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from merlin.dag import ColumnSelector, Node
from merlin.dag.ops import SubsetColumns
from merlin.schema import ColumnSchema, Schema
from nvtabular import ops

from .executor import CachingExecutor

GRAPH_FILE = "workflow.json"
AGGREGATES = frozenset(
    (
        *("list", "first", "last", "count", "nunique", "size", "sum", "prod", "mean", "median"),
        *("min", "max", "std", "var", "sem", "skew", "any", "all"),
    )
)
"""Aggregates that Groupby may compute; pandas calls the method of this name."""
_ARROW_SCHEMA = b"ARROW:schema"
"""Key of Parquet metadata with types that pyarrow before 14.0.1 unpickles when it reads them."""


@dataclass(frozen=True)
class SavedOperator:
    """Saved parts of an operator."""

    kind: Any
    """NVTabular's class."""
    arguments: tuple[str, ...] = ()
    """Arguments of its constructor, which are attributes of the same names."""
    state: tuple[str, ...] = ()
    """Attributes that the fit has set."""
    tables: tuple[str, ...] = ()
    """Attributes with paths of Parquet files by name."""


OPERATORS = {
    "AddMetadata": SavedOperator(ops.AddMetadata),
    "Bucketize": SavedOperator(ops.Bucketize, ("boundaries",)),
    "Categorify": SavedOperator(
        ops.Categorify,
        (
            *("freq_threshold", "encode_type", "name_sep", "num_buckets"),
            *("max_size", "single_table", "dtype"),
        ),
        ("storage_name",),
        ("categories",),
    ),
    "Clip": SavedOperator(ops.Clip, ("min_value", "max_value")),
    "DifferenceLag": SavedOperator(ops.DifferenceLag, ("partition_cols",), ("shifts",)),
    "FillMedian": SavedOperator(ops.FillMedian, ("add_binary_cols",), ("medians",)),
    "FillMissing": SavedOperator(ops.FillMissing, ("fill_val", "add_binary_cols")),
    "Groupby": SavedOperator(
        ops.Groupby,
        ("groupby_cols", "sort_cols", "name_sep", "ascending"),
        ("list_aggs", "conv_aggs"),
    ),
    "HashBucket": SavedOperator(ops.HashBucket, ("num_buckets",)),
    "HashedCross": SavedOperator(ops.HashedCross, ("num_buckets",)),
    "JoinExternal": SavedOperator(
        ops.JoinExternal, ("on", "how", "on_ext", "columns_ext", "drop_duplicates_ext")
    ),
    "JoinGroupby": SavedOperator(
        ops.JoinGroupby, ("stats", "name_sep"), ("storage_name",), ("categories",)
    ),
    "ListSlice": SavedOperator(ops.ListSlice, ("start", "end", "pad", "pad_value")),
    "LogOp": SavedOperator(ops.LogOp),
    "Normalize": SavedOperator(ops.Normalize, ("out_dtype",), ("means", "stds")),
    "NormalizeMinMax": SavedOperator(ops.NormalizeMinMax, ("out_dtype",), ("mins", "maxs")),
    "Rename": SavedOperator(ops.Rename),
    "SubsetColumns": SavedOperator(SubsetColumns),
    "TargetEncoding": SavedOperator(
        ops.TargetEncoding,
        ("target_mean", "kfold", "p_smooth", "out_col", "out_dtype", "name_sep"),
        ("means",),
        ("stats",),
    ),
}
"""Operators that can be built from JSON, by name."""


class SavedGraph:
    """A fitted graph of NVTabular's operators."""

    def __init__(self, folder: Path) -> None:
        """Read `workflow.json` and the Parquet files beside it. ValueError if they are damaged."""
        self.spec: dict[str, Any] = json.loads((folder / GRAPH_FILE).read_text("utf-8"))
        nodes: list[Any] = []
        for saved in self.spec["nodes"]:
            nodes.append(_node(folder, saved, nodes))
        self._output = nodes[-1]

    def execute(self, frame: Any) -> Any:
        """Return the output of the graph for a frame with the columns of the log."""
        return CachingExecutor().transform(frame, [self._output])


def _node(folder: Path, saved: dict[str, Any], nodes: list[Any]) -> Any:
    """Return Merlin's node with the schemas and the selection that it had after the fit."""
    node = Node()
    for parent in saved["parents"]:
        node.add_parent(nodes[parent])
    for dependency in saved["dependencies"]:
        node.add_dependency(nodes[dependency])
    node.op = _operator(folder, saved, node)
    node.input_schema = _schema(saved["inputs"])
    node.output_schema = _schema(saved["outputs"])
    node.selector = ColumnSelector(saved["selection"])
    return node


def _schema(names: list[str]) -> Any:
    return Schema([ColumnSchema(name) for name in names])


def _operator(folder: Path, saved: dict[str, Any], node: Any) -> Any:
    described = OPERATORS.get(saved["operator"])
    if described is None:
        raise ValueError(f"{folder} names the operator {saved['operator']!r}, which is unknown.")
    arguments = {name: saved["arguments"][name] for name in described.arguments}
    if described.kind is ops.Rename:
        arguments["f"] = saved["names"].get
    elif described.kind is ops.TargetEncoding:
        arguments["target"] = node.dependencies[0]
    elif described.kind is ops.JoinExternal:
        arguments["df_ext"] = pd.read_parquet(_table(folder, saved["table"]))
    operator = described.kind(**arguments)
    for name in described.state:
        setattr(operator, name, saved["state"][name])
    if described.kind is ops.Groupby:  # lists are made by Python's own type
        _check_aggregates(folder, [*operator.list_aggs.values(), *operator.conv_aggs.values()])
        operator.conv_aggs = {
            column: [list if each == "list" else each for each in aggregates]
            for column, aggregates in operator.conv_aggs.items()
        }
    for name in described.tables:
        files = saved["tables"][name].items()
        setattr(operator, name, {key: str(_table(folder, file)) for key, file in files})
    return operator


def _check_aggregates(folder: Path, of_columns: list[list[str]]) -> None:
    """ValueError for an aggregate outside `AGGREGATES`."""
    for name in (name for names in of_columns for name in names):
        if name not in AGGREGATES:
            raise ValueError(f"{folder} names the aggregate {name!r}, which is unknown.")


def _table(folder: Path, file: str) -> Path:
    """Return the path of a table. ValueError for a path outside the folder or an Arrow schema."""
    path = folder / file
    if Path(file).name != file:
        raise ValueError(f"{folder} names the table {file!r}, which is no name of a file.")
    if _ARROW_SCHEMA in path.read_bytes():
        raise ValueError(f"{path} has an Arrow schema, which may hold a pickle; it is not read.")
    return path

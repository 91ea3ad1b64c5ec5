"""The graph of a user's workflow: its input columns, and the lineage of each output column."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merlin.dag import ColumnSelector, Node
from merlin.dag.node import postorder_iter_nodes
from merlin.dag.ops import ConcatColumns, GroupingOp, SelectionOp, SubsetColumns, SubtractionOp
from merlin.schema import ColumnSchema, Schema
from nvtabular import Workflow, ops

from pipeline.core.errors import ConfigError
from pipeline.preprocessing.user_file import check_python_file, describe_error, run_file

FUNCTION = "workflow"
"""Name of the function in the user's file."""
UNCHANGED = (
    *(SelectionOp, ConcatColumns, SubsetColumns, SubtractionOp, GroupingOp),
    *(ops.AddMetadata, ops.Rename, ops.ValueCount, ops.DataStats, ops.DropLowCardinality),
    *(ops.Groupby, ops.ListSlice, ops.Filter, ops.Dropna),
)
"""Operators that keep the values of a column, or select some of them."""


@dataclass(frozen=True)
class Step:
    """One operator in the lineage of a column."""

    node: Any
    source: str
    """Column that the operator reads."""
    name: str
    """Column that it makes."""

    @property
    def operator(self) -> Any:
        """NVTabular's operator."""
        return self.node.op


@dataclass(frozen=True)
class Lineage:
    """Operators that make a column of the output."""

    column: str
    """Column of the log."""
    steps: tuple[Step, ...]
    """Steps in execution order, without operators that keep the values."""
    path: tuple[Step, ...]
    """All steps in execution order."""


class UserWorkflow:
    """NVTabular workflow that the function of a user's file returns."""

    def __init__(self, file: Path, statistics: Path) -> None:
        """Run the file and its function. `statistics` is a folder for fitted statistics.

        ConfigError if the function is missing, fails, or does not return a graph that ends in
        sessions.
        """
        check_python_file("--workflow", file)
        self.file = file
        self.workflow = Workflow(_output_node(file))
        self.nodes: list[Any] = list(postorder_iter_nodes(self.workflow.output_node))
        for number, node in enumerate(self.nodes):
            if hasattr(node.op, "out_path"):  # by default the working directory
                node.op.out_path = str(statistics / str(number))
        self.columns = self._input_columns()
        """Columns of the log that the workflow reads."""
        self._fit_names()
        self.groupby = self._groupby()
        """Node that makes sessions."""

    @property
    def output_schema(self) -> Any:
        """Merlin's schema of the output."""
        return self.workflow.output_schema

    def lineage(self, column: str) -> Lineage:
        """Lineage of a column of the output."""
        return _lineage(self.workflow.output_node, column)

    def source_of(self, node: Any, column: str) -> str:
        """Column of the log from which an input column of a node is made."""
        parent = _parent(node, column)
        return column if parent is None else _lineage(parent, column).column

    def _input_columns(self) -> list[str]:
        names: dict[str, None] = {}
        for node in self.nodes:
            if isinstance(node.op, SelectionOp) and not node.parents_with_dependencies:
                selector = node.selector
                if selector.tags or selector.all:
                    raise ConfigError(
                        f"{self.file}: a log has no tags, so that columns are selected by name."
                    )
                names |= dict.fromkeys(selector.names)
        return list(names)

    def _fit_names(self) -> None:
        """Compute the schemas of all nodes from the names of the columns alone."""
        try:
            self.workflow.fit_schema(Schema([ColumnSchema(name) for name in self.columns]))
        except Exception as error:  # operators of the user may raise anything
            raise ConfigError(f"{self.file} failed{describe_error(self.file, error)}") from error

    def _groupby(self) -> Any:
        nodes = [node for node in self.nodes if isinstance(node.op, ops.Groupby)]
        if len(nodes) != 1:
            raise ConfigError(
                f"{self.file}: the graph has {len(nodes)} Groupby, expected one, which makes the "
                "sessions."
            )
        return nodes[0]


def _output_node(file: Path) -> Any:
    """Last node of the graph that the function of the file returns."""
    definitions = run_file(file)
    function = definitions.get(FUNCTION)
    if not callable(function):
        raise ConfigError(f"{file} has no function {FUNCTION}() that returns an NVTabular graph.")
    try:
        end = function()
    except (Exception, SystemExit) as error:  # user code may raise anything
        raise ConfigError(f"{file}: {FUNCTION}() failed{describe_error(file, error)}") from error
    end = end.output_node if isinstance(end, Workflow) else end
    if not isinstance(end, Node):
        raise ConfigError(
            f"{file}: {FUNCTION}() returns {type(end).__name__}, expected the end of an NVTabular "
            'graph such as ["price"] >> LogOp().'
        )
    return end


def _lineage(node: Any, column: str) -> Lineage:
    path: list[Step] = []
    current: Any = node
    while current is not None:
        source = _input_of(current, column)
        path.append(Step(current, source, column))
        current, column = _parent(current, source), source
    path.reverse()
    steps = tuple(step for step in path if not isinstance(step.operator, UNCHANGED))
    return Lineage(column, steps, tuple(path))


def _parent(node: Any, column: str) -> Any:
    """Node from which an input column of a node comes, None for the log.

    If several parents have the column, the executor takes the last one.
    """
    parents = [p for p in node.parents_with_dependencies if column in p.output_schema.column_names]
    return parents[-1] if parents else None


def keys_of(node: Any, column: str) -> list[str]:
    """Key columns of the lookup of `column`; several for a group of columns."""
    operator = node.op
    inputs: list[str] = node.column_mapping.get(column, [column])
    if isinstance(operator, ops.TargetEncoding):
        return inputs[1:]
    if isinstance(operator, ops.JoinGroupby) and not column.endswith(f"{operator.name_sep}count"):
        return inputs[1:]
    if isinstance(operator, ops.JoinExternal) and column not in _left_columns(node):
        return [operator.on] if isinstance(operator.on, str) else list(operator.on)
    return inputs


def _left_columns(node: Any) -> list[str]:
    return [name for p in node.parents_with_dependencies for name in p.output_schema.column_names]


def _input_of(node: Any, column: str) -> str:
    """Input of a column, the first one of several."""
    keys = keys_of(node, column)
    return keys[0] if keys else column


def selector_of(column: str) -> ColumnSelector:
    """Selector of one column, to call an operator outside the graph."""
    return ColumnSelector([column])

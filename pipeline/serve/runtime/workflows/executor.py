"""Execution of an NVTabular graph on one frame, in preprocessing and beside a model in Triton.

Only images with NVTabular import this module.
"""

from __future__ import annotations

import functools
import os
from typing import Any

# dask reads both at its first import; Merlin does not support its query planner
os.environ.setdefault("DASK_DATAFRAME__QUERY_PLANNING", "False")
os.environ.setdefault("DASK_DATAFRAME__CONVERT_STRING", "False")

import merlin.core.dispatch
import numpy as np
from merlin.dag.executors import LocalExecutor
from merlin.dag.node import postorder_iter_nodes
from nvtabular import Workflow, ops
from nvtabular.ops import join_groupby


class AlignedExecutor(LocalExecutor):
    """Keeps columns aligned after an operator that drops rows, such as Filter.

    merlin-core 23.8 takes the columns that Groupby and DifferenceLag name from the log, with all
    its rows, and concatenates them with the remaining rows; it ignores an output without rows.
    """

    def _run_upstream_transforms(
        self, node: Any, transformable: Any, capture_dtypes: bool = False, strict: bool = False
    ) -> list[Any]:
        sources = node.parents_with_dependencies
        outputs = [
            self._execute_node(source, transformable, capture_dtypes=capture_dtypes, strict=strict)
            for source in sources
        ]
        parents = outputs[: len(node.parents)]
        columns = {column for output in parents for column in output.columns}
        return [
            output
            for output in outputs
            if not parents or len(output) == len(parents[0]) or not columns >= {*output.columns}
        ]

    def _merge_upstream_columns(self, upstream_outputs: Any, *_: Any) -> Any:
        """Concatenate columns, the last one of a name. ValueError for different numbers of rows."""
        if len({len(frame) for frame in upstream_outputs}) > 1:
            counts = " and ".join(
                f"{', '.join(frame.columns)} ({len(frame)} rows)" for frame in upstream_outputs
            )
            raise ValueError(
                f"an operator dropped rows of some columns that are concatenated: {counts}. "
                "Let Filter come last before Groupby, on all columns"
            )
        frames = [frame.reset_index(drop=True) for frame in upstream_outputs]
        return type(frames[0])({name: frame[name] for frame in frames for name in frame.columns})


class CachingExecutor(AlignedExecutor):
    """Runs each node once per frame, where Merlin runs it again for each node that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[int, Any] = {}
        """Output of each node by its `id`."""

    def _execute_node(self, node: Any, *arguments: Any, **options: Any) -> Any:
        if id(node) not in self.outputs:
            self.outputs[id(node)] = super()._execute_node(node, *arguments, **options)
        # operators may change their input in place
        return self.outputs[id(node)].copy()


def fit(workflow: Workflow, dataset: Any) -> None:
    """Fit a workflow on a dataset whose partitions have whole sessions."""
    executor = AlignedExecutor()
    executor.target_format = workflow.executor._executor.target_format
    workflow.executor._executor = executor
    workflow.fit_schema(dataset.schema).fit(dataset)


def execute(workflow: Workflow, frame: Any) -> Any:
    """Return the output of a fitted workflow for one frame."""
    return CachingExecutor().transform(frame, workflow.output_node, workflow.output_dtypes)


def read_all_folds(workflow: Workflow) -> None:
    """Make TargetEncoding read the means over all folds, for sessions outside the fit.

    NVTabular draws a fold for each row of each frame, so that a mean would depend on the frame.
    """
    for node in postorder_iter_nodes(workflow.output_node):
        if isinstance(node.op, ops.TargetEncoding):
            node.op.kfold = 1


def hash_values_alone() -> None:
    """Make HashBucket and Categorify hash only the value on pandas.

    merlin-core 23.8 also hashes the index of the row, so that a value has another bucket in each
    row.
    """
    hash_object = merlin.core.dispatch.hash_object_dispatch
    if not isinstance(hash_object, functools.partial):
        merlin.core.dispatch.hash_object_dispatch = functools.partial(hash_object, index=False)


def lag_columns_alone() -> None:
    """Make DifferenceLag take the differences of its own columns only.

    nvtabular 23.8 also subtracts the partition columns after another operator, and fails if they
    are text.
    """

    def compute_selector(_self: Any, _schema: Any, _selector: Any, parents: Any, _deps: Any) -> Any:
        return parents

    ops.DifferenceLag.compute_selector = compute_selector


def count_as_number() -> None:
    """Make JoinGroupby return a missing count for an unknown key.

    nvtabular 23.8 casts the count to int32 and fails at the first unknown key.
    """
    join_groupby.AGG_DTYPES["count"] = np.float32


count_as_number()
hash_values_alone()
lag_columns_alone()

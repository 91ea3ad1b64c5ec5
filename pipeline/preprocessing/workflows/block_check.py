"""Search for operators whose values depend on the block of the log.

A log is transformed in blocks of whole sessions, and a request is a block of its own. An operator
such as `c - c.min()` restarts in each block, so its values differ between blocks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nvtabular import ops

from pipeline.core.errors import ConfigError
from pipeline.preprocessing.workflows.graph import UserWorkflow
from pipeline.serve.runtime.workflows.executor import CachingExecutor

_SINGLE_SESSIONS = 16
"""Number of blocks of one session, which differ most from the whole log."""
_LARGER_BLOCKS = 16
_TOLERANCE = 1e-5
"""Relative tolerance for rounding of float32."""


def check_blocks(user: UserWorkflow, frame: Any, lengths: Sequence[int]) -> None:
    """ConfigError for the first operator whose values depend on the block, with its column.

    `frame` are whole sessions of these `lengths`. The fitted graph runs on all of them in one block
    and in blocks of some sessions each, and the outputs of each node are compared.
    """
    whole = _outputs(user, frame)
    ends = np.cumsum(lengths)
    blocks = _run_blocks(user, frame, _cuts(ends))
    for node in user.nodes:
        if isinstance(node.op, ops.Groupby) or id(node) not in whole:
            continue  # a block has whole sessions
        parts = [block[id(node)] for block in blocks]
        for column in node.output_schema.column_names:
            values = [_column(part, column) for part in parts]
            if not _equal(_column(whole[id(node)], column), pd.concat(values, ignore_index=True)):
                raise ConfigError(_message(user.file, node, column))


def _message(file: Path, node: Any, column: str) -> str:
    return (
        f"{file}: {operator_name(node.op)} makes other values of {column!r} in another block of "
        "the log, and a server sees one session at a time. Use an operator that learns from the "
        "whole log, such as Normalize, NormalizeMinMax or JoinGroupby, or one that takes each row "
        "by itself."
    )


def operator_name(operator: Any) -> str:
    """Name of an operator in user code: LambdaOp for UDF."""
    name = type(operator).__name__
    return "LambdaOp" if isinstance(operator, ops.LambdaOp) else name


def _cuts(ends: Any) -> list[int]:
    """Rows at which blocks end: some single sessions, then larger blocks."""
    single = ends[:_SINGLE_SESSIONS]
    larger = [part[-1] for part in np.array_split(ends[len(single) :], _LARGER_BLOCKS) if len(part)]
    return [int(end) for end in (*single, *larger)]


def _outputs(user: UserWorkflow, frame: Any) -> dict[int, Any]:
    """Output of each node by its `id`."""
    executor = CachingExecutor()
    executor.transform(frame, user.workflow.output_node, user.workflow.output_dtypes)
    return executor.outputs


def _run_blocks(user: UserWorkflow, frame: Any, cuts: Sequence[int]) -> list[dict[int, Any]]:
    """Outputs for each block.

    A block is merged with the next one where Categorify fails, as it does without any value.
    """
    outputs = []
    start = 0
    for end in cuts:
        block = frame.iloc[start:end].reset_index(drop=True)
        try:
            outputs.append(_outputs(user, block))
        except IndexError:
            if end < cuts[-1]:
                continue
            raise
        start = end
    return outputs


def _column(frame: Any, column: str) -> Any:
    values = frame[column]
    return values.to_pandas() if hasattr(values, "to_pandas") else values


def _equal(whole: Any, parts: Any) -> bool:
    if len(whole) != len(parts):
        return False
    if len(whole) and isinstance(whole.iloc[0], list | np.ndarray):
        return whole.map(len).tolist() == parts.map(len).tolist() and _equal(
            whole.explode(ignore_index=True), parts.explode(ignore_index=True)
        )
    missing, part_missing = whole.isna().to_numpy(), parts.isna().to_numpy()
    if (missing != part_missing).any():
        return False
    left, right = whole.to_numpy()[~missing], parts.to_numpy()[~missing]
    try:
        return np.allclose(left.astype(float), right.astype(float), rtol=_TOLERANCE, atol=1e-9)
    except (TypeError, ValueError):  # text
        return bool((left == right).all())

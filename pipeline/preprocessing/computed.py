"""Features that NVTabular operators of the user's own make, a block of the log at a time.

The operators stand in a Python file that the command line names. A recipe only says what they are
called, and what is written holds no more than that: nothing that reads an artifact runs them.
"""

import runpy
import traceback
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from pipeline.core.errors import ConfigError
from pipeline.data import values
from pipeline.logs.columns import joined, readable
from pipeline.logs.files import input_name
from pipeline.logs.row_counts import Report
from pipeline.recipe.preprocess import Feature, Preprocess


class Computed:
    """What `--operators` adds to the blocks of a log."""

    def __init__(self, recipe: Preprocess, file: Path | None, report: Report) -> None:
        """Run the file, if the recipe has features of operators.

        ConfigError where it does not go with the recipe, or fails. `report` counts the inputs that
        are no usable numbers.
        """
        self._features = [f for f in recipe.features if f.operator is not None]
        self._report = report
        self._file = file
        self._operators: dict[str, list[Any]] = {}
        if file is None and self._features:
            feature = self._features[0]
            raise ConfigError(
                f"Feature {feature.name!r} is made by the operator {feature.operator!r}. Give the "
                "file that has it: --operators FILE.py."
            )
        if file is not None and not self._features:
            raise ConfigError(
                f"No feature of the recipe names an `operator` of {file}. Leave out --operators."
            )
        if file is not None:
            known = _run(file)
            self._operators = {f.name: _steps(file, known, f) for f in self._features}

    def add_to(self, block: pa.Table) -> pa.Table:
        """A block of the log as it was read, with the features and without what they are made of.

        ConfigError where an operator fails or gives what is no column of the block.
        """
        for feature in self._features:
            block = block.append_column(feature.name, self._column(feature, block))
        made_of = {input_name(f, source) for f in self._features for source in f.inputs}
        return block.drop_columns(sorted(made_of)) if made_of else block

    def _column(self, feature: Feature, block: pa.Table) -> pa.Array:
        # here, as below: a log without such features is read while NVTabular is imported
        from merlin.dag import ColumnSelector
        from nvtabular import Workflow

        from pipeline.preprocessing.workflow import transform

        frame = pd.DataFrame(
            {
                source: self._read(feature, source, kind, block)
                for source, kind in feature.inputs.items()
            }
        )
        node = ColumnSelector(list(feature.inputs))
        for step in self._operators[feature.name]:
            node = node >> step
        where = f"{self._file}: the operator {feature.operator!r}"
        try:
            found = transform(Workflow(node), frame)
        except (Exception, SystemExit) as error:  # a user's own code may raise anything
            raise ConfigError(f"{where} failed{_told(self._file, error)}") from error
        if len(found.columns) != 1 or len(found) != len(frame):
            raise ConfigError(
                f"{where} makes {len(found.columns)} columns of {len(found)} rows, expected one "
                f"of {len(frame)}."
            )
        column = found[found.columns[0]]
        column = column.to_pandas() if hasattr(column, "to_pandas") else column
        try:
            made = pa.chunked_array([pa.array(column, from_pandas=True)])
            if feature.values_per_interaction > 1:
                made = joined(made, feature.separator, feature.name, where, self._report)
            return values.plain(readable(made, feature.name, where, self._report))
        except pa.ArrowException as error:
            raise ConfigError(f"{where} makes no column of one type: {error}") from None

    def _read(self, feature: Feature, source: str, kind: str, block: pa.Table) -> Any:
        column = values.plain(block[input_name(feature, source)])
        if kind == "number":
            found, bad = values.numbers([column], positive=False)
            what = f"values of {source}, for {feature.name}, that are no usable number"
            self._report.repaired[what] += bad
            return found
        text, _ = values.category_chunk(column, "string")
        return values.plain_text(text).to_pandas()


def _run(file: Path) -> dict[str, Any]:
    """Names that a Python file defines. ConfigError if it is none or fails."""
    if not file.is_file():
        raise ConfigError(f"--operators {file} does not exist. Expected a Python file.")
    if file.suffix != ".py":
        raise ConfigError(f"--operators {file} is no Python file: its name does not end in .py.")
    try:
        # from its text, never from bytecode of an earlier one
        return runpy.run_path(str(file), run_name="pipeline_operators")
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{file} failed{_told(file, error)}") from error


def _told(file: Path | None, error: BaseException) -> str:
    """What went wrong and in which line of the file, if it was there."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    cause = error.__cause__
    if not lines and cause is not None:
        return _told(file, cause)
    place = f" in line {lines[-1]}" if lines else ""
    return f"{place}: {type(error).__name__}: {' '.join(str(error).split())}"


def _steps(file: Path, known: dict[str, Any], feature: Feature) -> list[Any]:
    from nvtabular.ops import Operator
    from nvtabular.ops.stat_operator import StatOperator

    assert feature.operator is not None  # noqa: S101
    found = known.get(feature.operator)
    steps = list(found) if isinstance(found, list | tuple) else [found]
    if not steps or not all(isinstance(step, Operator) for step in steps):
        there = sorted(name for name, value in known.items() if isinstance(value, Operator))
        raise ConfigError(
            f"{file} has no NVTabular operator {feature.operator!r}, nor a list of some. It has: "
            f"{', '.join(there) or 'none'}."
        )
    for step in steps:
        if isinstance(step, StatOperator):
            raise ConfigError(
                f"{file}: {feature.operator!r} has {type(step).__name__}, which learns from all of "
                "a log, and operators see a block of it at a time. Use one that only transforms."
            )
    return steps

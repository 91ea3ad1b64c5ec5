"""Operator features: columns made by the user's NVTabular operators, block by block.

The operators are defined in a Python file that the command line names. Recipes and artifacts hold
only their names, so that reading an artifact never runs them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from pipeline.core.errors import ConfigError
from pipeline.core.merlin import has_cudf
from pipeline.data import values
from pipeline.logs.columns import decode_text, input_name, join_lists
from pipeline.logs.row_counts import RowCounts
from pipeline.preprocessing.user_file import check_python_file, describe_error, run_file
from pipeline.recipe.features import CategoryFeature, OperatorFeature
from pipeline.recipe.preprocess import Preprocess


class OperatorFeatures:
    """Features computed by the operators in `file`; the file is executed.

    ConfigError if the file fails, lacks an operator, is missing, or is not needed.
    Unusable numbers among the inputs are counted in `report`.
    """

    def __init__(self, recipe: Preprocess, file: Path | None, report: RowCounts) -> None:
        self._features = recipe.operator_features
        self._report = report
        self._file = file
        self._decimal = recipe.decimal
        _check_file(self._features, file)
        self._operators: dict[str, list[Any]] = {}
        if file is not None:
            definitions = run_file(file)
            self._operators = {f.name: _operators(file, definitions, f) for f in self._features}

    def add_to(self, block: pa.Table) -> pa.Table:
        """Append the features to a block of the log and remove their inputs.

        ConfigError if an operator fails or does not return one column of the block's length.
        """
        for feature in self._features:
            block = block.append_column(feature.name, self._column(feature, block))
        inputs = {input_name(f, source) for f in self._features for source in f.inputs}
        return block.drop_columns(sorted(inputs)) if inputs else block

    def _column(self, feature: OperatorFeature, block: pa.Table) -> pa.Array:
        # imported here: NVTabular is imported in the background while a log without such features
        # is read
        from merlin.dag import ColumnSelector
        from nvtabular import Workflow

        from pipeline.preprocessing.workflow import transform

        frame = pd.DataFrame(
            {
                source: self._input(feature, source, kind, block)
                for source, kind in feature.inputs.items()
            }
        )
        node = ColumnSelector(list(feature.inputs))
        for operator in self._operators[feature.name]:
            node = node >> operator
        where = f"{self._file}: the operator {feature.operator!r}"
        try:
            result = transform(Workflow(node), _engine_frame(frame))
        except (Exception, SystemExit) as error:  # user code may raise anything
            raise ConfigError(f"{where} failed{describe_error(self._file, error)}") from error
        if len(result.columns) != 1 or len(result) != len(frame):
            raise ConfigError(
                f"{where} makes {len(result.columns)} columns of {len(result)} rows, expected one "
                f"of {len(frame)}."
            )
        series = result[result.columns[0]]
        series = series.to_pandas() if hasattr(series, "to_pandas") else series
        try:
            column = pa.chunked_array([pa.array(series, from_pandas=True)])
            if isinstance(feature, CategoryFeature) and feature.values_per_interaction > 1:
                column = join_lists(column, feature.separator, feature.name, where, self._report)
            return values.to_array(decode_text(column, feature.name, where, self._report))
        except pa.ArrowException as error:
            raise ConfigError(f"{where} makes no column of one type: {error}") from None

    def _input(self, feature: OperatorFeature, source: str, kind: str, block: pa.Table) -> Any:
        column = values.to_array(block[input_name(feature, source)])
        if kind == "number":
            numbers, bad = values.numbers([column], positive=False, decimal=self._decimal)
            reason = f"values of {source}, for {feature.name}, that are no usable number"
            self._report.repaired[reason] += int(bad.sum())
            return numbers
        text, _ = values.category_chunk(column, "string")
        return values.decode_dictionary(text).to_pandas()


def _engine_frame(frame: pd.DataFrame) -> Any:
    """The frame, as a cuDF frame if NVTabular runs on a GPU."""
    if not has_cudf():
        return frame
    import cudf

    return cudf.DataFrame.from_pandas(frame)


def _check_file(features: Sequence[OperatorFeature], file: Path | None) -> None:
    """ConfigError for operator features without a Python file, or a file without such features."""
    if file is None and features:
        raise ConfigError(
            f"Feature {features[0].name!r} is made by the operator {features[0].operator!r}. Give "
            "the file that has it: --operators FILE.py."
        )
    if file is None:
        return
    if not features:
        raise ConfigError(
            f"No feature of the recipe names an `operator` of {file}. Leave out --operators."
        )
    check_python_file("--operators", file)


def _operators(file: Path, definitions: dict[str, Any], feature: OperatorFeature) -> list[Any]:
    """The operator of a feature, or the list of operators that run in turn."""
    from nvtabular.ops import Operator
    from nvtabular.ops.stat_operator import StatOperator

    definition = definitions.get(feature.operator)
    operators = list(definition) if isinstance(definition, list | tuple) else [definition]
    if not operators or not all(isinstance(operator, Operator) for operator in operators):
        names = sorted(name for name, value in definitions.items() if isinstance(value, Operator))
        raise ConfigError(
            f"{file} has no NVTabular operator {feature.operator!r}, nor a list of some. It has: "
            f"{', '.join(names) or 'none'}."
        )
    for operator in operators:
        if isinstance(operator, StatOperator):
            raise ConfigError(
                f"{file}: {feature.operator!r} has {type(operator).__name__}, which learns from "
                "all of a log, and operators see a block of it at a time. Use one that only "
                "transforms."
            )
    return operators

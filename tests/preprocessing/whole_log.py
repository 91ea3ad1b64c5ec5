"""Read a small log into one frame, as preprocessing reads a large one block by block."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from pipeline.data import values
from pipeline.data.fitted import TimestampType, ValueType
from pipeline.logs.row_counts import RowCounts
from pipeline.preprocessing.blocks import (
    check_not_empty,
    common_types,
    raw_blocks,
    to_frame,
    typed_block,
)
from pipeline.preprocessing.operator_features import OperatorFeatures
from pipeline.preprocessing.side_tables import SideTables
from pipeline.recipe.preprocess import Preprocess


@dataclass(frozen=True)
class Interactions:
    """A log in canonical columns, in the order of its rows."""

    table: pa.Table
    types: dict[str, ValueType]
    timestamp_type: TimestampType | None
    report: RowCounts

    @property
    def frame(self) -> pd.DataFrame:
        """The table as a frame."""
        return to_frame(self.table)


def read_interactions(
    recipe: Preprocess, files: list[Path], fitted_types: dict[str, ValueType] | None = None
) -> Interactions:
    """Interactions of `files`; id columns get `fitted_types`."""
    report = RowCounts()
    blocks = []
    tables, features = SideTables(recipe, report), OperatorFeatures(recipe, None, report)
    for before, table in raw_blocks(recipe, files, report):
        block = features.add_to(tables.join(table))
        blocks.append(typed_block(recipe, block, before, fitted_types))
        report.add(blocks[-1].report)
    check_not_empty(files, sum(block.table.num_rows for block in blocks), report)
    types, timestamp_type = common_types(recipe, [(b.types, b.timestamp_type) for b in blocks])
    typed = []
    for block in blocks:
        columns = {name: block.table[name].combine_chunks() for name in block.table.column_names}
        for name, kind in types.items():
            columns[name] = values.decode_dictionary(values.as_type(columns[name], kind))
        typed.append(pa.table(columns))
    return Interactions(pa.concat_tables(typed), types, timestamp_type, report)

"""What a session is, where the log leaves it open: cut where nothing happened, without repeats.

The operators stand before NVTabular's others. Interactions of one user or session must be in one
partition.
"""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from merlin.dag import ColumnSelector
from merlin.schema import ColumnSchema, Schema
from nvtabular.ops import Operator

from pipeline.preprocessing.operators.sessions import session_order
from pipeline.preprocessing.sorting.cutting import cuts, numbered, ordinals, repeats


class CutSessions(Operator):
    """A new session after more than `gap` microseconds without an interaction.

    The id of a session becomes text: the one it had, a hyphen, and its number from 0 on.
    """

    def __init__(self, session: str, timestamp: str, gap: int) -> None:
        super().__init__()
        self.session = session
        self.timestamp = timestamp
        self.gap = gap

    def transform(self, col_selector: ColumnSelector, df: Any) -> Any:
        """The same rows in their order, with new ids of the session."""
        whole = df[[self.session, self.timestamp]]
        frame = whole if isinstance(df, pd.DataFrame) else whole.to_pandas()
        order, starts = session_order(frame[self.session], frame[self.timestamp])
        numbers = np.empty(len(frame), np.int64)
        cut = cuts(frame[self.timestamp].to_numpy()[order], starts, self.gap)
        numbers[order] = ordinals(cut, starts)
        ids = numbered(pa.array(frame[self.session], from_pandas=True), numbers).to_pandas()
        result = df[col_selector.names].copy(deep=False)
        result[self.session] = ids.to_numpy()
        return result

    def compute_column_schema(self, col_name: str, input_schema: Schema) -> ColumnSchema:
        """The same column; that of the session is text."""
        column = super().compute_column_schema(col_name, input_schema)
        if col_name != self.session:
            return column
        return ColumnSchema(
            col_name, tags=column.tags, properties=column.properties, dtype="string"
        )


class DropRepeats(Operator):
    """Without interactions whose item is that of the one before, in time, in the same session."""

    def __init__(self, session: str, timestamp: str, item: str) -> None:
        super().__init__()
        self.session = session
        self.timestamp = timestamp
        self.item = item

    def transform(self, col_selector: ColumnSelector, df: Any) -> Any:
        """The rows that stay, in their order."""
        whole = df[[self.session, self.timestamp, self.item]]
        frame = whole if isinstance(df, pd.DataFrame) else whole.to_pandas()
        order, starts = session_order(frame[self.session], frame[self.timestamp])
        item = pa.array(frame[self.item], from_pandas=True).take(pa.array(order))
        kept = np.empty(len(frame), bool)
        kept[order] = ~repeats(item, starts)
        return df[col_selector.names][kept]

"""A vocabulary that grows by window: a value gets its row when it first occurs."""

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.core.columns import FIRST_ITEM
from pipeline.data.fitted import Vocabulary
from pipeline.data.index_mapping import unknown_rows


@dataclass(frozen=True, eq=False)
class GrowingVocabulary:
    """Values of a categorical feature so far, in the order of their windows.

    A value keeps its row when others are added; new values of a window are in the order of the
    data.
    """

    columns: tuple[str, ...]
    """Columns of the feature; several if it is multi-valued."""
    unknown: NDArray[Any]
    """(V,) index of each index of the data before its value occurs."""
    rows: NDArray[Any]
    """(R,) index in the data of each row; the first rows are reserved indices and hash buckets."""

    @classmethod
    def of(
        cls, vocabulary: Vocabulary, columns: tuple[str, ...], rows: NDArray[Any] | None
    ) -> Self:
        """Vocabulary of the values at `rows`; empty for None."""
        begin = np.arange(vocabulary.first) if rows is None else rows
        return cls(columns, unknown_rows(vocabulary), begin)

    @property
    def num_data_rows(self) -> int:
        """V, the number of indices in the data."""
        return len(self.unknown)

    def extended(self, indices: NDArray[Any]) -> Self:
        """Vocabulary with the new values among `indices` of the data appended."""
        new = np.setdiff1d(indices, self.rows)  # sorted
        return replace(self, rows=np.concatenate([self.rows, new[new >= FIRST_ITEM]]))

    def positions(self) -> NDArray[Any]:
        """(V,) row of each index of the data, -1 for none."""
        positions = np.full(self.num_data_rows, -1)
        positions[self.rows] = np.arange(len(self.rows))
        return positions


def map_sessions(sessions: pa.Table, vocabularies: dict[str, GrowingVocabulary]) -> pa.Table:
    """Replace indices of the data by rows; values without a row by their hash bucket or as
    unknown."""
    for vocabulary in vocabularies.values():
        positions = vocabulary.positions()
        # reserved indices and hash buckets always have a row
        positions = np.where(positions < 0, positions[vocabulary.unknown], positions)
        for name in vocabulary.columns:
            column = sessions[name].combine_chunks()
            if pa.types.is_list(column.type):
                values = pa.array(positions[column.values.to_numpy()], type=column.type.value_type)
                mapped = pa.ListArray.from_arrays(column.offsets, values)
            else:
                mapped = pa.array(positions[column.to_numpy()], type=column.type)
            sessions = sessions.set_column(sessions.column_names.index(name), name, mapped)
    return sessions

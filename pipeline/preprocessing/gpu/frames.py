"""Data frames and arrays of one device: pandas and NumPy, or cuDF and CuPy.

The two classes hold the differences; the rest of this package is written once. Facts checked
against the source of cuDF 24.12 and the documentation of CuPy 13:

- `Series.factorize`: missing is -1, distinct values in any order; `isna` is True for NaN
- `Series.argsort` sorts text by the bytes of UTF-8; `str.slice` counts characters
- `read_csv` with quoting off, and without the default words for missing values
- arrays: `argsort` is stable, an index of -1 is the last entry, sums of bool are int64

Arrays move between host and device by `asarray` and `Frames.host` alone.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.core.merlin import has_cudf
from pipeline.data.values import to_array
from pipeline.preprocessing.sorting.ordering import order_by


class Frames:
    """pandas and NumPy: the engine without a GPU, for tests."""

    module: Any = pd
    """Module of data frames."""
    arrays: Any = np
    """Module of arrays."""
    text: Any = pd.ArrowDtype(pa.string())
    """Type of text columns."""

    def read_parquet(self, file: Path, columns: list[str]) -> Any:
        """Columns of a file; integers stay integers if some are missing."""
        table = pq.read_table(file, columns=columns)
        return table.to_pandas(types_mapper=pd.ArrowDtype, ignore_metadata=True)

    def read_csv(self, block: bytes, names: list[str], columns: list[str], delimiter: str) -> Any:
        """Text columns of lines without quotes and header; empty text may be missing."""
        return self.module.read_csv(
            io.BytesIO(block),
            names=names,
            usecols=columns,
            dtype=dict.fromkeys(columns, self.text),
            sep=delimiter,
            header=None,
            quoting=csv.QUOTE_NONE,
            keep_default_na=False,
            na_values=[""],
        )

    def concatenate(self, frames: Sequence[Any]) -> Any:
        """Rows of all frames."""
        return self.module.concat(frames, ignore_index=True)

    def series(self, values: pa.Array) -> Any:
        """A series on the device."""
        return pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([values])))

    def arrow(self, series: Any) -> pa.Array:
        """Values of a series or an index on the host."""
        return to_array(pa.chunked_array([pa.array(series, from_pandas=True)]))

    def host(self, array: Any) -> NDArray[Any]:
        """An array of the device on the host."""
        return np.asarray(array)

    def order_by(self, first: Any, second: Any) -> Any:
        """(N,) positions that sort by `first`, then by `second`; ties keep their order."""
        return order_by(first, second)

    def free_bytes(self) -> int | None:
        """Free memory of the device; None for main memory, which has no bound here."""
        return None


class CudfFrames(Frames):
    """cuDF and CuPy on the current CUDA device."""

    text = "str"

    def __init__(self) -> None:
        import cudf
        import cupy

        self.module, self.arrays = cudf, cupy

    def read_parquet(self, file: Path, columns: list[str]) -> Any:
        """Columns of a file, without the index that pandas may have written."""
        return self.module.read_parquet(str(file), columns=columns, use_pandas_metadata=False)

    def series(self, values: pa.Array) -> Any:
        """A series on the device."""
        return self.module.Series.from_arrow(values)

    def arrow(self, series: Any) -> pa.Array:
        """Values of a series or an index on the host."""
        return to_array(pa.chunked_array([series.to_arrow()]))

    def host(self, array: Any) -> NDArray[Any]:
        """An array of the device on the host."""
        on_host: NDArray[Any] = self.arrays.asnumpy(array)
        return on_host

    def order_by(self, first: Any, second: Any) -> Any:
        """(N,) positions that sort by `first`, then by `second`; CuPy's sort is stable."""
        order = self.arrays.argsort(second)
        return order[self.arrays.argsort(first[order])]

    def free_bytes(self) -> int | None:
        """Free memory of the device."""
        return int(self.arrays.cuda.runtime.memGetInfo()[0])


def device_frames() -> Frames | None:
    """cuDF if it is installed and a device exists; None for the CPU engine."""
    return CudfFrames() if has_cudf() else None

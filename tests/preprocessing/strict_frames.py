"""A stand-in for cuDF and CuPy: pandas and NumPy behind classes that have no more than the engine
may use, and that never turn an array of the device into one of the host by themselves.

As in cuDF, `factorize` gives codes of the smallest type and distinct values in another order than
pandas, NaN is missing, and a series with missing values has no array.
"""

import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.preprocessing.gpu.frames import Frames

FUNCTIONS = {
    *("arange", "argsort", "bincount", "cumsum", "diff", "empty", "flatnonzero", "isinf", "isnan"),
    *("ones", "searchsorted", "sort", "unique", "where"),
}
"""Functions of CuPy that the engine uses, beside `asarray`."""
METHODS = ("all", "any", "argmax", "astype", "copy", "reshape", "sum")
OPERATORS = ("add", "sub", "mul", "floordiv", "eq", "ne", "lt", "le", "gt", "ge", "and", "or")


def unwrap(value: Any) -> Any:
    """Values for NumPy. TypeError for an array of the host, as CuPy raises."""
    if isinstance(value, np.ndarray):
        raise TypeError("an array of the host among arrays of the device")
    if isinstance(value, tuple):
        return tuple(unwrap(each) for each in value)
    return value.content if isinstance(value, DeviceArray) else value


def wrap(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(wrap(each) for each in value)
    return DeviceArray(np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else value


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        return wrap(function(*unwrap(arguments), **options))

    return call


class DeviceArray:
    """Array of the device; only `Frames.host`, `int` and `bool` take it to the host."""

    __array__ = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, content: np.ndarray) -> None:
        self.content = content

    def __getattr__(self, name: str) -> Any:
        if name in METHODS:
            return wrapped(getattr(self.content, name))
        raise AttributeError(name)

    def __len__(self) -> int:
        return len(self.content)

    def __int__(self) -> int:
        return int(self.content)

    def __bool__(self) -> bool:
        return bool(self.content)

    def __getitem__(self, index: Any) -> Any:
        return wrap(self.content[unwrap(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        self.content[unwrap(index)] = unwrap(value)

    def __iand__(self, other: Any) -> "DeviceArray":
        return self._in_place(operator.iand, other)

    def __ior__(self, other: Any) -> "DeviceArray":
        return self._in_place(operator.ior, other)

    def _in_place(self, function: Callable[..., Any], other: Any) -> "DeviceArray":
        """As CuPy, whose threads would read what others have written where memory overlaps."""
        if np.shares_memory(self.content, unwrap(other)):
            raise ValueError("an array is written to while it is read")
        function(self.content, unwrap(other))
        return self

    __invert__ = wrapped(operator.invert)
    __abs__ = wrapped(operator.abs)


for _name in OPERATORS:
    _function = getattr(operator, f"__{_name}__")
    setattr(DeviceArray, f"__{_name}__", wrapped(_function))
    setattr(
        DeviceArray,
        f"__r{_name}__",
        wrapped(lambda one, other, function=_function: function(other, one)),
    )


class DeviceArrays:
    """Module of arrays of the device."""

    def __getattr__(self, name: str) -> Any:
        if name in FUNCTIONS:
            return wrapped(getattr(np, name))
        raise AttributeError(name)

    def asarray(self, values: Any) -> DeviceArray:
        return values if isinstance(values, DeviceArray) else DeviceArray(np.array(values))


class DeviceSeries:
    """Series of the device; text is null or a string, numbers have null and NaN."""

    def __init__(self, content: Any) -> None:
        self.content = pd.Series(content)

    @property
    def dtype(self) -> Any:
        return self.content.dtype

    @property
    def values(self) -> DeviceArray:
        if self.content.isna().any():
            raise ValueError("Column must have no nulls.")
        return DeviceArray(self.content.to_numpy())

    @property
    def iloc(self) -> Any:
        return _Rows(self.content)

    @property
    def str(self) -> Any:
        return _Text(self.content)

    def isna(self) -> "DeviceSeries":
        is_missing = self.content.isna()
        if self.content.dtype.kind == "f":
            is_missing |= np.isnan(self.content.to_numpy(np.float64, na_value=np.nan))
        return DeviceSeries(is_missing.astype(bool))

    def fillna(self, value: int) -> "DeviceSeries":
        return DeviceSeries(self.content.where(~self.isna().content, value))

    def astype(self, kind: Any) -> "DeviceSeries":
        return DeviceSeries(self.content.astype(kind))

    def argsort(self) -> "DeviceSeries":
        return DeviceSeries(self.content.argsort().astype(np.int32))

    def factorize(self) -> tuple[DeviceArray, "DeviceSeries"]:
        codes, distinct = self.content.where(~self.isna().content).factorize()
        codes = np.where(codes < 0, -1, len(distinct) - 1 - codes)
        smallest = np.min_scalar_type(-max(1, len(distinct)))
        return DeviceArray(codes.astype(smallest)), DeviceSeries(distinct[::-1])


class _Rows:
    def __init__(self, content: pd.Series) -> None:
        self._content = content

    def __getitem__(self, rows: slice) -> DeviceSeries:
        return DeviceSeries(self._content.iloc[rows])


class _Text:
    def __init__(self, content: pd.Series) -> None:
        self._content = content

    def slice(self, start: int, stop: int | None) -> DeviceSeries:
        return DeviceSeries(self._content.str.slice(start, stop))


class DeviceFrame:
    """Data frame of the device."""

    def __init__(self, content: pd.DataFrame) -> None:
        self.content = content

    def __len__(self) -> int:
        return len(self.content)

    def __getitem__(self, name: Any) -> Any:
        column = self.content[name]
        return DeviceFrame(column) if isinstance(name, list) else DeviceSeries(column)


class StrictFrames(Frames):
    """Data frames and arrays of a device that has nothing but what cuDF and CuPy have."""

    arrays = DeviceArrays()

    def read_parquet(self, file: Path, columns: list[str]) -> DeviceFrame:
        return DeviceFrame(super().read_parquet(file, columns))

    def read_csv(
        self, block: bytes, names: list[str], columns: list[str], delimiter: str
    ) -> DeviceFrame:
        return DeviceFrame(super().read_csv(block, names, columns, delimiter))

    def concatenate(self, frames: Sequence[DeviceFrame]) -> DeviceFrame:
        return DeviceFrame(super().concatenate([frame.content for frame in frames]))

    def series(self, values: pa.Array) -> DeviceSeries:
        return DeviceSeries(super().series(values))

    def arrow(self, series: DeviceSeries) -> pa.Array:
        return super().arrow(series.content)

    def host(self, array: DeviceArray) -> np.ndarray:
        return array.content

    def order_by(self, first: DeviceArray, second: DeviceArray) -> DeviceArray:
        return DeviceArray(super().order_by(first.content, second.content))

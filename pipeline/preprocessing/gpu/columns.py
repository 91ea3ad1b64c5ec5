"""Conversion of a clean log to canonical types, the counterpart of `blocks.typed_block`.

Text is typed once for each distinct value, by the functions of the CPU engine.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.columns import ITEM, SESSION, TIMESTAMP
from pipeline.data import values
from pipeline.data.fitted import TimestampType, ValueType
from pipeline.data.times import (
    ISO_TIME,
    NO_TIME,
    check_unit,
    microseconds,
    sample_step,
    scale_times,
)
from pipeline.logs.columns import decode_text
from pipeline.logs.row_counts import RowCounts
from pipeline.preprocessing.blocks import NO_USABLE_TIME
from pipeline.preprocessing.gpu.frames import Frames
from pipeline.preprocessing.gpu.reading import NotOnDeviceError, RawLog
from pipeline.preprocessing.side_tables import SideTables
from pipeline.recipe.features import (
    BucketFeature,
    CategoryFeature,
    Feature,
    NumberFeature,
    TargetEncodedFeature,
)
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.timestamp import Timestamp


@dataclass(frozen=True)
class Coded:
    """A dictionary-encoded column."""

    codes: Any
    """(N,) int32 positions in `values`, -1 for null."""
    values: pa.Array
    """On the host."""


@dataclass
class TypedLog:
    """Typed interactions in the order of the log."""

    rows: dict[str, Any] = field(default_factory=dict)
    """(N,) by column: codes of ids and categories, numbers (NaN if missing), microseconds."""
    dictionaries: dict[str, pa.Array] = field(default_factory=dict)
    """Distinct values of each column of codes, int64 or text without null."""
    types: dict[str, ValueType] = field(default_factory=dict)
    timestamp_type: TimestampType | None = None


class ColumnTypes:
    """Converts the columns of a clean log; counts values that are set to missing in `report`."""

    def __init__(
        self,
        frames: Frames,
        recipe: Preprocess,
        log: RawLog,
        side_tables: SideTables,
        report: RowCounts,
    ) -> None:
        self._frames = frames
        self._arrays = frames.arrays
        self._recipe = recipe
        self._log = log
        self._side_tables = side_tables
        self._report = report
        self._coded: dict[str, Coded] = {}
        """By column of the log."""
        self._typed = TypedLog()

    def convert(self, fitted_types: dict[str, ValueType]) -> TypedLog:
        """All columns that the recipe reads; id columns get `fitted_types`.

        NotOnDeviceError for text that the CPU reader repairs.
        """
        self._add_categories([SESSION], [self._raw_values(SESSION)], None)
        self._add_categories([ITEM], [self._raw_values(ITEM)], fitted_types.get(ITEM))
        for feature in self._recipe.features:
            if feature.kind == "categorical" or isinstance(feature, TargetEncodedFeature):
                self._add_feature(feature, fitted_types.get(feature.columns[0]))
        for feature in self._recipe.features:
            if feature.kind == "continuous":
                self._add_number(feature)
        self._add_times()
        return self._typed

    def _add_feature(self, feature: Feature, kind: ValueType | None) -> None:
        """Add a category, the columns of a multi-valued feature, or the bucket of a number."""
        if isinstance(feature, BucketFeature):
            numbers = self._numbers(feature.name, feature, positive=False)
            bounds = self._arrays.asarray(np.array(feature.buckets))
            codes = self._arrays.searchsorted(bounds, numbers, side="right").astype(np.int32)
            codes[self._arrays.isnan(numbers)] = -1
            buckets = pa.array(np.arange(len(feature.buckets) + 1))
            self._typed.rows[feature.name] = codes
            self._typed.dictionaries[feature.name] = buckets
            self._typed.types[feature.name] = "int64"
            return
        raw = self._raw_values(feature.name)
        if isinstance(feature, CategoryFeature) and feature.values_per_interaction > 1:
            parts, kind = values.split_values(
                raw.values, feature.separator, len(feature.columns), kind
            )
            raws = [Coded(raw.codes, values.decode_dictionary(part)) for part in parts]
            self._add_categories(list(feature.columns), raws, kind)
        else:
            self._add_categories([feature.name], [raw], kind)

    def _add_categories(self, names: list[str], raws: list[Coded], kind: ValueType | None) -> None:
        """Add columns that share a type."""
        for name, raw in zip(names, raws, strict=True):
            typed, type_of_column = values.category_chunk(raw.values, kind)
            encoded = values.decode_dictionary(typed).dictionary_encode()
            # one entry more than there are values, for null, whose code is -1
            code_of_value = np.append(pc.fill_null(encoded.indices, -1).to_numpy(), -1)
            codes = self._arrays.asarray(code_of_value.astype(np.int32))[raw.codes]
            self._typed.rows[name] = codes
            self._typed.dictionaries[name] = encoded.dictionary
            self._typed.types[name] = type_of_column
            if kind == "int64":
                unknown = pc.index(encoded.dictionary, values.UNKNOWN_INTEGER).as_py()
                reason = f"values of {name} that are no integer, as all that are known"
                self._report.warnings[reason] += int((codes == unknown).sum()) * (unknown >= 0)

    def _add_number(self, feature: Feature) -> None:
        name = feature.name
        if isinstance(feature, TargetEncodedFeature):
            name = feature.target_column
        is_log = isinstance(feature, NumberFeature) and feature.log
        self._typed.rows[name] = self._numbers(name, feature, positive=is_log)

    def _numbers(self, name: str, feature: Feature, *, positive: bool) -> Any:
        """(N,) float64, the counterpart of `values.numbers`."""
        source = feature.mean_of if isinstance(feature, TargetEncodedFeature) else feature.name
        reason = f"values of {source} that are no usable number"
        series = self._series(name)
        if series is not None and series.dtype.kind in "iuf":
            is_missing = series.isna().values
            numbers = series.fillna(0).astype("float64").values
            with np.errstate(over="ignore"):
                narrow = numbers.astype(np.float32)
            unusable = (self._arrays.isinf(narrow) | (positive & (narrow <= -1))) & ~is_missing
            self._report.repaired[reason] += int(unusable.sum())
            self._add_example(reason, name, unusable)
            return self._arrays.where(is_missing | unusable, np.nan, numbers)
        raw = self._raw_values(name)
        numbers, is_bad = values.numbers([raw.values], positive=positive)
        bad = self._arrays.asarray(np.append(is_bad, False))[raw.codes]
        self._report.repaired[reason] += int(bad.sum())
        self._add_example(reason, name, bad)
        return self._arrays.asarray(np.append(numbers, np.nan))[raw.codes]

    def _add_times(self) -> None:
        config = self._recipe.timestamp
        if config is None:
            self._typed.rows[TIMESTAMP] = self._arrays.arange(len(self._log.frame))
            return
        series = self._series(TIMESTAMP)
        assert series is not None  # noqa: S101  the log has it
        kind: TimestampType
        if series.dtype.kind == "i" and config.unit != "iso":
            times = series.fillna(0).astype("int64").values
            times = scale_times(times, ~series.isna().values, config.unit, self._arrays)
            kind = "int64"
        elif _is_text(series) and config.unit == "iso":
            times, kind = self._text_times(series), "string"
        elif _is_text(series):
            raw = self._raw_values(TIMESTAMP)
            of_values, kind = microseconds([raw.values], config)
            times = self._arrays.asarray(np.append(of_values, NO_TIME))[raw.codes]
        else:
            on_host, kind = microseconds([self._frames.arrow(series)], config)
            times = self._arrays.asarray(on_host)
        self._check_unit(series, config)
        self._typed.rows[TIMESTAMP] = times
        self._typed.timestamp_type = kind
        no_time = times == NO_TIME
        unreadable = no_time & ~series.isna().values
        self._add_example(
            NO_USABLE_TIME, TIMESTAMP, unreadable if bool(unreadable.any()) else no_time
        )

    def _check_unit(self, series: Any, config: Timestamp) -> None:
        """Check the unit block by block, as the CPU engine does."""
        stops = np.cumsum(self._log.block_rows).tolist()
        for stop, size in zip(stops, self._log.block_rows, strict=True):
            block = series.iloc[stop - size : stop : sample_step(size)]
            check_unit(self._frames.arrow(block), config)

    def _text_times(self, series: Any) -> Any:
        """Parse ISO times: each distinct date and each distinct rest of the text is parsed once.

        A log has few dates and few times of day, but as many pairs as rows.
        """
        try:
            texts = [series.str.slice(*part) for part in ((0, 10), (10, None))]
        except pa.ArrowInvalid:
            raise NotOnDeviceError(f"text of {TIMESTAMP} to repair") from None
        days, rests = (self._checked(TIMESTAMP, self._encode(text)) for text in texts)
        config = self._recipe.timestamp
        assert config is not None  # noqa: S101
        on_first_day = pc.binary_join_element_wise("1970-01-01", rests.values, "")
        midnights = pc.binary_join_element_wise(days.values, "T00:00", "")
        if not all(_is_usual(text) for text in (on_first_day, midnights)):
            raw = self._raw_values(TIMESTAMP)
            times, _ = microseconds([raw.values], config)
            return self._arrays.asarray(np.append(times, NO_TIME))[raw.codes]
        parts = []
        for codes, text in ((days.codes, days.values), (rests.codes, on_first_day)):
            times, _ = microseconds([text], config)
            parts.append(self._arrays.asarray(np.append(times, NO_TIME))[codes])
        usable = (parts[0] != NO_TIME) & (parts[1] != NO_TIME)
        return self._arrays.where(usable, parts[0] + parts[1], NO_TIME)

    def _add_example(self, reason: str, name: str, mask: Any) -> None:
        """Keep the first value under the mask as the example of a reason."""
        if bool(mask.any()):
            row, raw = int(mask.argmax()), self._raw_values(name)
            code = int(raw.codes[row])
            value = None if code < 0 else values.example(raw.values, code)
            self._report.add_example(reason, value, row + 1)

    def _series(self, name: str) -> Any:
        """Column of the log; None for a column of a side table."""
        source = self._log.columns.get(name)
        return None if source is None else self._log.frame[source]

    def _raw_values(self, name: str) -> Coded:
        """Codes and distinct raw values; for a column of a side table, the values of each distinct
        key."""
        series = self._series(name)
        if series is None:
            feature = next(f for f in self._recipe.features if f.name == name)
            key = ITEM if feature.of == "item" else SESSION
            keys = self._raw_values(key)
            return Coded(keys.codes, self._side_tables.values_of(key, name, keys.values))
        source = self._log.columns[name]
        if source not in self._coded:
            self._coded[source] = self._checked(name, self._encode(series))
        return self._coded[source]

    def _encode(self, series: Any) -> Coded:
        codes, distinct = series.factorize()
        return Coded(self._arrays.asarray(codes).astype(np.int32), self._frames.arrow(distinct))

    def _checked(self, name: str, raw: Coded) -> Coded:
        counts = RowCounts()
        text = decode_text(pa.chunked_array([raw.values]), name, "log", counts)
        if counts.counts:
            raise NotOnDeviceError(f"text of {name} to repair")
        return Coded(raw.codes, values.to_array(text))


def _is_text(series: Any) -> bool:
    return series.dtype.kind not in "iufM"


def _is_usual(text: pa.Array) -> bool:
    """Whether all times have the form that is parsed column by column, without a named zone."""
    return bool(pc.all(pc.match_substring_regex(text, ISO_TIME)).as_py() in (True, None))

"""Categories to the mean of another column: what is learned, and an NVTabular operator.

As NVTabular's TargetEncoding (Micci-Barreca 2001, equation 7, with a fixed weight), but by whole
sessions: the number of an interaction stands in no feature of its own session in training.
"""

import zlib
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from merlin.dag import ColumnSelector
from merlin.schema import Tags
from nvtabular.ops import Operator

from pipeline.core.columns import SESSION, TIMESTAMP
from pipeline.data.fitted import Standardization, TargetEncoding, ValueType
from pipeline.preprocessing.sorting.lookup import places
from pipeline.recipe.preprocess import Feature

_KEYS = (SESSION, TIMESTAMP)


def folds_of(session: pd.Series, folds: int) -> np.ndarray:
    """(rows,) fold of each row, by the CRC-32 of its session's id as text."""
    codes, sessions = pd.factorize(session)
    crc = np.array([zlib.crc32(str(value).encode()) for value in sessions], np.int64)
    return (crc % folds)[codes]


def sums_of(feature: Feature, frame: pd.DataFrame) -> pa.Table:
    """Of some interactions: `value`, `fold`, `count` and `sum`, a row for each that occurs."""
    found = pa.table(
        {
            "value": pa.array(frame[feature.name], from_pandas=True),
            "fold": folds_of(frame[SESSION], feature.folds),
            "number": frame[feature.target_column].to_numpy(np.float64),
        }
    )
    value = found["value"].combine_chunks()
    if pa.types.is_dictionary(value.type):
        found = found.set_column(0, "value", value.dictionary_decode())
    known = pc.and_(pc.is_valid(found["value"]), pc.is_finite(found["number"]))
    found = found.filter(known)
    sums = found.group_by(["value", "fold"], use_threads=False).aggregate(
        [("number", "count"), ("number", "sum")]
    )
    return sums.rename_columns(["value", "fold", "count", "sum"])


def together(parts: list[pa.Table], kind: ValueType) -> pa.Table:
    """The `sums_of` several parts, in their order, as of one; categories of this type."""
    wanted = pa.int64() if kind == "int64" else pa.string()
    # of a part without any category the type is not known
    parts = [part.set_column(0, "value", part["value"].cast(wanted)) for part in parts]
    groups = pa.concat_tables(parts).group_by(["value", "fold"], use_threads=False)
    sums = groups.aggregate([("count", "sum"), ("sum", "sum")])
    return sums.rename_columns(["value", "fold", "count", "sum"])


def fitted_encoding(feature: Feature, parts: list[pa.Table], kind: ValueType) -> TargetEncoding:
    """From the `sums_of` all parts, in their order; categories by value."""
    sums = together(parts, kind)
    values = pc.unique(sums["value"])
    values = values.take(pc.sort_indices(values))
    place = pc.index_in(sums["value"].combine_chunks(), value_set=values).to_numpy()
    shape, fold = (len(values), feature.folds), sums["fold"].to_numpy()
    counts, numbers = np.zeros(shape, np.int64), np.zeros(shape)
    counts[place, fold] = sums["count"].to_numpy()
    numbers[place, fold] = sums["sum"].to_numpy()
    return TargetEncoding(
        type=kind, values=values, counts=counts, sums=numbers, smoothing=feature.smoothing
    )


def scale_of(encoding: TargetEncoding) -> Standardization:
    """Mean and deviation of the feature over the training interactions, all folds together."""
    counts, means = encoding.counts.sum(1), encoding.means()[:-1]
    if not counts.sum():
        return Standardization(mean=0.0, deviation=0.0)
    mean = float(np.average(means, weights=counts))
    deviation = float(np.sqrt(np.average(np.square(means - mean), weights=counts)))
    constant = len(means) < 2 or bool((means == means[0]).all())
    return Standardization(mean=mean, deviation=0.0 if constant else deviation)


class TargetEncode(Operator):
    """Categories to smoothed means; with `training` those that other folds' sessions have.

    Sessions that begin after `until`, microseconds, are not in the means and read them whole, as a
    request does; without it all may be in them.
    """

    def __init__(
        self, encodings: dict[str, TargetEncoding], *, training: bool, until: int | None = None
    ) -> None:
        super().__init__()
        self.encodings = encodings
        self.training = training
        self.until = until

    def transform(self, col_selector: ColumnSelector, df: Any) -> Any:
        """Session, time and columns of categories to a column of numbers for each of these."""
        names = [name for name in col_selector.names if name not in _KEYS]
        frame = df if isinstance(df, pd.DataFrame) else df[col_selector.names].to_pandas()
        found = {name: self._encoded(self.encodings[name], frame, name) for name in names}
        return type(df)(pd.DataFrame(found, index=frame.index))

    def _encoded(self, encoding: TargetEncoding, frame: pd.DataFrame, name: str) -> np.ndarray:
        given = pa.array(frame[name], from_pandas=True)
        if pa.types.is_dictionary(given.type):
            given = given.dictionary_decode()
        place = places(given.cast(encoding.values.type), encoding.values)
        if not self.training:
            return encoding.means()[place]  # the mean of all stands last
        found = encoding.means_without(place, folds_of(frame[SESSION], encoding.counts.shape[1]))
        if (later := self._is_later(frame)).any():
            found[later] = encoding.means()[place[later]]
        return found

    def _is_later(self, frame: pd.DataFrame) -> np.ndarray:
        """(rows,) whether the session of a row begins after all that the means know."""
        if self.until is None:
            return np.zeros(len(frame), bool)
        codes, sessions = pd.factorize(frame[SESSION])
        begins = np.full(len(sessions), np.iinfo(np.int64).max)
        np.minimum.at(begins, codes, frame[TIMESTAMP].to_numpy())
        return (begins > self.until)[codes]

    def column_mapping(self, col_selector: ColumnSelector) -> dict[str, list[str]]:
        """Each from the session, its time and itself."""
        return {name: [*_KEYS, name] for name in col_selector.names if name not in _KEYS}

    @property
    def output_dtype(self) -> type:
        """float64."""
        return np.float64

    @property
    def output_tags(self) -> list[Tags]:
        """Continuous."""
        return [Tags.CONTINUOUS]

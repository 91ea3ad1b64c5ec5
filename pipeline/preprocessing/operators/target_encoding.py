"""Target encoding: a category as the mean of another column over its training interactions.

The formula is that of NVTabular's TargetEncoding (Micci-Barreca 2001, equation 7, with a fixed
weight). Folds consist of whole sessions: in training, no feature of a session contains numbers of
that session.
"""

import zlib
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from merlin.dag import ColumnSelector
from numpy.typing import NDArray

from pipeline.core.columns import SESSION, TIMESTAMP
from pipeline.data.fitted import Standardization, TargetEncoding, ValueType
from pipeline.preprocessing.lookup import positions
from pipeline.preprocessing.operators.sessions import ContinuousOperator
from pipeline.recipe.features import TargetEncodedFeature

_KEYS = (SESSION, TIMESTAMP)


def folds_of(session: pd.Series, folds: int) -> NDArray[Any]:
    """(N,) fold of each row, by the CRC-32 of its session id as text."""
    codes, sessions = pd.factorize(session)
    crc = np.array([zlib.crc32(str(value).encode()) for value in sessions], np.int64)
    return (crc % folds)[codes]


def target_sums(feature: TargetEncodedFeature, frame: pd.DataFrame) -> pa.Table:
    """Count and sum of the numbers of some interactions, by `value` and `fold`."""
    table = pa.table(
        {
            "value": pa.array(frame[feature.name], from_pandas=True),
            "fold": folds_of(frame[SESSION], feature.folds),
            "number": frame[feature.target_column].to_numpy(np.float64),
        }
    )
    value = table["value"].combine_chunks()
    if pa.types.is_dictionary(value.type):
        table = table.set_column(0, "value", value.dictionary_decode())
    table = table.filter(pc.and_(pc.is_valid(table["value"]), pc.is_finite(table["number"])))
    sums = table.group_by(["value", "fold"], use_threads=False).aggregate(
        [("number", "count"), ("number", "sum")]
    )
    return sums.rename_columns(["value", "fold", "count", "sum"])


def merge_target_sums(parts: list[pa.Table], kind: ValueType) -> pa.Table:
    """Sums of several parts in their order as one table; `value` has the type `kind`."""
    value_type = pa.int64() if kind == "int64" else pa.string()
    # a part without any category has no type
    parts = [part.set_column(0, "value", part["value"].cast(value_type)) for part in parts]
    groups = pa.concat_tables(parts).group_by(["value", "fold"], use_threads=False)
    sums = groups.aggregate([("count", "sum"), ("sum", "sum")])
    return sums.rename_columns(["value", "fold", "count", "sum"])


def fit_target_encoding(
    feature: TargetEncodedFeature, sums: pa.Table, kind: ValueType
) -> TargetEncoding:
    """Encoding from the merged `target_sums`; categories are sorted by value."""
    values = pc.unique(sums["value"])
    values = values.take(pc.sort_indices(values))
    row = pc.index_in(sums["value"].combine_chunks(), value_set=values).to_numpy()
    shape, fold = (len(values), feature.folds), sums["fold"].to_numpy()
    counts, numbers = np.zeros(shape, np.int64), np.zeros(shape)
    counts[row, fold] = sums["count"].to_numpy()
    numbers[row, fold] = sums["sum"].to_numpy()
    return TargetEncoding(
        type=kind, values=values, counts=counts, sums=numbers, smoothing=feature.smoothing
    )


def standardization_of(encoding: TargetEncoding) -> Standardization:
    """Mean and deviation of the feature over the training interactions of all folds."""
    counts, means = encoding.counts.sum(1), encoding.means()[:-1]
    if not counts.sum():
        return Standardization(mean=0.0, deviation=0.0)
    mean = float(np.average(means, weights=counts))
    deviation = float(np.sqrt(np.average(np.square(means - mean), weights=counts)))
    is_constant = len(means) < 2 or bool((means == means[0]).all())
    return Standardization(mean=mean, deviation=0.0 if is_constant else deviation)


class TargetEncode(ContinuousOperator):
    """Smoothed mean of each category, as NVTabular operator.

    Args:
        encodings: by column training: whether the sessions are for training and read the means of
        other folds until: microseconds of the newest interaction in the means. Sessions that begin
        later read the means of all folds, as requests do; None for no such session.
    """

    def __init__(
        self, encodings: dict[str, TargetEncoding], *, training: bool, until: int | None = None
    ) -> None:
        super().__init__()
        self.encodings = encodings
        self.training = training
        self.until = until

    def transform(self, col_selector: ColumnSelector, df: Any) -> Any:
        """One column of numbers per column other than session and time."""
        names = [name for name in col_selector.names if name not in _KEYS]
        means = {name: self._means(self.encodings[name], df, name) for name in names}
        return pd.DataFrame(means, index=df.index)

    def _means(self, encoding: TargetEncoding, frame: pd.DataFrame, name: str) -> NDArray[Any]:
        categories = pa.array(frame[name], from_pandas=True)
        if pa.types.is_dictionary(categories.type):
            categories = categories.dictionary_decode()
        row = positions(categories.cast(encoding.values.type), encoding.values)
        if not self.training:
            return encoding.means()[row]  # row -1, the last entry, is the mean of all categories
        means = encoding.means_without(row, folds_of(frame[SESSION], encoding.counts.shape[1]))
        if (is_later := self._is_later(frame)).any():
            means[is_later] = encoding.means()[row[is_later]]
        return means

    def _is_later(self, frame: pd.DataFrame) -> NDArray[Any]:
        """(N,) bool: whether the session of a row begins after `until`."""
        if self.until is None:
            return np.zeros(len(frame), bool)
        codes, sessions = pd.factorize(frame[SESSION])
        begins = np.full(len(sessions), np.iinfo(np.int64).max)
        np.minimum.at(begins, codes, frame[TIMESTAMP].to_numpy())
        return (begins > self.until)[codes]

    def column_mapping(self, col_selector: ColumnSelector) -> dict[str, list[str]]:
        """Each output depends on session, time and the input column of the same name."""
        return {name: [*_KEYS, name] for name in col_selector.names if name not in _KEYS}

    @property
    def output_dtype(self) -> type:
        """float64."""
        return np.float64

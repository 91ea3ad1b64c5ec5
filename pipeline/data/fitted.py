"""What preprocessing learned from the training data, as JSON and Parquet.

From it and the recipe the NVTabular workflow is rebuilt, and export makes the tables with which
a server encodes requests. Nothing in it is code.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.artifact import read_json, write_json
from pipeline.core.columns import FIRST_ITEM, FITTED_DIRECTORY, FITTED_FILE, ITEM
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.recipe.features import CategoryFeature, Feature, TargetEncodedFeature
from pipeline.recipe.preprocess import Preprocess

ITEMS_FILE = "items.parquet"
_FEW = 4
"""Times as many rows of a matrix as are asked for: then only these are summed."""
ValueType = Literal["int64", "string"]
TimestampType = Literal["int64", "float64", "string"]


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Values of a categorical feature; the one at position i has the index `first` + i."""

    type: ValueType
    values: pa.Array
    hash_buckets: int = 0
    """Indices from FIRST_ITEM on that all other values share, by a hash."""

    @property
    def first(self) -> int:
        """Index of the first value."""
        return FIRST_ITEM + self.hash_buckets

    @property
    def num_rows(self) -> int:
        """V: rows of an embedding table, the reserved ones included."""
        return self.first + len(self.values)


@dataclass(frozen=True, kw_only=True)
class Standardization:
    """(x - mean) / deviation of a continuous column, after the logarithm if it has one."""

    mean: float
    deviation: float
    """0 where the column is constant: then only the mean is taken off."""


@dataclass(frozen=True, kw_only=True)
class TargetEncoding:
    """Sums of numbers by category, kept apart by the fold of the session."""

    type: ValueType
    values: pa.Array
    """(C,) categories."""
    counts: np.ndarray
    """(C, folds) training interactions that have a number."""
    sums: np.ndarray
    """(C, folds) of their numbers."""
    smoothing: float

    def means(self) -> np.ndarray:
        """(C + 1,) smoothed mean of each category, then that of all, for all others.

        0 where nothing is known.
        """
        counts, sums = self.counts.sum(1), self.sums.sum(1)
        mean = sums.sum() / max(counts.sum(), 1)
        return np.append(self._smoothed(counts, sums, mean), mean)

    def means_without(self, place: np.ndarray, fold: np.ndarray) -> np.ndarray:
        """(N,) the same for categories at (N,) places, -1 for others, each without a fold."""
        counts, sums = self.counts.sum(0), self.sums.sum(0)  # (folds,)
        mean = ((sums.sum() - sums) / np.maximum(counts.sum() - counts, 1))[fold]
        there = place >= 0
        rows, of = place[there], fold[there]
        found = mean.copy()
        found[there] = self._smoothed(
            _row_sums(self.counts, rows) - self.counts[rows, of],
            _row_sums(self.sums, rows) - self.sums[rows, of],
            mean[there],
        )
        return found

    def _smoothed(self, counts: np.ndarray, sums: np.ndarray, mean: Any) -> np.ndarray:
        weight = counts + self.smoothing
        known: np.ndarray = (sums + self.smoothing * mean) / np.maximum(weight, 1e-9)
        return np.where((counts > 0) & (weight > 0), known, mean)


def _row_sums(matrix: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`matrix.sum(1)[rows]`, of few rows without the sums of all."""
    if len(rows) * _FEW < len(matrix):
        return matrix[rows].sum(1)
    return matrix.sum(1)[rows]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The recipe's preprocessing and its statistics."""

    recipe: Preprocess
    session_type: ValueType
    timestamp_type: TimestampType | None
    """None where the order of the rows stands for time."""
    vocabularies: dict[str, Vocabulary]
    """By feature name; the item's under `item_id`."""
    standardizations: dict[str, Standardization]
    """By feature name; `elapsed` too where the recipe asks for it."""
    target_encodings: dict[str, TargetEncoding] = field(default_factory=dict)
    """By name of a feature with `mean_of`."""
    learned_until: int | None = None
    """Microseconds of the newest interaction that these were learned from. None where the order of
    the rows stands for time."""
    items: pa.Table | None = None
    """What is known of items: `item_id`, and for each feature that describes items its value, null
    where none is known. The catalogue first; behind it the further items of an item table. None if
    there is no such feature."""

    @property
    def item(self) -> Vocabulary:
        """The catalogue."""
        return self.vocabularies[ITEM]

    @property
    def continuous(self) -> list[Feature]:
        """Continuous features of the log, time features not among them."""
        return [f for f in self.recipe.features if f.kind == "continuous"]

    @property
    def categorical(self) -> list[Feature]:
        """Categorical features of the log, the item not among them."""
        return [f for f in self.recipe.features if f.kind == "categorical"]

    @property
    def of_columns(self) -> dict[str, Vocabulary]:
        """Vocabularies by column: those of several values share theirs."""
        features = {name: feature.name for feature in self.categorical for name in feature.columns}
        return {name: self.vocabularies[of] for name, of in {ITEM: ITEM, **features}.items()}

    def only(self, columns: Collection[str]) -> Self:
        """Without the features whose columns are not among `columns`; those of the time stay."""
        kept = tuple(f for f in self.recipe.features if set(f.columns) & set(columns))
        dropped = {f.name for f in self.recipe.features if f not in kept}
        lost = {name for f in self.recipe.features if f not in kept for name in f.columns}
        return replace(
            self,
            recipe=self.recipe.model_copy(update={"features": kept}),
            vocabularies={n: v for n, v in self.vocabularies.items() if n not in dropped},
            standardizations={n: s for n, s in self.standardizations.items() if n not in dropped},
            target_encodings={n: e for n, e in self.target_encodings.items() if n not in dropped},
            items=None if self.items is None else _without(self.items, lost),
        )

    def write(self, directory: Path) -> None:
        """Write `fitted/` into an artifact."""
        target = directory / FITTED_DIRECTORY
        (target / "categories").mkdir(parents=True)
        state = {
            "recipe": self.recipe.model_dump(mode="json"),
            "session_type": self.session_type,
            "timestamp_type": self.timestamp_type,
            "categorical": {name: v.type for name, v in self.vocabularies.items()},
            "target_encodings": {name: e.type for name, e in self.target_encodings.items()},
            "learned_until": self.learned_until,
            "continuous": {
                name: {"mean": s.mean, "deviation": s.deviation}
                for name, s in self.standardizations.items()
            },
        }
        write_json(target / FITTED_FILE, state)
        for name, vocabulary in self.vocabularies.items():
            table = pa.table({name: vocabulary.values})
            pq.write_table(table, category_path(directory, name))
        for name, encoding in self.target_encodings.items():
            kinds = {"count": encoding.counts, "sum": encoding.sums}
            by_fold = {
                f"{kind}_{fold}": numbers[:, fold]
                for kind, numbers in kinds.items()
                for fold in range(numbers.shape[1])
            }
            table = pa.table({"value": encoding.values, **by_fold})
            (target / "targets").mkdir(exist_ok=True)
            pq.write_table(table, _target_path(directory, name))
        if self.items is not None:
            pq.write_table(self.items, target / ITEMS_FILE)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read `fitted/` of an artifact. ArtifactError if it does not hold together."""
        state: dict[str, Any] = read_json(directory / FITTED_DIRECTORY / FITTED_FILE)
        try:
            recipe = Preprocess.from_dict(state["recipe"], str(directory))
            hashed = {
                f.name: f.hash_buckets if isinstance(f, CategoryFeature) else 0
                for f in recipe.features
            }
            vocabularies = {}
            for name, value_type in state["categorical"].items():
                if name != ITEM and name not in hashed:  # names become paths
                    raise ArtifactError(f"{directory} has categories of no feature: {name!r}.")
                column = pq.read_table(category_path(directory, name))[name]
                wanted = pa.int64() if value_type == "int64" else pa.string()
                vocabularies[name] = Vocabulary(
                    type=value_type,
                    values=column.cast(wanted).combine_chunks(),
                    hash_buckets=hashed.get(name, 0),
                )
            return cls(
                recipe=recipe,
                session_type=state["session_type"],
                timestamp_type=state["timestamp_type"],
                vocabularies=vocabularies,
                standardizations={
                    name: Standardization(**values) for name, values in state["continuous"].items()
                },
                target_encodings={
                    feature.name: _read_target(
                        directory, feature, state["target_encodings"][feature.name]
                    )
                    for feature in recipe.target_encoded_features
                },
                learned_until=state.get("learned_until"),  # data of before have none
                items=_read_items(directory / FITTED_DIRECTORY / ITEMS_FILE),
            )
        except (KeyError, TypeError, OSError, pa.ArrowException, ConfigError) as error:
            raise ArtifactError(
                f"{directory}/{FITTED_DIRECTORY} does not hold together: {error}."
            ) from None


def recipe_of(directory: Path) -> Preprocess:
    """The recipe of a directory of data or of a run, without what was learned by it.

    ArtifactError if it cannot be read.
    """
    try:
        state = read_json(directory / FITTED_DIRECTORY / FITTED_FILE)
        return Preprocess.from_dict(state["recipe"], str(directory))
    except (KeyError, TypeError, ConfigError) as error:
        raise ArtifactError(
            f"{directory}/{FITTED_DIRECTORY} does not hold together: {error}."
        ) from None


def other_settings(recipe: Preprocess, data: Path) -> list[str]:
    """Keys of `preprocess` in which `recipe` is not the one that `data` was made by."""
    made_by = recipe_of(data)
    return [
        name for name in Preprocess.model_fields if getattr(recipe, name) != getattr(made_by, name)
    ]


def _without(items: pa.Table, dropped: set[str]) -> pa.Table | None:
    kept = items.drop_columns([name for name in items.column_names if name in dropped])
    return kept if kept.num_columns > 1 else None


def _target_path(directory: Path, name: str) -> Path:
    return directory / FITTED_DIRECTORY / "targets" / f"{name}.parquet"


def _read_target(directory: Path, feature: TargetEncodedFeature, kind: ValueType) -> TargetEncoding:
    table = pq.read_table(_target_path(directory, feature.name))
    wanted = pa.int64() if kind == "int64" else pa.string()
    counts, sums = (
        np.stack(
            [table[f"{what}_{fold}"].cast(number).to_numpy() for fold in range(feature.folds)], 1
        )
        for what, number in (("count", pa.int64()), ("sum", pa.float64()))
    )
    return TargetEncoding(
        type=kind,
        values=table["value"].cast(wanted).combine_chunks(),
        counts=counts,
        sums=sums,
        smoothing=feature.smoothing,
    )


def _read_items(path: Path) -> pa.Table | None:
    return pq.read_table(path) if path.exists() else None


def category_path(directory: Path, name: str) -> Path:
    """Where the values of a categorical column lie, in the order of their indices."""
    return directory / FITTED_DIRECTORY / "categories" / f"{name}.parquet"

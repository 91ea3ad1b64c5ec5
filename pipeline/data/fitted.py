"""Fitted state of preprocessing: vocabularies and statistics of the training data.

It is stored as JSON and Parquet, without code. With the recipe it is enough to rebuild the
NVTabular workflow and to encode the requests of a server.
"""

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.core.artifact import read_json, write_json
from pipeline.core.columns import FIRST_ITEM, FITTED_DIRECTORY, FITTED_FILE, ITEM
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.core.parquet_bounds import check_expansion
from pipeline.data.state_checks import check_state
from pipeline.recipe.features import (
    ExpressionFeature,
    Feature,
    HashedFeature,
    TargetEncodedFeature,
)
from pipeline.recipe.preprocess import Preprocess
from pipeline.serve.runtime.expressions import Statistic

ITEMS_FILE = "items.parquet"
_UNREADABLE = (
    *(KeyError, TypeError, ValueError, AttributeError, OverflowError, OSError),
    *(pa.ArrowException, ConfigError),
)
"""Errors of reading state that `Fitted.write` did not write."""
WORKFLOW_FOLDER = "workflow"
WORKFLOW_FILE = "workflow.json"
ValueType = Literal["int64", "string"]
TimestampType = Literal["int64", "float64", "string"]


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Values of a categorical feature; the value at position i has the index `first` + i."""

    type: ValueType
    values: pa.Array
    hash_buckets: int = 0
    """Indices from FIRST_ITEM on that out-of-vocabulary values share, by a hash of their text."""

    @property
    def first(self) -> int:
        """Index of the first value."""
        return FIRST_ITEM + self.hash_buckets

    @property
    def num_rows(self) -> int:
        """V: rows of the embedding table, with the reserved ones."""
        return self.first + len(self.values)


@dataclass(frozen=True, kw_only=True)
class Standardization:
    """(x - mean) / deviation of a continuous column, after its logarithm if the recipe has one."""

    mean: float
    deviation: float
    """0 for a constant column, which is only centred."""


@dataclass(frozen=True, kw_only=True)
class TargetEncoding:
    """Sums of a number by category and by fold of the session."""

    type: ValueType
    values: pa.Array
    """(C,) categories."""
    counts: NDArray[Any]
    """(C, folds) training interactions that have a number."""
    sums: NDArray[Any]
    """(C, folds) sums of their numbers."""
    smoothing: float

    def means(self) -> NDArray[Any]:
        """(C + 1,) smoothed mean of each category, then the overall mean; 0 without a number."""
        counts, sums = self.counts.sum(1), self.sums.sum(1)
        mean = sums.sum() / max(counts.sum(), 1)
        return np.append(self._smoothed(counts, sums, mean), mean)

    def means_without(self, positions: NDArray[Any], folds: NDArray[Any]) -> NDArray[Any]:
        """(N,) means of the categories at (N,) positions (-1: unknown), each without one fold."""
        counts, sums = self.counts.sum(0), self.sums.sum(0)  # (folds,)
        means = ((sums.sum() - sums) / np.maximum(counts.sum() - counts, 1))[folds]
        is_category = positions >= 0
        rows, columns = positions[is_category], folds[is_category]
        means[is_category] = self._smoothed(
            self.counts.sum(1)[rows] - self.counts[rows, columns],
            self.sums.sum(1)[rows] - self.sums[rows, columns],
            means[is_category],
        )
        return means

    def _smoothed(self, counts: NDArray[Any], sums: NDArray[Any], mean: Any) -> NDArray[Any]:
        weight = counts + self.smoothing
        smoothed: NDArray[Any] = (sums + self.smoothing * mean) / np.maximum(weight, 1e-9)
        return np.where((counts > 0) & (weight > 0), smoothed, mean)


@dataclass(frozen=True, kw_only=True)
class OperatorSteps:
    """Steps by which a user's workflow computes a feature, in a form without NVTabular."""

    type: Literal["int64", "float64", "string"]
    """Type of the values that a request has."""
    steps: tuple[dict[str, Any], ...] = ()
    """Formulas with their constants, see `pipeline/serve/runtime/operator_steps.py`."""
    tables: dict[int, pa.Table] = field(default_factory=dict)
    """Keys and values of lookup steps, by step number. The first two rows are for a missing and for
    an unknown key."""
    obstacle: str | None = None
    """Operator that has no such form; the steps are empty then."""


@dataclass(frozen=True, kw_only=True)
class SavedWorkflow:
    """A user's fitted NVTabular workflow, which a server with NVTabular rebuilds."""

    graph: dict[str, Any] = field(default_factory=dict)
    """Nodes, columns of the log and of the output, see `pipeline/serve/runtime/workflows`."""
    tables: dict[str, pa.Table] = field(default_factory=dict)
    """Fitted statistics of the operators, by file name."""
    obstacle: str | None = None
    """Operator that has no JSON form; the graph is empty then."""

    def write(self, folder: Path) -> None:
        """Write the graph and its tables."""
        folder.mkdir(parents=True)
        write_json(folder / WORKFLOW_FILE, self.graph)
        for name, table in self.tables.items():
            # pyarrow before 14.0.1 loads pickles that the schema may name; servers refuse it
            pq.write_table(table, folder / name, store_schema=False)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a workflow that `write` wrote."""
        tables = {path.name: pq.read_table(path) for path in sorted(folder.glob("*.parquet"))}
        return cls(graph=read_json(folder / WORKFLOW_FILE), tables=tables)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Recipe of a data directory, and the vocabularies and statistics that it was fitted with."""

    recipe: Preprocess
    session_type: ValueType
    timestamp_type: TimestampType | None
    """None without a timestamp."""
    vocabularies: dict[str, Vocabulary]
    """Vocabularies by feature; `item_id` is the key of the item."""
    standardizations: dict[str, Standardization]
    """Statistics by continuous feature, including `elapsed` if the recipe has it."""
    target_encodings: dict[str, TargetEncoding] = field(default_factory=dict)
    """Encodings by feature with `mean_of`."""
    expressions: dict[str, Statistic] = field(default_factory=dict)
    """Statistics that expressions read, by the JSON of the call."""
    operator_steps: dict[str, OperatorSteps] = field(default_factory=dict)
    """Steps of a user's workflow, by feature and for the item; empty without a workflow."""
    workflow: SavedWorkflow | None = None
    """The user's fitted workflow."""
    learned_until: int | None = None
    """Microseconds of the newest fitted interaction; None without a timestamp."""
    items: pa.Table | None = None
    """`item_id` and the features that describe items, null if unknown; first the catalogue, then
    further items of the item table. None without such a feature."""

    @property
    def item(self) -> Vocabulary:
        """Catalogue."""
        return self.vocabularies[ITEM]

    @property
    def categorical(self) -> list[Feature]:
        """Categorical features, without the item."""
        return [f for f in self.recipe.features if f.kind == "categorical"]

    @property
    def of_columns(self) -> dict[str, Vocabulary]:
        """Vocabularies by column; the columns of a multi-valued feature share one."""
        columns = {column: f.name for f in self.categorical for column in f.columns}
        return {c: self.vocabularies[name] for c, name in {ITEM: ITEM, **columns}.items()}

    def only(self, columns: Collection[str]) -> Self:
        """Copy without the features whose columns are not in `columns`; time features stay.

        Features that expressions of kept features read stay too.
        """
        kept = tuple(f for f in self.recipe.features if set(f.columns) & set(columns))
        expressions = [f.parsed for f in kept if isinstance(f, ExpressionFeature)]
        inputs = {name for e in expressions for name in (*e.numbers, *e.categories)}
        kept = tuple(f for f in self.recipe.features if f in kept or f.name in inputs)
        dropped = [f for f in self.recipe.features if f not in kept]
        names = {f.name for f in dropped}
        items = self.items
        if items is not None:
            lost = {column for f in dropped for column in f.columns} & {*items.column_names}
            items = items.drop_columns(sorted(lost))
            items = items if items.num_columns > 1 else None
        return replace(
            self,
            recipe=self.recipe.model_copy(update={"features": kept}),
            vocabularies={n: v for n, v in self.vocabularies.items() if n not in names},
            standardizations={n: v for n, v in self.standardizations.items() if n not in names},
            target_encodings={n: v for n, v in self.target_encodings.items() if n not in names},
            operator_steps={n: v for n, v in self.operator_steps.items() if n not in names},
            items=items,
        )

    def write(self, directory: Path) -> None:
        """Write `fitted/` of an artifact."""
        target = directory / FITTED_DIRECTORY
        (target / "categories").mkdir(parents=True)
        state = {
            "recipe": self.recipe.model_dump(mode="json"),
            "session_type": self.session_type,
            "timestamp_type": self.timestamp_type,
            "categorical": {name: v.type for name, v in self.vocabularies.items()},
            "target_encodings": {name: e.type for name, e in self.target_encodings.items()},
            "learned_until": self.learned_until,
            "continuous": {name: asdict(s) for name, s in self.standardizations.items()},
        }
        if self.expressions:
            state["expressions"] = _write_statistics(target, self.expressions)
        if self.operator_steps:
            state["operator_steps"] = _write_steps(target, self.operator_steps)
        if self.workflow is not None:
            state["workflow"] = {"obstacle": self.workflow.obstacle}
            if self.workflow.obstacle is None:
                self.workflow.write(target / WORKFLOW_FOLDER)
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
        """Read `fitted/` of an artifact. ArtifactError if it is inconsistent."""
        state: dict[str, Any] = read_json(directory / FITTED_DIRECTORY / FITTED_FILE)
        try:
            recipe = Preprocess.from_dict(state["recipe"], str(directory))
            names = {ITEM, *(feature.name for feature in recipe.features)}
            buckets = {
                f.name: f.hash_buckets for f in recipe.features if isinstance(f, HashedFeature)
            }
            for file in (directory / FITTED_DIRECTORY).rglob("*.parquet"):
                check_expansion(file)
            vocabularies = {}
            for name, value_type in state["categorical"].items():
                if name not in names:  # names become paths
                    raise ArtifactError(f"{directory} has categories of no feature: {name!r}.")
                column = pq.read_table(category_path(directory, name))[name]
                vocabularies[name] = Vocabulary(
                    type=value_type,
                    values=column.cast(_arrow_type(value_type)).combine_chunks(),
                    hash_buckets=buckets.get(name, 0),
                )
            items = directory / FITTED_DIRECTORY / ITEMS_FILE
            fitted = cls(
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
                expressions=_read_statistics(directory, state.get("expressions", {})),
                operator_steps=_read_steps(
                    directory / FITTED_DIRECTORY, state.get("operator_steps", {}), names
                ),
                workflow=_read_workflow(directory / FITTED_DIRECTORY, state.get("workflow")),
                learned_until=state.get("learned_until"),  # earlier versions lack it
                items=pq.read_table(items) if items.exists() else None,
            )
            check_state(fitted, directory / FITTED_DIRECTORY)
        except _UNREADABLE as error:
            raise ArtifactError(
                f"{directory}/{FITTED_DIRECTORY} does not hold together: "
                f"{' '.join(str(error).split())[:200]}."
            ) from None
        return fitted


def recipe_of(directory: Path) -> Preprocess:
    """Recipe of a data directory or a run, without the fitted state.

    ArtifactError if it cannot be read.
    """
    try:
        state = read_json(directory / FITTED_DIRECTORY / FITTED_FILE)
        return Preprocess.from_dict(state["recipe"], str(directory))
    except _UNREADABLE as error:
        raise ArtifactError(
            f"{directory}/{FITTED_DIRECTORY} does not hold together: "
            f"{' '.join(str(error).split())[:200]}."
        ) from None


def other_settings(recipe: Preprocess, data: Path) -> list[str]:
    """Keys of `preprocess` in which `recipe` differs from the recipe of `data`."""
    other = recipe_of(data)
    return [key for key in Preprocess.model_fields if getattr(recipe, key) != getattr(other, key)]


def _target_path(directory: Path, name: str) -> Path:
    return directory / FITTED_DIRECTORY / "targets" / f"{name}.parquet"


def _write_statistics(target: Path, statistics: dict[str, Statistic]) -> dict[str, float | None]:
    """Write the numbers of each call to a file; return the default of each call, None for NaN."""
    for number, statistic in enumerate(statistics.values()):
        texts = pa.array([text.decode("utf-8") for text in statistic.numbers], pa.string())
        numbers = pa.array(list(statistic.numbers.values()), pa.float64())
        (target / "expressions").mkdir(exist_ok=True)
        table = pa.table({"value": texts, "number": numbers})
        pq.write_table(table, target / "expressions" / f"{number}.parquet")
    return {
        call: None if math.isnan(statistic.default) else statistic.default
        for call, statistic in statistics.items()
    }


def _read_statistics(directory: Path, defaults: dict[str, float | None]) -> dict[str, Statistic]:
    statistics = {}
    for number, (call, default) in enumerate(defaults.items()):
        table = pq.read_table(directory / FITTED_DIRECTORY / "expressions" / f"{number}.parquet")
        texts = table["value"].cast(pa.binary()).to_pylist()
        numbers = dict(zip(texts, table["number"].to_pylist(), strict=True))
        statistics[call] = Statistic(numbers, math.nan if default is None else float(default))
    return statistics


def _read_target(directory: Path, feature: TargetEncodedFeature, kind: ValueType) -> TargetEncoding:
    table = pq.read_table(_target_path(directory, feature.name))
    counts, sums = (
        np.stack(
            [table[f"{what}_{fold}"].cast(number).to_numpy() for fold in range(feature.folds)], 1
        )
        for what, number in (("count", pa.int64()), ("sum", pa.float64()))
    )
    return TargetEncoding(
        type=kind,
        values=table["value"].cast(_arrow_type(kind)).combine_chunks(),
        counts=counts,
        sums=sums,
        smoothing=feature.smoothing,
    )


def _write_steps(folder: Path, steps: dict[str, OperatorSteps]) -> dict[str, Any]:
    """Write the tables of the steps; return the steps as JSON."""
    for name, of_feature in steps.items():
        for number, table in of_feature.tables.items():
            path = _step_path(folder, name, number)
            path.parent.mkdir(exist_ok=True)
            pq.write_table(table, path)
    return {
        name: {"type": each.type, "steps": list(each.steps), "obstacle": each.obstacle}
        for name, each in steps.items()
    }


def _read_steps(
    folder: Path, state: dict[str, Any], names: Collection[str]
) -> dict[str, OperatorSteps]:
    steps = {}
    for name, each in state.items():
        if name not in names:  # names become paths
            raise ArtifactError(f"{folder} has operators of no feature: {name!r}.")
        steps[name] = OperatorSteps(
            type=each["type"],
            steps=tuple(each["steps"]),
            tables={
                number: pq.read_table(_step_path(folder, name, number))
                for number, step in enumerate(each["steps"])
                if step["op"] == "lookup"
            },
            obstacle=each["obstacle"],
        )
    return steps


def _read_workflow(folder: Path, state: dict[str, Any] | None) -> SavedWorkflow | None:
    if state is None:
        return None
    if state["obstacle"] is not None:
        return SavedWorkflow(obstacle=state["obstacle"])
    return SavedWorkflow.read(folder / WORKFLOW_FOLDER)


def _step_path(folder: Path, name: str, number: int) -> Path:
    return folder / "operators" / f"{name}.{number}.parquet"


def _arrow_type(kind: ValueType) -> pa.DataType:
    return pa.int64() if kind == "int64" else pa.string()


def category_path(directory: Path, name: str) -> Path:
    """Path of the values of a categorical feature, in the order of their indices."""
    return directory / FITTED_DIRECTORY / "categories" / f"{name}.parquet"

"""Trainer of one model on consecutive time windows, each evaluated before training on it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.core.columns import FIRST_ITEM, ITEM
from pipeline.core.errors import ConfigError
from pipeline.data.directory import Data
from pipeline.data.fitted import Fitted
from pipeline.data.schema import Schema, Tags, embedding_size
from pipeline.data.sessions import Interactions, interactions_of
from pipeline.evaluation.baselines import fit_baseline
from pipeline.evaluation.baselines.ranking import rank_by_baseline
from pipeline.evaluation.breakdowns import describe_targets
from pipeline.evaluation.metrics import (
    DEFAULT_CUTOFFS,
    behind_every_list,
    gains,
    means_and_margins,
)
from pipeline.evaluation.targets import evaluation_loader, prefixes, rank_targets
from pipeline.model.build import TrainingStatistics, build_model, input_features
from pipeline.model.inputs.columns import merge_multi_valued
from pipeline.model.model import Model
from pipeline.model.run import Run
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.train import TrainConfig
from pipeline.training.distributed.processes import Processes
from pipeline.training.incremental.growing_vocabulary import GrowingVocabulary, map_sessions
from pipeline.training.incremental.warm_start import (
    SourceCheckpoint,
    check_separate_tables,
    check_shapes,
    copy_weights,
    item_feature_columns,
    item_feature_values,
)
from pipeline.training.incremental.windows import (
    Window,
    flat_column,
    read_all_sessions,
    trainable_sessions,
    windows_of,
    write_part,
)
from pipeline.training.run import check_finite, training_loader
from pipeline.training.run_files import EVALUATION_SESSIONS, LOG_FILE
from pipeline.training.training_statistics import training_statistics, with_session_statistics

_METRICS = ("recall", "ndcg", "mrr")


@dataclass(frozen=True, kw_only=True)
class WindowEvaluation:
    """Metrics of the model and the baselines on the targets of one window."""

    targets: int
    unknown_targets: int
    """Number of targets whose item did not occur in an earlier window."""
    results: dict[str, dict[str, float]]
    """Metrics by name of the model or baseline."""
    margins: dict[str, dict[str, float | None]]
    """Half the 95 % intervals of these metrics."""


@dataclass(frozen=True, kw_only=True)
class WindowTraining:
    """Figures of the training on one window."""

    trained_sessions: int
    catalogue_items: int
    new_items: int
    steps: int
    epochs: float
    train_loss: float


class IncrementalTrainer:
    """Model, vocabularies and weights after the windows so far; `train` adds a window.

    The model, its catalogue and its statistics contain nothing of later windows.
    """

    def __init__(
        self,
        data: Data,
        model_config: ModelConfig,
        train_config: TrainConfig,
        start: Run | None = None,
    ) -> None:
        """`start` is the run with the initial weights of the first window."""
        _check_incremental(data, model_config)
        self.fitted = data.fitted
        self.schema = data.schema
        self.train_config = train_config
        self._start = start
        self.source = (
            None if start is None else SourceCheckpoint.of_run(start, self.fitted, model_config)
        )
        """Initial weights of the next window, by the rows of the data."""
        self.model: Model | None = None
        """Model to predict with, None before the first window."""
        self.trained: list[Window] = []
        self.vocabularies = _empty_vocabularies(self.fitted, self.schema, model_config, self.source)
        self.model_config = _with_final_widths(model_config, self.vocabularies)
        self.device = ""
        self._sessions = read_all_sessions(data)
        self._statistics = training_statistics(data.path, self.fitted, model_config, train_config)
        """Statistics of all data, the source of the statistics of windows."""
        data.check_unchanged()

    def windows(self, seconds: float) -> list[Window]:
        """Windows of `seconds` width, oldest first."""
        return windows_of(self._sessions, seconds, self.fitted.recipe.min_session_length)

    def train(self, window: Window, scratch: Path, *, is_last: bool) -> WindowTraining:
        """Train on a window from the weights of the previous one; write the log to `scratch`.

        With `is_last`, values that occur only in interactions that preprocessing cut off get rows
        too, so that the catalogue becomes that of the data.
        """
        from pipeline.training.trainer import Trainer

        num_items = len(self.vocabularies[ITEM].rows)
        self.trained.append(window)
        sessions = self._sessions.take(window.sessions)
        self._extend_vocabularies(None if is_last else sessions)
        model = self._initial_model()
        recipe = self.fitted.recipe
        sessions = trainable_sessions(
            sessions, recipe.max_sequence_length + 1, recipe.min_session_length
        )
        write_part(map_sessions(sessions, self.vocabularies), scratch, "train")
        trainer = Trainer(
            model,
            self.train_config,
            train_loader=training_loader(scratch, model, self.train_config, Processes()),
            valid_loader=None,
            log_path=scratch / LOG_FILE,
        )
        result = trainer.train()
        check_finite(model)
        self.model = model
        positions = {name: vocabulary.positions() for name, vocabulary in self.vocabularies.items()}
        self.source = SourceCheckpoint(model.state_dict(), positions)
        self.device = str(trainer.args.device)
        return WindowTraining(
            trained_sessions=sessions.num_rows,
            catalogue_items=len(self.vocabularies[ITEM].rows) - FIRST_ITEM,
            new_items=len(self.vocabularies[ITEM].rows) - num_items,
            steps=result.global_step,
            epochs=trainer.state.epoch or 0.0,
            train_loss=result.training_loss,
        )

    def evaluate(self, window: Window, scratch: Path) -> WindowEvaluation | None:
        """Rank every target of a window among the items so far; None without a target."""
        assert self.model is not None  # noqa: S101
        sessions = map_sessions(self._sessions.take(window.sessions), self.vocabularies)
        write_part(sessions, scratch, "valid")
        interactions = interactions_of(sessions)
        targets = describe_targets(interactions, "all")
        if not len(targets.items):
            return None
        model = self.model.eval()
        loader = evaluation_loader(scratch, "valid", model, EVALUATION_SESSIONS)
        ranked = rank_targets(model, loader, "all")
        # baselines and sessions have the targets of the model
        assert np.array_equal(targets.items, ranked.targets)  # noqa: S101
        ranks = {"model": ranked.ranks} | self._baseline_ranks(interactions)
        values = {
            name: gains(behind_every_list(each, targets.items), DEFAULT_CUTOFFS, _METRICS)
            for name, each in ranks.items()
        }
        return WindowEvaluation(
            targets=len(ranked.ranks),
            unknown_targets=int((ranked.targets < FIRST_ITEM).sum()),
            **means_and_margins(values, targets.sessions),
        )

    def final_model(self) -> Model:
        """The model after the last window, with its rows in the order of the data's catalogue."""
        assert self.source is not None  # noqa: S101
        model = self._build(self.schema, self._statistics)
        copy_weights(model, self.model_config, self.source)
        return model

    def _build(self, schema: Schema, statistics: TrainingStatistics) -> Model:
        max_length = self.fitted.recipe.max_sequence_length
        return build_model(schema, self.model_config, max_length, self.train_config, statistics)

    def _extend_vocabularies(self, sessions: pa.Table | None) -> None:
        """Add the values of `sessions`, or all values of the data for None."""
        for name, vocabulary in self.vocabularies.items():
            indices = np.arange(vocabulary.num_data_rows)
            if sessions is not None:
                columns = [flat_column(sessions, column) for column in vocabulary.columns]
                indices = np.concatenate(columns)
            self.vocabularies[name] = vocabulary.extended(indices)

    def _initial_model(self) -> Model:
        """Model of the vocabularies so far, with the weights of the source checkpoint."""
        num_rows = {
            column: len(vocabulary.rows)
            for vocabulary in self.vocabularies.values()
            for column in vocabulary.columns
        }
        columns = (replace(c, num_rows=num_rows.get(c.name, c.num_rows)) for c in self.schema)
        model = self._build(Schema(tuple(columns)), self._window_statistics())
        if self.source is not None:
            rows = {name: self.source.rows[name][v.rows] for name, v in self.vocabularies.items()}
            source = SourceCheckpoint(self.source.weights, rows)
            if self._start is not None and self.model is None:
                check_shapes(self._start.path, model, self.model_config, source)
            copy_weights(model, self.model_config, source, item_features=self._item_features())
        return model

    def _item_features(self) -> NDArray[Any] | None:
        """(V, F) features that determine the initial vectors of new items, None for `mean`."""
        if self.train_config.new_items != "features":
            return None
        items = self.vocabularies[ITEM]
        values = item_feature_values(
            self._trained_sessions(), item_feature_columns(self.fitted), items.num_data_rows
        )
        return values[items.rows]

    def _baseline_ranks(self, interactions: Interactions) -> dict[str, NDArray[Any]]:
        """Ranks of the targets by baselines fitted to the windows so far."""
        history = interactions_of(map_sessions(self._trained_sessions(), self.vocabularies))
        max_length = self.fitted.recipe.max_sequence_length
        before = prefixes(interactions.values, interactions.offsets, "all", max_length)
        num_rows = len(self.vocabularies[ITEM].rows)
        ranks = {}
        for name in ("popularity", "sequential-rules"):
            baseline = fit_baseline(name, history.values, history.offsets, num_rows)
            ranked = rank_by_baseline(baseline, *before, num_items=num_rows - FIRST_ITEM)
            ranks[name] = ranked.ranks
        return ranks

    def _window_statistics(self) -> TrainingStatistics:
        """Statistics of the windows so far, by the rows of the vocabularies."""
        every, train = self._statistics, self.train_config
        rows = {name: torch.from_numpy(v.rows) for name, v in self.vocabularies.items()}
        items, sessions = rows[ITEM], self._trained_sessions()

        def column(name: str) -> pa.ListArray:
            return sessions[name].combine_chunks()

        so_far = with_session_statistics(every, column, self.fitted, self.model_config, train)
        weights, counts = every.weights, so_far.item_counts
        if weights is not None and train.weights is not None:
            weights = weights[rows.get(train.weights.feature, slice(None))]
        return replace(
            so_far,
            vectors={
                index: vectors[rows[self.model_config.pretrained[index].feature]]
                for index, vectors in every.vectors.items()
            },
            item_vectors={width: vectors[items] for width, vectors in so_far.item_vectors.items()},
            item_counts=None if counts is None else counts[items[FIRST_ITEM:] - FIRST_ITEM],
            weights=weights,
        )

    def _trained_sessions(self) -> pa.Table:
        return self._sessions.take(np.concatenate([window.sessions for window in self.trained]))


def _check_incremental(data: Data, config: ModelConfig) -> None:
    """ConfigError for data or a model that cannot be trained by windows."""
    if config.counting is not None:
        raise ConfigError(
            f"--windows trains weights further, and {config.architecture} counts whole logs. Train "
            "it without --windows."
        )
    check_separate_tables(config)
    if not config.next_item:
        raise ConfigError(
            "--windows evaluates the next item of each window, and the model has `next_item: "
            "false`. Train it without --windows."
        )
    recipe = data.recipe
    for feature in recipe.target_encoded_features:
        raise ConfigError(
            f"--windows learns of each window what came before it, and {feature.name!r} holds "
            "means of all of training. Leave it out of the recipe, or do without --windows."
        )
    if recipe.timestamp is None:
        raise ConfigError(
            f"--windows needs times, but the recipe of {data.path} has no `timestamp`. Add it "
            "to the recipe and preprocess again."
        )


def _empty_vocabularies(
    fitted: Fitted, schema: Schema, config: ModelConfig, source: SourceCheckpoint | None
) -> dict[str, GrowingVocabulary]:
    """By categorical feature of the model, a vocabulary of the values of the source."""
    categorical = input_features(schema, config).select_by_tag(Tags.CATEGORICAL)
    features, multi_valued = merge_multi_valued(categorical)
    return {
        name: GrowingVocabulary.of(
            fitted.vocabularies[name],
            multi_valued.get(name, (name,)),
            None if source is None else np.flatnonzero(source.rows[name] >= 0),
        )
        for name in features.column_names
    }


def _with_final_widths(
    config: ModelConfig, vocabularies: dict[str, GrowingVocabulary]
) -> ModelConfig:
    """Set embedding widths by the whole catalogue, as they must not grow with it."""
    if not config.infer_embedding_sizes:
        return config
    widths = {
        name: embedding_size(vocabulary.num_data_rows, config.infer_embedding_sizes_multiplier)
        for name, vocabulary in vocabularies.items()
        if name != ITEM
    }
    return config.model_copy(update={"embedding_dims": widths | config.embedding_dims})

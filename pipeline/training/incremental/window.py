"""Training and evaluation of one window, and what passes from it to the next."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from pipeline.core.columns import (
    FIRST_ITEM,
    ITEM,
    SESSION,
    TIMESTAMP,
)
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.data.directory import Data
from pipeline.data.fitted import Fitted
from pipeline.data.index_mapping import unknown_rows
from pipeline.data.loader import read_sessions
from pipeline.data.schema import Schema, Tags, embedding_size
from pipeline.evaluation.baselines import BASELINES
from pipeline.evaluation.baselines.ranking import rank_by_baseline
from pipeline.evaluation.breakdowns import describe_targets
from pipeline.evaluation.metrics import DEFAULT_CUTOFFS, gains, margin
from pipeline.evaluation.targets import prefixes, rank_targets
from pipeline.model.build import FromData, build_model, input_features
from pipeline.model.inputs.selection import together
from pipeline.model.model import Model
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.train import TrainConfig
from pipeline.training.distributed.processes import Processes
from pipeline.training.incremental.sessions import (
    Catalogue,
    Growing,
    Window,
    cut_windows,
    flat,
    interactions_of,
    mapped,
    trainable,
    write_part,
)
from pipeline.training.incremental.warm_start import (
    Earlier,
    carry_over,
    check_separate_tables,
    check_shapes,
    features_of_items,
    item_features,
    read_earlier,
)
from pipeline.training.item_vectors import co_visitation_vectors
from pipeline.training.run import LOG_FILE, check_finite, evaluation_loader, training_loader
from pipeline.training.training_statistics import from_data

_METRICS = ("recall", "ndcg", "mrr")


class State(NamedTuple):
    """What is known after some windows."""

    catalogue: Catalogue
    earlier: Earlier | None
    """Weights, and where the data's values stand in them."""
    model: Model | None
    """The same, to predict with; None before the first window."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The data with what does not change from window to window."""

    sessions: pa.Table
    """Of all parts."""
    fitted: Fitted
    schema: Schema
    config: ModelConfig
    train: TrainConfig
    known: FromData
    """By the data's indices."""
    features: dict[str, Growing]
    """Categorical ones that the model reads: their tables grow."""
    start: Path | None
    earlier: Earlier | None
    """Of the run to begin from."""

    @classmethod
    def read(
        cls, data: Data, config: ModelConfig, train: TrainConfig, start: Path | None
    ) -> "Work":
        check_separate_tables(config)
        fitted = data.fitted
        for feature in fitted.recipe.target_encoded_features:
            raise ConfigError(
                f"--windows learns of each window what came before it, and {feature.name!r} "
                "holds means of all of training. Leave it out of the recipe, or do without "
                "--windows."
            )
        if fitted.recipe.timestamp is None:
            raise ConfigError(
                f"--windows needs times, but the recipe of {data.path} has no `timestamp`. Add it "
                "to the recipe and preprocess again."
            )
        schema = data.schema
        categorical = input_features(schema, config).select_by_tag(Tags.CATEGORICAL)
        whole, several = together(categorical)
        names = [*(c for c in schema.column_names if c != SESSION), TIMESTAMP]
        parts = [read_sessions(data.path, part, list(dict.fromkeys(names))) for part in data.parts]
        return cls(
            sessions=pa.concat_tables(parts, promote_options="permissive").combine_chunks(),
            fitted=fitted,
            schema=schema,
            config=config,
            train=train,
            known=from_data(data.path, fitted, config, train),
            features={
                name: Growing(
                    several.get(name, (name,)),
                    fitted.vocabularies[name].first,
                    unknown_rows(fitted.vocabularies[name]),
                )
                for name in whole.column_names
            },
            start=start,
            earlier=None if start is None else read_earlier(start, fitted, config),
        )

    def cut(self, seconds: float) -> list[Window]:
        times = self.sessions[TIMESTAMP].combine_chunks()
        offsets = times.offsets.to_numpy()
        lengths = np.diff(offsets)
        long_enough = lengths >= self.fitted.recipe.min_session_length
        if not long_enough.any():
            raise ArtifactError("The data hold no session to train on. Preprocess a longer log.")
        ends = times.values.to_numpy()[np.maximum(offsets[1:] - 1, 0)]
        return cut_windows(ends, seconds, long_enough)

    def begin(self) -> State:
        """Nothing is known, but for the values that an earlier run knew."""
        rows = {
            name: np.arange(feature.first)
            if self.earlier is None
            else np.flatnonzero(self.earlier.rows[name] >= 0)
            for name, feature in self.features.items()
        }
        return State(Catalogue(rows=rows), self.earlier, None)

    def learn(
        self, state: State, seen: list[Window], scratch: Path, *, everything: bool
    ) -> tuple[State, dict[str, Any]]:
        """Train on the last window of `seen`; `everything`: whatever else has an index comes too.

        Such are values that occurred only in interactions that preprocessing cut off.
        """
        from pipeline.training.trainer import Trainer

        sessions = self.sessions.take(seen[-1].sessions)
        occurred = {
            name: np.arange(feature.num_rows)
            if everything
            else np.unique(np.concatenate([flat(sessions, column) for column in feature.columns]))
            for name, feature in self.features.items()
        }
        before = {name: len(rows) for name, rows in state.catalogue.rows.items()}
        catalogue = state.catalogue.extended(occurred)
        model = self._model(catalogue, seen)
        if state.earlier is not None:
            earlier = _at(state.earlier, catalogue)
            if self.start is not None and state.model is None:
                check_shapes(self.start, model, self._config(), earlier)
            alike = None
            if self.train.new_items == "features":
                names = item_features(self.fitted)
                values = features_of_items(
                    self._sessions_of(seen), names, self.features[ITEM].num_rows
                )
                alike = values[catalogue.rows[model.inputs.item]]
            carry_over(model, self.config, earlier, alike=alike)
        recipe = self.fitted.recipe
        rows = trainable(sessions, recipe.max_sequence_length + 1, recipe.min_session_length)
        write_part(mapped(rows, catalogue, self.features), scratch, "train")
        one = Processes()
        trainer = Trainer(
            model,
            self.train,
            train_loader=training_loader(scratch, model, self.train, one),
            valid_loader=None,
            log_path=scratch / LOG_FILE,
            processes=one,
        )
        result = trainer.train()
        check_finite(model)
        places = {
            name: catalogue.places(name, feature.num_rows)
            for name, feature in self.features.items()
        }
        told = {
            "trained_sessions": rows.num_rows,
            "catalogue_items": len(catalogue.rows[ITEM]) - FIRST_ITEM,
            "new_items": len(catalogue.rows[ITEM]) - before[ITEM],
            "steps": result.global_step,
            "epochs": trainer.state.epoch or 0.0,
            "train_loss": result.training_loss,
            "device": str(trainer.args.device),
        }
        return State(catalogue, Earlier(model.state_dict(), places), model), told

    def evaluate(
        self, state: State, seen: list[Window], window: Window, scratch: Path
    ) -> dict[str, Any] | None:
        """Every target of a window among the items of those before; None if it has no target."""
        assert state.model is not None  # noqa: S101
        sessions = mapped(self.sessions.take(window.sessions), state.catalogue, self.features)
        write_part(sessions, scratch, "valid")
        interactions = interactions_of(sessions)
        targets = describe_targets(interactions, "all")
        if not len(targets.items):
            return None
        model = state.model.eval()
        ranked = rank_targets(model, evaluation_loader(scratch, "valid", model), "all")
        # baselines and sessions are of the same targets as the model
        assert np.array_equal(targets.items, ranked.targets)  # noqa: S101
        ranks = {"model": ranked.ranks}
        history = interactions_of(mapped(self._sessions_of(seen), state.catalogue, self.features))
        longest = self.fitted.recipe.max_sequence_length
        before = prefixes(interactions.values, interactions.offsets, "all", longest)
        num_rows = len(state.catalogue.rows[ITEM])
        for name in ("popularity", "sequential-rules"):
            baseline = BASELINES[name](history.values, history.offsets, num_rows)
            found = rank_by_baseline(baseline, *before, num_items=num_rows - FIRST_ITEM)
            ranks[name] = found.ranks
        worth = {name: gains(found, DEFAULT_CUTOFFS, _METRICS) for name, found in ranks.items()}
        return {
            "targets": len(ranked.ranks),
            "unknown_targets": int((ranked.targets < FIRST_ITEM).sum()),
            "results": {
                name: {metric: float(values.mean()) for metric, values in found.items()}
                for name, found in worth.items()
            },
            "margins": {
                name: {metric: margin(values, targets.sessions) for metric, values in found.items()}
                for name, found in worth.items()
            },
        }

    def final(self, state: State) -> Model:
        """The model after the last window, its rows in the order of the data's catalogue."""
        assert state.earlier is not None  # noqa: S101
        longest = self.fitted.recipe.max_sequence_length
        model = build_model(self.schema, self._config(), longest, self.train, self.known)
        carry_over(model, self.config, state.earlier)
        return model

    def _model(self, catalogue: Catalogue, seen: list[Window]) -> Model:
        rows = {
            column: len(catalogue.rows[name])
            for name, feature in self.features.items()
            for column in feature.columns
        }
        columns = tuple(
            replace(column, num_rows=rows.get(column.name, column.num_rows))
            for column in self.schema
        )
        longest = self.fitted.recipe.max_sequence_length
        known = self._known(catalogue, seen)
        return build_model(Schema(columns), self._config(), longest, self.train, known)

    def _config(self) -> ModelConfig:
        """With the widths that the whole catalogue asks for: they must not grow with it."""
        if not self.config.infer_embedding_sizes:
            return self.config
        widths = {
            name: embedding_size(feature.num_rows, self.config.infer_embedding_sizes_multiplier)
            for name, feature in self.features.items()
            if name != ITEM
        }
        return self.config.model_copy(
            update={"embedding_dims": widths | self.config.embedding_dims}
        )

    def _known(self, catalogue: Catalogue, seen: list[Window]) -> FromData:
        """What the whole data say, for the rows of a catalogue; items counted in its windows."""
        rows = {name: torch.from_numpy(indices) for name, indices in catalogue.rows.items()}
        vectors = {
            place: matrix[rows[self.config.pretrained[place].feature]]
            for place, matrix in self.known.vectors.items()
        }
        weights = self.known.weights
        if weights is not None and self.train.weights is not None:
            weights = weights[rows.get(self.train.weights.feature, slice(None))]
        counts = None
        if self.known.item_counts is not None:
            every = np.bincount(
                flat(self._sessions_of(seen), ITEM), minlength=self.features[ITEM].num_rows
            )
            counts = torch.from_numpy(every)[rows[ITEM][FIRST_ITEM:]]
        newest = None
        if self.known.newest is not None:
            newest = int(flat(self._sessions_of(seen), TIMESTAMP).max())
        begun = {}
        if self.known.item_vectors:
            sessions = self._sessions_of(seen)[ITEM].combine_chunks()
            items = sessions.flatten().to_numpy(), sessions.offsets.to_numpy()
            for width in self.known.item_vectors:
                found = co_visitation_vectors(
                    *items, self.features[ITEM].num_rows, width, self.train.seed
                )
                begun[width] = torch.from_numpy(found)[rows[ITEM]]
        return FromData(
            vectors=vectors,
            item_vectors=begun,
            item_counts=counts,
            positives=self.known.positives,
            weights=weights,
            newest=newest,
        )

    def _sessions_of(self, seen: list[Window]) -> pa.Table:
        return self.sessions.take(np.concatenate([window.sessions for window in seen]))


def _at(earlier: Earlier, catalogue: Catalogue) -> Earlier:
    """For the rows of a catalogue in place of those of the data."""
    rows = {name: earlier.rows[name][indices] for name, indices in catalogue.rows.items()}
    return Earlier(earlier.weights, rows)

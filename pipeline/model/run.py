"""A run: the directory that `pipeline train` wrote, or a model in memory with its data."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from numpy.typing import NDArray

from pipeline.core.artifact import new_artifact, read_json, read_manifest, write_json
from pipeline.core.columns import SCHEMA_FILE
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.data.batch import SessionBatch
from pipeline.data.directory import Data
from pipeline.data.fitted import Fitted
from pipeline.data.index_mapping import TRAINED_ON, rows_for
from pipeline.data.loader import RaggedBatch, SessionLoader
from pipeline.model.model import Model
from pipeline.model.model_files import MODEL_FILE, WEIGHTS_FILE, load_model, write_tensors
from pipeline.model.program import read_program, write_program

PROGRAM = "program"
"""Key of the description of a run whose model is a program."""
_SESSIONS = 33


@dataclass(frozen=True)
class Run:
    """Trained weights with their fitted state; make one with `open`.

    The manifest is checked when the directory is opened; weights and state are read at first use.
    """

    path: Path
    facts: dict[str, Any] = field(repr=False, compare=False)
    """Facts of the manifest: model and train settings, losses, metrics, seconds."""
    in_memory: bool = field(default=False, repr=False)
    """Whether the model is only in memory; `path` is then just its name."""

    @classmethod
    def open(cls, path: "Path | str | Run") -> Self:
        """Open a run and check every file against the manifest. An open run is returned unchanged.

        ArtifactError if the directory is missing, incomplete or damaged.
        """
        if isinstance(path, Run):
            return path  # type: ignore[return-value]
        if not isinstance(path, str | Path):
            raise ConfigError(f"Expected a run or its path, got {type(path).__name__}.")
        path = Path(path)
        return cls(path, read_manifest(path, "run"))

    @classmethod
    def of(cls, model: Model, data: Data | Path | str, name: str = "model") -> Self:
        """Make a run of a model in memory, usable like a run of a directory.

        `data` is the training data of the model. ConfigError if the model does not fit it.
        """
        if not isinstance(model, Model):
            raise ConfigError(f"Expected a run, its path or a Model, got {type(model).__name__}.")
        data = Data.open(data)
        check_fits(model, data)
        run = cls(Path(name), {TRAINED_ON: data.training_fingerprint}, in_memory=True)
        run.__dict__.update(model=model.eval(), fitted=data.fitted)  # in place of reading files
        return run

    @classmethod
    def save(cls, model: Model, data: Data | Path | str, out: Path | str) -> Self:
        """Write a run of a model built in Python, and open it.

        The run holds the weights and a program, which predicts without the model's Python code: the
        command line can evaluate, predict, recommend and export, but not train it further, and has
        no attention weights. ConfigError if the model does not fit `data`, PipelineError if it
        cannot be made a program.
        """
        data, out = Data.open(data), Path(out)
        run = cls.of(model, data)
        facts = {
            "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "model": {},
            "train": {},
            **run.facts,
        }
        with new_artifact(out, "run", facts) as directory:
            facts["model"] = write_program_run(directory, data, model)
        return cls.open(out)

    @property
    def name(self) -> str:
        """Name of the directory."""
        return self.path.resolve().name

    @cached_property
    def fitted(self) -> Fitted:
        """Fitted state of the data that the run was trained on."""
        return Fitted.read(self.path)

    @cached_property
    def model(self) -> Model:
        """The trained model in evaluation mode, on the CPU."""
        description = read_json(self.path / MODEL_FILE).get(PROGRAM)
        if description is not None:
            try:
                return read_program(self.path, description)
            except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
                line = " ".join(str(error).split())[:200]
                raise ArtifactError(f"{self.path} does not hold a program: {line}") from None
        return load_model(self.path, self.fitted)

    def index_mapping(self, data: Data) -> dict[str, NDArray[Any]]:
        """Index of the run for each index of the data, (V,) by column.

        Columns with equal vocabularies are left out. ArtifactError unless the data are those of the
        run or extend them.
        """
        return rows_for(self.path, self.fitted, data)

    def was_trained_on(self, data: Data) -> bool:
        """Whether the run was trained on the train part of the data, by the manifest."""
        return self.facts.get(TRAINED_ON) in (None, data.training_fingerprint)


def write_program_run(directory: Path, data: Data, model: Model) -> dict[str, Any]:
    """Write a model as a program, with all inputs of serving and evaluation; return its
    settings."""
    was_training, device = model.training, model.device
    model.to("cpu").eval()
    try:
        description = write_program(directory, model, _sessions(model, data))
        write_tensors(model.state_dict(), directory / WEIGHTS_FILE)
    finally:
        model.to(device).train(was_training)
    write_json(directory / MODEL_FILE, {PROGRAM: description})
    data.fitted.write(directory)
    (directory / SCHEMA_FILE).write_bytes((data.path / SCHEMA_FILE).read_bytes())
    blocks = [type(block).__name__ for head in model.all_heads for block in head.body.blocks]
    return {"architecture": PROGRAM, "blocks": blocks}


def _sessions(model: Model, data: Data) -> list[SessionBatch]:
    """Training batches of different numbers and lengths of sessions, the first two of the longest
    ones."""
    features = list(model.inputs.feature_names)
    loader = SessionLoader(
        data.path, "train", item=model.inputs.item, features=features, batch_size=_SESSIONS
    )
    sessions: RaggedBatch = next(iter(loader))
    longest = model.inputs.max_sequence_length
    assert longest is not None  # noqa: S101  `check_fits`
    rows = torch.arange(len(sessions.lengths), device=sessions.lengths.device)
    starts = (sessions.lengths - longest).clamp(min=0)
    one = sessions.lengths - 1
    batches = [
        sessions.window(rows[:2], starts[:2], sessions.lengths[:2], longest),
        sessions.window(rows[:1], starts[:1], sessions.lengths[:1]),
        sessions.window(rows, starts, sessions.lengths),
        sessions.window(rows[:5], one[:5], sessions.lengths[:5]),
    ]
    return [batch.to("cpu") for batch in batches]


def check_fits(model: Model, data: Data) -> None:
    """ConfigError unless the model reads columns of the data and has a row for each item.

    A run also needs float32 weights and L, as all ways of prediction share both.
    """
    read = set(model.inputs.feature_names)
    others = [set(head.body.inputs.feature_names) - read for head in model.all_heads]
    if names := sorted(set().union(*others)):
        raise ConfigError(
            f"A body of the model reads {names[0]!r}, and the one of the first head does not. "
            "Bodies of a run read the same columns: give them the same schema."
        )
    missing = [name for name in model.inputs.feature_names if name not in data.schema.column_names]
    if missing:
        raise ConfigError(
            f"The model reads {missing[0]!r}, and {data.path} has no such column. It has: "
            f"{', '.join(data.schema.column_names)}. Rename the columns of your sessions so (in "
            "NVTabular by ops.Rename), and train on these names."
        )
    rows = model.inputs.item_table.num_embeddings
    if rows != data.fitted.item.num_rows:
        raise ConfigError(
            f"The model has {rows} rows for items, {data.path} has {data.fitted.item.num_rows}. "
            "Build it from the schema of these data."
        )
    types = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if types:
        raise ConfigError(
            f"The model has weights of {types.pop()}, expected float32. Call `model.float()`."
        )
    if model.inputs.max_sequence_length is None:
        raise ConfigError(
            "The model has no `max_sequence_length`, so nothing says how much of a session it "
            f"reads. Build its inputs with one, as {data.recipe.max_sequence_length} of the data."
        )

"""A model as a program: TorchScript that predicts without the Python code of the model.

The run of a model built in Python, or with plugins, holds its program, so that the command line can
evaluate, predict, recommend and export. A program has no loss, so it cannot be trained further, and
no attention weights.

Shape letters: B sessions, L positions, Q and W width of queries and items, N targets, V rows of the
item table.
"""

import io
import warnings
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from pipeline.core.errors import ArtifactError, ConfigError, PipelineError
from pipeline.core.program_check import RefusedProgramError, checked_program, refused_part
from pipeline.data.batch import SessionBatch, newest
from pipeline.model.head import Head
from pipeline.model.model import Model, SessionAnswer
from pipeline.model.model_files import read_tensors, write_tensors
from pipeline.model.repeats import Repeats
from pipeline.model.sealed import SealedInputs, SealedModel
from pipeline.model.target_labels import Units
from pipeline.model.tasks.targets import (
    BinaryClassificationTask,
    ColumnValues,
    RegressionTask,
    TargetTask,
)
from pipeline.recipe.choices import ranking_expression

PROGRAM_FILE = "program.pt"
STATE_FILE = "program.safetensors"
_TOLERANCE = 1e-4
_NO_PARTS = (
    "The run holds a program, which predicts and cannot be trained. Train the model where it is "
    "made."
)


class _Answers(nn.Module):
    """Wrapper of a model with a single output tensor, for `torch.jit.trace`."""

    def __init__(self, model: Model, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, lengths: Tensor, *features: Tensor) -> Tensor:
        """(B,), features in the order of `names` -> (B, Q + N)."""
        batch = SessionBatch(dict(zip(self.names, features, strict=True)), lengths)
        answer = self.model.answer(batch)
        columns = [] if answer.queries is None else [answer.queries]
        columns += [values.unsqueeze(1) for values in answer.targets.values()]
        return torch.cat([column.float() for column in columns], 1)


class ProgramModel(SealedModel):
    """A model whose encoder is a program; it predicts only the newest position of a session."""

    no_parts = _NO_PARTS
    """Message of `NoPartsError`."""

    def __init__(
        self, program: torch.jit.ScriptModule, description: dict[str, Any], state: dict[str, Tensor]
    ) -> None:
        nn.Module.__init__(self)
        self.program = program
        self._inputs = SealedInputs(
            description["item"],
            description["features"],
            description["max_sequence_length"],
            description["rows"],
        )
        tasks = _target_tasks(description["targets"], state)
        self.tasks = nn.ModuleList(task for task in tasks if not task.per_item)
        self._item_tasks = nn.ModuleList(task for task in tasks if task.per_item)
        self.register_buffer("item_vectors", state.get("items"))
        if description.get("rank_by") is not None:
            self.rank_by = ranking_expression(description["rank_by"], self.item_target_names)
        if description.get("repeats") is not None:
            self.repeats = Repeats(**description["repeats"])

    item_vectors: Tensor | None
    """(V - 3, W), None without a next-item task."""

    @property
    def ranks_items(self) -> bool:
        """Whether a task predicts the next item."""
        return self.item_vectors is not None

    @property
    def target_tasks(self) -> list[tuple[Head, TargetTask]]:
        """The target tasks, for their labels; their heads are in the program."""
        return [(None, task) for task in self.tasks if isinstance(task, TargetTask)]  # type: ignore[misc]

    @property
    def item_tasks(self) -> list[TargetTask]:
        """The tasks with a target for each candidate item, for their labels and units."""
        return [task for task in self._item_tasks if isinstance(task, TargetTask)]

    def answer(self, batch: SessionBatch) -> SessionAnswer:
        """Queries and predictions for a server."""
        inputs = self.inputs
        batch = newest(batch, inputs.max_sequence_length)
        features = [batch.features[name] for name in inputs.feature_names]
        output = self.program(batch.lengths, *features)
        width = self.query_width
        names = [task.task_name for _, task in self.target_tasks]
        targets = {name: output[:, width + column] for column, name in enumerate(names)}
        return SessionAnswer(output[:, :width] if self.ranks_items else None, targets)

    def session_queries(self, batch: SessionBatch) -> Tensor:
        """(B, Q) queries of the newest position."""
        queries = self.answer(batch).queries
        if queries is None:
            raise ConfigError("The model does not predict the next item.")
        return queries

    def items(self, positions: Tensor | None = None) -> Tensor:
        """(V - 3, W) in catalogue order, or (C, W) of (C,) catalogue `positions`."""
        assert self.item_vectors is not None  # noqa: S101
        return self.item_vectors if positions is None else self.item_vectors[positions]

    def predict_targets(self, batch: SessionBatch) -> dict[str, Tensor]:
        """Predictions of the target tasks by name, (B,) or (B, L).

        In (B, L) only the newest position is predicted; the others are 0.
        """
        values = self.answer(batch).targets
        last = (batch.lengths - 1).clamp(min=0)[:, None]
        for _, task in self.target_tasks:
            if not task.of_session:
                newest_value = values[task.task_name][:, None]
                wide = newest_value.new_zeros(len(last), batch.width)
                values[task.task_name] = wide.scatter(1, last, newest_value)
        return values

    @property
    def device(self) -> torch.device:
        """The CPU: a program stays on the device on which it was traced."""
        return torch.device("cpu")

    def to(self, *_arguments: Any, **_keywords: Any) -> Self:
        """Return the model unchanged: a program stays on the device on which it was traced."""
        return self

    @property
    def width(self) -> int:
        """E, 0 without a next-item task."""
        if self.item_vectors is None:
            return 0
        others = len(self._item_tasks) + (self.repeats is not None)
        return int(self.item_vectors.size(1)) - others

    @property
    def query_width(self) -> int:
        """Q, 0 without a next-item task."""
        repeats = 0 if self.repeats is None else 1 + self.repeats.width
        return self.width + len(self._item_tasks) * (self.width + 1) + repeats


def write_program(directory: Path, model: Model, batches: list[SessionBatch]) -> dict[str, Any]:
    """Trace a model, write the program to `directory`, and return its description.

    `batches` differ in the number and lengths of sessions: the program is traced on the first, and
    must predict like the model on all. PipelineError otherwise.
    """
    names = list(model.inputs.feature_names)
    for task in model.all_targets:
        _check_labels(task)
    model = model.eval()
    answers = _Answers(model, names)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            traced = torch.jit.trace(answers, _arguments(batches[0], names), check_trace=False)
        except RuntimeError as error:
            line = " ".join(str(error).split())[:200]
            raise PipelineError(f"The model cannot be traced as a program: {line}") from None
        program = torch.jit.freeze(traced.eval())
        for batch in batches:
            _check_same(answers, program, batch, names)
        save_program(program, directory / PROGRAM_FILE)
        state = {"items": model.items().detach().cpu().clone()} if model.ranks_items else {}
    targets = []
    for task in model.all_targets:
        targets.append(_described(task))
        table = task.target.table
        if table is not None:
            state[f"labels.{task.task_name}"] = table.cpu()
    write_tensors(state, directory / STATE_FILE)
    inputs = model.inputs
    return {
        "item": inputs.item,
        "features": names,
        "max_sequence_length": inputs.max_sequence_length,
        "rows": {name: _rows_of(inputs, name) for name in names if name in inputs.index_columns},
        "targets": targets,
        "rank_by": None if model.rank_by is None else model.rank_by.text,
        "repeats": None if model.repeats is None else asdict(model.repeats),
    }


def read_program(directory: Path, description: dict[str, Any]) -> ProgramModel:
    """Read a program that `write_program` wrote.

    ArtifactError, before loading, for a program with an operator that no model needs.
    """
    path = directory / PROGRAM_FILE
    try:
        with checked_program(path) as copy:
            program = torch.jit.load(copy, map_location="cpu")
    except RefusedProgramError as error:
        raise ArtifactError(str(error)) from None
    except (RuntimeError, ValueError, IndexError) as error:
        line = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{path} is not a program: {line}") from None
    return ProgramModel(program, description, read_tensors(directory / STATE_FILE)).eval()


def _rows_of(inputs: Any, name: str) -> int:
    return int(inputs.table(inputs.index_columns[name]).num_embeddings)


def _arguments(batch: SessionBatch, names: list[str]) -> tuple[Tensor, ...]:
    return batch.lengths, *(batch.features[name] for name in names)


def _check_same(
    answers: nn.Module, program: torch.jit.ScriptModule, batch: SessionBatch, names: list[str]
) -> None:
    arguments = _arguments(batch, names)
    try:
        expected, actual = answers(*arguments), program(*arguments)
    except RuntimeError as error:
        line = " ".join(str(error).split())[-200:]
        raise PipelineError(
            f"The program does not run for {len(batch.lengths)} sessions: {line}"
        ) from None
    size = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    difference = float((expected - actual).abs().max()) / size if expected.numel() else 0.0
    if not difference <= _TOLERANCE:
        raise PipelineError(
            f"The program differs from the model by {difference:.2g} of its numbers, allowed is "
            f"{_TOLERANCE:.0e}. Does a block of the model depend on the number or length of the "
            "sessions?"
        )


def _check_labels(task: TargetTask) -> None:
    """PipelineError for a task whose labels are not a plain column.

    The program holds the predictions of any task but those per item; it does not hold code that
    computes labels.
    """
    own = ["labels", "has_target", "in_units", "of_session"]
    own += ["predictions"] if task.per_item else []
    names = [n for n in own if getattr(type(task), n) not in _methods(n)]
    if names or type(task.target) is not ColumnValues:
        raise PipelineError(
            f"The task {task.task_name!r} has {names[0] if names else 'a target'} of its own, "
            "which a program does not hold. Make a column of what it computes, before training."
        )


def _methods(name: str) -> list[Any]:
    return [getattr(c, name) for c in (TargetTask, BinaryClassificationTask, RegressionTask)]


def _described(task: TargetTask) -> dict[str, Any]:
    is_binary = isinstance(task, BinaryClassificationTask)
    units = None if is_binary else getattr(task, "units", Units())
    return {
        "name": task.task_name,
        "column": task.target.column,
        "summary": task.summary_type,
        "per_item": task.per_item,
        "units": None if units is None else asdict(units),
    }


def _target_tasks(targets: list[dict[str, Any]], state: dict[str, Tensor]) -> list[TargetTask]:
    """Tasks without layers, which describe the target columns."""
    tasks: list[TargetTask] = []
    for target in targets:
        column = ColumnValues(target["column"], state.get(f"labels.{target['name']}"))
        options = {
            "task_name": target["name"],
            "summary_type": target["summary"],
            "per_item": target.get("per_item", False),
        }
        if target["units"] is None:
            tasks.append(BinaryClassificationTask(column, **options))
        else:
            tasks.append(RegressionTask(column, units=Units(**target["units"]), **options))
    return tasks


def save_program(program: torch.jit.ScriptModule, path: Path) -> None:
    """Write a program without its debugging records: they hold pickled source positions.

    PipelineError for an operator that readers of programs refuse.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(program, buffer)
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(path, "w") as stripped:
        for record in whole.infolist():
            if not record.filename.endswith(".debug_pkl"):
                stripped.writestr(record, whole.read(record))
    try:
        part = refused_part(path)
    except RefusedProgramError as error:
        raise PipelineError(str(error)) from None
    if part is not None:
        raise PipelineError(
            f"The model would be a program with {part}. Readers refuse it. Use operators on "
            "tensors alone."
        )

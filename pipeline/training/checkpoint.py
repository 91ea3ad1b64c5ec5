"""Checkpoints of a training in progress.

They are directories in a hidden folder beside the run, with safetensors and JSON, complete or
absent like other artifacts: the manifest of hashes is written last. `resumable_trainer.py` defines
their content.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.core.artifact import new_artifact, read_json, read_manifest
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.core.manifest import MANIFEST
from pipeline.model.model_files import read_tensors, write_tensors
from pipeline.training.distributed.processes import Processes, gather_bytes

logger = logging.getLogger(__name__)

_KIND = "checkpoint"
_TENSORS_FILE = "state.safetensors"
_STATE_FILE = "state.json"
_NUM_KEPT = 2
"""Number of checkpoints on disk: if the latest is damaged, the previous one is used."""


class TrainingAbandoned(Exception):  # noqa: N818  (a callback's decision, not a failure)
    """Raised by a callback to end a training for good; its checkpoints are removed."""


class Checkpoints:
    """Checkpoints of one training, identified by its fingerprint and the number of processes."""

    def __init__(self, out: Path, fingerprint: str, processes: Processes = Processes()) -> None:  # noqa: B008  (a constant)
        """`out` is the directory of the run, `fingerprint` that of recipe and data."""
        out = out.resolve()
        self.folder = out.parent / f".{out.name}.checkpoints"
        self.fingerprint = fingerprint
        self.processes = processes
        self.last_step: int | None = None
        """Step of the latest checkpoint that was read or written."""

    def latest(self) -> Path | None:
        """Path of the latest complete checkpoint; None if there is none to continue from.

        The first process decides for all; it logs the step, or why existing checkpoints do not fit.
        """
        path = self._latest_of_training() if self.processes.is_first else None
        name = gather_bytes(b"" if path is None else path.name.encode())[0].decode()
        return self.folder / name if name else None

    @contextmanager
    def write(self, step: int) -> Iterator[Path]:
        """Yield a directory that becomes the latest checkpoint; remove the oldest checkpoints."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:010d}"
        facts = {"step": step, "processes": self.processes.count}
        with new_artifact(path, _KIND, facts, fingerprint=self.fingerprint) as directory:
            yield directory
        self.last_step = step
        # if training continued from an older checkpoint, those of higher steps are outdated
        kept = [p for p in self._all() if p.name <= path.name][:_NUM_KEPT]
        for other in self.folder.iterdir():
            if other not in kept:
                shutil.rmtree(other, ignore_errors=True)

    def remove(self) -> None:
        """Remove all checkpoints in the first process, at the end of training."""
        if self.processes.is_first:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _latest_of_training(self) -> Path | None:
        """Latest complete checkpoint. ArtifactError if all checkpoints of this training are
        damaged."""
        reason = None
        damaged = []
        for path in self._all():
            try:
                facts = read_manifest(path, _KIND)
            except ArtifactError as error:
                damaged.append((path, str(error)))
                continue
            if read_json(path / MANIFEST).get("fingerprint") != self.fingerprint:
                reason = reason or "are of another recipe or other data"
            elif facts["processes"] != self.processes.count:
                reason = (
                    f"are of {facts['processes']} processes, this training has "
                    f"{self.processes.count}"
                )
            else:
                for other, damage in damaged:
                    logger.warning("%s", damage)
                    shutil.rmtree(other, ignore_errors=True)  # its step is written again
                self.last_step = facts["step"]
                logger.info("Continuing from step %s.", f"{self.last_step:,}")
                return path
        if reason is None and any(self._may_be_ours(path) for path, _ in damaged):
            raise ArtifactError(
                f"No checkpoint in {self.folder} is whole: {damaged[0][0].name} is damaged. To "
                "train anew, give --restart, or remove that folder."
            )
        if reason is not None or damaged:
            reason = reason or "are of another recipe or other data"
            logger.info("Starting anew: the checkpoints in %s %s.", self.folder, reason)
        return None

    def _may_be_ours(self, path: Path) -> bool:
        """Whether a damaged checkpoint is, or may be, of this training."""
        try:
            read_manifest(path, _KIND, check_files=False)
        except ArtifactError:
            return True
        return bool(read_json(path / MANIFEST).get("fingerprint") == self.fingerprint)

    def _all(self) -> list[Path]:
        """All checkpoints, latest first, including damaged ones."""
        return sorted(self.folder.glob("step-*"), reverse=True)


def write_state(directory: Path, state: Any) -> None:
    """Write nested dicts, lists, tuples, numbers, text and tensors. ConfigError for other
    values."""
    tensors: dict[str, Tensor] = {}
    packed = _pack(state, tensors)
    write_tensors(tensors, directory / _TENSORS_FILE)
    # unlike `write_json` it allows infinity, the best value before the first validation
    (directory / _STATE_FILE).write_text(json.dumps(packed) + "\n", encoding="utf-8")


def read_state(directory: Path) -> Any:
    """Return the state that `write_state` wrote. ArtifactError if the files do not fit."""
    packed = read_json(directory / _STATE_FILE, constants=True)
    tensors = read_tensors(directory / _TENSORS_FILE)
    try:
        return _unpack(packed, tensors)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        line = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{directory / _STATE_FILE} is not a state: {line}") from None


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON of `value`; other types become a dict whose only key is the name of the type."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_pack(k, tensors), _pack(v, tensors)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_pack(v, tensors) for v in value]}
    if isinstance(value, list):
        return [_pack(v, tensors) for v in value]
    if value is None or isinstance(value, bool | int | float | str | np.generic):
        return value.item() if isinstance(value, np.generic) else value
    raise ConfigError(
        f"The optimizer, the scheduler or a callback has a {type(value).__name__} as its state, "
        "which no checkpoint can hold; expected numbers, text and tensors. Use another one."
    )


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    [(kind, inner)] = value.items()
    match kind:
        case "tensor":
            return tensors[inner]
        case "tuple":
            return tuple(_unpack(v, tensors) for v in inner)
        case _:
            return {_unpack(k, tensors): _unpack(v, tensors) for k, v in inner}

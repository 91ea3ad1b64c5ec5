"""Checkpoints of a training that is under way, so that no work is lost when it is killed.

They stand in a hidden folder beside the run that is to be written, each a directory that is whole
or absent, as other artifacts are: safetensors and JSON, a manifest of hashes written last. Every
one holds all that is needed to go on, the best weights so far among it.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from pipeline.core.artifact import current_facts, new_artifact, read_json
from pipeline.core.errors import ConfigError
from pipeline.model.build import write_tensors

KIND = "checkpoint"
_TENSORS_FILE = "state.safetensors"
_STATE_FILE = "state.json"
_KEPT = 2
"""Newest checkpoints: should one be damaged, the one before is there."""


class Abandoned(Exception):  # noqa: N818  (nothing went wrong)
    """What a callback raises to end a training that is not to go on later."""


class Checkpoints:
    """The checkpoints of one training: of what it is made, by how many processes.

    `fingerprint` stands for recipe and data, as `pipeline.data.fingerprint` tells them.
    """

    def __init__(self, out: Path, fingerprint: str, processes: int = 1) -> None:
        out = out.resolve()
        self.folder = out.parent / f".{out.name}.checkpoints"
        self.fingerprint = fingerprint
        self.processes = processes
        self.last_step: int | None = None
        """Of the newest that was found or written."""

    def newest(self) -> tuple[Path | None, str | None]:
        """The newest whole one of this training; or None and why those that are there are none."""
        reason = None
        for path in self._all():
            facts = current_facts(path, KIND, self.fingerprint)
            if facts is None:
                reason = reason or "are damaged, or of another recipe or of other data"
            elif facts["processes"] != self.processes:
                reason = (
                    f"are of {facts['processes']} processes, this training has {self.processes}"
                )
            else:
                self.last_step = facts["step"]
                return path, None
        return None, reason

    @contextmanager
    def write(self, step: int) -> Iterator[Path]:
        """A directory to fill; it becomes the newest checkpoint, and the oldest go."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:010d}"
        facts = {"step": step, "processes": self.processes}
        with new_artifact(path, KIND, facts, fingerprint=self.fingerprint) as directory:
            yield directory
        self.last_step = step
        # after a restart from an older one, those with higher numbers are not newer
        kept = [p for p in self._all() if p.name <= path.name][:_KEPT]
        for other in self.folder.iterdir():
            if other not in kept:
                shutil.rmtree(other, ignore_errors=True)

    def remove(self) -> None:
        """Remove all of them: the training is done, or is not to go on."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _all(self) -> list[Path]:
        """Newest first, damaged ones too."""
        return sorted(self.folder.glob("step-*"), reverse=True)


def link_or_copy(source: Path, target: Path) -> None:
    """The same file in another directory, without its bytes twice where the disk can do that."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Write tensors as they are; such as share their memory are written twice."""
    seen: set[int] = set()
    separate = {}
    for name, value in weights.items():
        value = value.detach().cpu().contiguous()
        if value.data_ptr() in seen:
            value = value.clone()
        seen.add(value.data_ptr())
        separate[name] = value
    write_tensors(separate, path)


def write_state(directory: Path, state: Any) -> None:
    """Write dicts, lists, tuples, numbers, text and tensors, nested in any way.

    ConfigError if there is anything else, which no checkpoint can hold.
    """
    tensors: dict[str, Tensor] = {}
    packed = _pack(state, tensors)
    write_weights(directory / _TENSORS_FILE, tensors)
    # unlike other JSON of ours this may hold infinity: a best value before the first validation
    text = json.dumps(packed)
    (directory / _STATE_FILE).write_text(text + "\n", encoding="utf-8")


def read_state(directory: Path) -> Any:
    """What `write_state` wrote."""
    return _unpack(read_json(directory / _STATE_FILE), load_file(directory / _TENSORS_FILE))


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON in place of `value`; what JSON cannot tell apart stands in a dict of one entry."""
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
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
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

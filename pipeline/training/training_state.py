"""How far a training is: from a Trainer into a checkpoint and back."""

import base64
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.trainer_callback import ExportableState

from pipeline.training.checkpoint import link_or_copy, read_state, write_state, write_weights

if TYPE_CHECKING:
    from pipeline.training.trainer import Trainer

_WEIGHTS_FILE = "model.safetensors"
_BEST_FILE = "best.safetensors"
_LOG_FILE = "metrics.jsonl"
_HUGGING_FACE_STATE = "trainer_state.json"
"""Its name is Hugging Face's, who reads it."""


def write_training(
    trainer: "Trainer", directory: Path, random_states: list[dict[str, Any]]
) -> None:
    """All that is needed to go on; `random_states` of each process, by rank."""
    write_weights(directory / _WEIGHTS_FILE, trainer.session_model.state_dict())
    best = trainer.best
    if best is not None and best.weights is not None:
        if best.step == trainer.state.global_step:
            link_or_copy(directory / _WEIGHTS_FILE, directory / _BEST_FILE)
        else:
            write_weights(directory / _BEST_FILE, best.weights)
    if trainer.log_path is not None and trainer.log_path.exists():
        (directory / _LOG_FILE).write_bytes(trainer.log_path.read_bytes())
    assert trainer.optimizer is not None  # noqa: S101
    assert trainer.lr_scheduler is not None  # noqa: S101
    scaler = getattr(trainer.accelerator, "scaler", None)
    assert trainer.optimizer is not None  # noqa: S101
    assert trainer.lr_scheduler is not None  # noqa: S101
    write_state(
        directory,
        {
            "optimizer": trainer.optimizer.state_dict(),
            "scheduler": trainer.lr_scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "callbacks": [
                [type(callback).__name__, callback.state()["attributes"]]
                for callback in _stateful_callbacks(trainer)
            ],
            "random": random_states,
            "loss": float(trainer._tr_loss),
            "total_loss": trainer._total_loss_scalar,
            "logged_step": trainer._globalstep_last_logged,
            "stopped": trainer.control.should_training_stop,
            "seconds": trainer.stopwatch.seconds(),
        },
    )
    trainer.state.save_to_json(str(directory / _HUGGING_FACE_STATE))


def write_parts(trainer: "Trainer", directory: Path | None) -> None:
    """The rows of a sharded table that other processes hold; all of them take part."""
    if trainer.sharding is None:
        return
    best = trainer.best
    assert trainer.optimizer is not None  # noqa: S101
    # the best weights that are those of this checkpoint are not sent twice
    later = best is not None and best.step != trainer.state.global_step
    trainer.sharding.write(
        directory,
        trainer.sharding.parts(
            getattr(trainer.optimizer, "optimizer", trainer.optimizer),
            best.weights if best is not None and later else None,
        ),
    )


def read_training(trainer: "Trainer", directory: Path) -> dict[str, Any]:
    """Put back weights, log and callbacks; return the rest, for when the Trainer has made its."""
    sharding, weights = trainer.sharding, load_file(directory / _WEIGHTS_FILE)
    trainer.session_model.load_state_dict(
        weights if sharding is None else sharding.read(directory, weights)
    )
    if trainer.best is not None and (directory / _BEST_FILE).exists():
        best = load_file(directory / _BEST_FILE)
        trainer.best.weights = best if sharding is None else sharding.read_best(directory, best)
    if trainer.log_path is not None and trainer.processes.is_first:
        log = directory / _LOG_FILE
        trainer.log_path.write_bytes(log.read_bytes() if log.exists() else b"")
    found: dict[str, Any] = read_state(directory)
    for callback, (name, attributes) in zip(
        _stateful_callbacks(trainer), found["callbacks"], strict=False
    ):
        if type(callback).__name__ == name:
            vars(callback).update(attributes)
    return found


def _stateful_callbacks(trainer: "Trainer") -> list[Any]:
    return [c for c in trainer.callback_handler.callbacks if isinstance(c, ExportableState)]


def random_state() -> dict[str, Any]:
    """Where the generators of torch (CPU, and the GPU in use), NumPy and Python stand, as JSON."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    state = {
        "torch": _text(torch.get_rng_state()),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = _text(torch.cuda.get_rng_state())
    return state


def set_random_state(state: dict[str, Any], *, numpy: bool) -> None:
    """Go back to a `random_state`, also one that has been JSON; NumPy's only if `numpy`."""
    torch.set_rng_state(_tensor(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_tensor(state["cuda"]))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    if numpy:
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002


def _text(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _tensor(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)

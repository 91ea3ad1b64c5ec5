"""Hugging Face's Trainer with exact resumption from checkpoints of safetensors and JSON.

Hugging Face pickles the optimizer and random states, and resumes with other sums and another log;
here a resumed training ends like an uninterrupted one.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer as HuggingFaceTrainer
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from pipeline.core.artifact import read_json
from pipeline.model.device import Stopwatch
from pipeline.model.model import Model
from pipeline.model.model_files import read_tensors, write_tensors
from pipeline.training.callbacks import BestEpoch, Timetable
from pipeline.training.checkpoint import Checkpoints, read_state, write_state
from pipeline.training.distributed.processes import Processes, gather_bytes
from pipeline.training.distributed.sharding import Sharding

_WEIGHTS_FILE = "model.safetensors"
_BEST_FILE = "best.safetensors"
_LOG_FILE = "metrics.jsonl"
_HUGGING_FACE_STATE = "trainer_state.json"
"""Name under which Hugging Face reads its state."""


class ResumableTrainer(HuggingFaceTrainer):
    """Trainer that writes `Checkpoints`; `train(resume_from_checkpoint=path)` reads one."""

    session_model: Model
    best: BestEpoch | None
    timetable: Timetable
    checkpoints: Checkpoints | None
    processes: Processes
    sharding: Sharding | None
    log_path: Path | None
    stopwatch: Stopwatch
    _checkpoint: dict[str, Any] | None = None

    def begin(self) -> None:
        """Set sums and clock at the start of training: to zero, or to those of the checkpoint."""
        state, self._checkpoint = self._checkpoint, None
        self.timetable.saved()
        self._epoch_logged = self.state.epoch or 0.0
        if state is None:
            self.stopwatch.start(0.0)
            return
        self.stopwatch.start(state["seconds"])
        self._tr_loss = torch.tensor(state["loss"], device=self.args.device)
        self._total_loss_scalar = state["total_loss"]
        self._globalstep_last_logged = state["logged_step"]
        self._initial_global_step = 0
        self.control.should_training_stop = state["stopped"]

    # Called by Hugging Face's Trainer in `train`:

    def _run_epoch(self, *arguments: Any, **keywords: Any) -> None:
        if not self.control.should_training_stop:  # else training had stopped before the checkpoint
            super()._run_epoch(*arguments, **keywords)

    def _save_checkpoint(self, *_arguments: Any) -> None:
        if self.checkpoints is None or self.timetable.epoch_end_follows(self.state, self.control):
            return
        with self.stopwatch.paused():
            random_states = [
                json.loads(state) for state in gather_bytes(json.dumps(random_state()).encode())
            ]
            if self.processes.is_first:
                with self.checkpoints.write(self.state.global_step) as directory:
                    self._write_training(directory, random_states)
                    self._write_shards(directory)
            else:
                self._write_shards(None)
        self.timetable.saved()

    def _write_training(self, directory: Path, random_states: list[dict[str, Any]]) -> None:
        """Write weights, best weights, log and state; `random_states` of each process, by rank."""
        write_tensors(self.session_model.state_dict(), directory / _WEIGHTS_FILE)
        # best weights of this step are not written twice
        if self.best and self.best.weights and self.best.step != self.state.global_step:
            write_tensors(self.best.weights, directory / _BEST_FILE)
        if self.log_path is not None and self.log_path.exists():
            (directory / _LOG_FILE).write_bytes(self.log_path.read_bytes())
        assert self.optimizer is not None  # noqa: S101
        assert self.lr_scheduler is not None  # noqa: S101
        scaler = getattr(self.accelerator, "scaler", None)
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.lr_scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "callbacks": [
                [type(callback).__name__, callback.state()["attributes"]]
                for callback in self._stateful_callbacks()
            ],
            "random": random_states,
            "loss": float(self._tr_loss),
            "total_loss": self._total_loss_scalar,
            "logged_step": self._globalstep_last_logged,
            "stopped": self.control.should_training_stop,
            "seconds": self.stopwatch.seconds(),
        }
        write_state(directory, state)
        self.state.save_to_json(str(directory / _HUGGING_FACE_STATE))

    def _write_shards(self, directory: Path | None) -> None:
        """Write the rows of a sharded table that other processes hold. Collective."""
        if self.sharding is None:
            return
        # best weights of this step are not sent twice
        older = self.best is not None and self.best.step != self.state.global_step
        best = self.best.weights if self.best is not None and older else None
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        assert optimizer is not None  # noqa: S101
        self.sharding.write(directory, self.sharding.parts(optimizer, best))

    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: Any = None) -> None:  # noqa: ARG002
        """Restore weights, log and callbacks; the rest follows once the Trainer has created it."""
        directory, sharding = Path(resume_from_checkpoint), self.sharding
        weights = read_tensors(directory / _WEIGHTS_FILE)
        self.session_model.load_state_dict(
            weights if sharding is None else sharding.read(directory, weights)
        )
        if self.log_path is not None and self.processes.is_first:
            log = directory / _LOG_FILE
            self.log_path.write_bytes(log.read_bytes() if log.exists() else b"")
        state: dict[str, Any] = read_state(directory)
        read_json(directory / _HUGGING_FACE_STATE, constants=True)  # the Trainer reads it next
        for callback, (name, attributes) in zip(
            self._stateful_callbacks(), state["callbacks"], strict=False
        ):
            if type(callback).__name__ == name:
                vars(callback).update(attributes)
        if self.best is not None and self.best.step is not None:
            path = directory / _BEST_FILE
            best = read_tensors(path if path.exists() else directory / _WEIGHTS_FILE)
            self.best.weights = best if sharding is None else sharding.read_best(directory, best)
        self._checkpoint = state
        self._random_state = state["random"][self.processes.rank]
        set_random_state(self._random_state, numpy=True)

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        if checkpoint is None or self._checkpoint is None:
            return
        assert self.optimizer is not None  # noqa: S101
        assert self.lr_scheduler is not None  # noqa: S101
        state = self._checkpoint["optimizer"]
        if self.sharding is not None:
            state = self.sharding.read_optimizer(Path(checkpoint), self.optimizer, state)
        self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(self._checkpoint["scheduler"])

    def _load_scaler(self, checkpoint: Any) -> None:
        state = None if self._checkpoint is None else self._checkpoint["scaler"]
        if checkpoint is not None and state is not None:
            self.accelerator.scaler.load_state_dict(state)

    def _load_rng_state(self, checkpoint: Any) -> None:
        if checkpoint is not None:
            # the loader's thread has already seeded NumPy's generator for the pass
            set_random_state(self._random_state, numpy=False)

    def _stateful_callbacks(self) -> list[Any]:
        return [c for c in self.callback_handler.callbacks if isinstance(c, ExportableState)]


class Begin(TrainerCallback):
    """Calls `ResumableTrainer.begin` after Hugging Face's Trainer has reset its own sums."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_arguments: Any, **_others: Any) -> None:
        self.trainer.begin()


def random_state() -> dict[str, Any]:
    """State of the generators of torch (CPU and the current GPU), NumPy and Python, as JSON."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    state = {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state().tolist()
    return state


def set_random_state(state: dict[str, Any], *, numpy: bool) -> None:
    """Restore a `random_state`, possibly read from JSON; NumPy's only if `numpy`."""
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    if numpy:
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002

"""Callbacks of the Trainer: best weights, schedule of logs and checkpoints, log files, progress.

Signatures of methods are those of Hugging Face's TrainerCallback.
"""

import copy
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer_callback import ExportableState

from pipeline.data.directory import Data
from pipeline.evaluation.metrics import lower_is_better
from pipeline.recipe.train import TrainConfig

logger = logging.getLogger(__name__)

_REFRESH_SECONDS = 0.5


class BestEpoch(TrainerCallback, ExportableState):
    """Keeps the weights of the best validation; stops training after `patience` worse ones."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.model = model
        self.metric = f"eval_{config.metric}"
        self.patience = config.patience
        self.weights: dict[str, Tensor] | None = None
        self.sign = -1 if lower_is_better(config.metric) else 1
        self.value = math.nan
        self.epoch = 0.0
        self.step: int | None = None
        self.worse = 0

    def state(self) -> dict[str, Any]:
        """Attributes that a checkpoint stores in addition to the weights."""
        names = ("value", "epoch", "step", "worse")
        return {"args": {}, "attributes": {name: getattr(self, name) for name in names}}

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Copy the weights if the metric is the best so far."""
        value = others["metrics"][self.metric]
        better = self.sign * value > self.sign * self.value
        if self.weights is None or better or math.isnan(self.value):
            self.value, self.epoch, self.worse = value, state.epoch or 0.0, 0
            self.step = state.global_step
            self.weights = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}
            return
        self.worse += 1
        if self.patience is not None and self.worse >= self.patience:
            control.should_training_stop = True


class Timetable(TrainerCallback):
    """Schedule of logs and checkpoints: epoch ends, `checkpoint_steps` and `checkpoint_minutes`."""

    def __init__(self, config: TrainConfig, steps_per_epoch: int, *, saves: bool) -> None:
        """`saves` is true if checkpoints are written."""
        self.steps = config.checkpoint_steps if saves else None
        self.minutes = config.checkpoint_minutes if saves else None
        self.steps_per_epoch = steps_per_epoch
        self.saves = saves
        self.save_due = False
        """Whether to save after this step; set by the Trainer, the same in every process."""
        self._in_epoch = False
        self._saved_at = time.monotonic()

    def minutes_passed(self) -> bool:
        """Whether the last checkpoint is older than `checkpoint_minutes`."""
        return self.minutes is not None and time.monotonic() - self._saved_at > 60 * self.minutes

    def saved(self) -> None:
        self._saved_at = time.monotonic()

    def epoch_end_follows(self, state: TrainerState, control: TrainerControl) -> bool:
        """Whether this step ends the epoch, whose log and checkpoint follow."""
        last_step = state.global_step % self.steps_per_epoch == 0
        stops = control.should_training_stop or control.should_epoch_stop
        return self._in_epoch and (last_step or stops)

    def on_epoch_begin(self, *_arguments: Any, **_: Any) -> None:
        self._in_epoch = True

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        if self.save_due or (self.steps and state.global_step % self.steps == 0):
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        self._in_epoch = False
        control.should_log = True
        control.should_save = self.saves


class DataWatch(TrainerCallback):
    """Ends training at the end of the epoch if the data were removed or changed."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def on_epoch_end(self, *_arguments: Any, **_: Any) -> None:
        """ArtifactError if the data have changed since they were opened."""
        self.data.check_unchanged()


class JsonLines(TrainerCallback):
    """Appends the Trainer's logs to a file, one JSON object per line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args: Any, state: TrainerState, *_: Any, **others: Any) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": state.global_step, **others["logs"]}) + "\n")


class TensorBoard(TensorBoardCallback):
    """Hugging Face's TensorBoard callback, with its events in a directory of the run."""

    def __init__(self, directory: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        super().__init__(SummaryWriter(str(directory)))

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Write the log up to the checkpoint again, as its events are lost."""
        super().on_train_begin(args, state, control, **others)
        for line in state.log_history:
            earlier = copy.copy(state)
            earlier.global_step = int(line["step"])
            self.on_log(args, earlier, control, logs={k: line[k] for k in line if k != "step"})


class ProgressBar(TrainerCallback):
    """Progress on stderr: steps, time left, sessions/s, loss and validation metrics.

    Logs one line per epoch where stderr is not a terminal. `running_loss` returns the mean loss
    since the last log.
    """

    def __init__(
        self, num_sessions: int, metric: str, running_loss: Callable[[], float | None]
    ) -> None:
        self.num_sessions = num_sessions
        self.metrics = dict.fromkeys([metric, "recall@20", "ndcg@20"])
        self.running_loss = running_loss
        self._bar: Any = None
        self._shown: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: TrainerState, *_arguments: Any, **_: Any) -> None:
        self._bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc="train", unit="step",
            disable=None,
        )  # fmt: skip
        self._begin = self._refreshed = time.monotonic()
        self._begin_epoch = state.epoch or 0.0

    def on_step_end(self, args: Any, state: TrainerState, *_arguments: Any, **_: Any) -> None:
        self._bar.update()
        now = time.monotonic()
        # not in each step, as reading the loss synchronizes the GPU
        if not self._bar.disable and now - self._refreshed > _REFRESH_SECONDS:
            self._refreshed = now
            loss = self.running_loss()
            if loss is not None:
                self._shown = {**self._shown, "loss": f"{loss:.3f}"}
            self._show_rate(state)
            self._bar.set_postfix(self._shown)

    def on_log(self, args: Any, state: TrainerState, *_: Any, **others: Any) -> None:
        logs = others["logs"]
        if "loss" in logs:
            self._shown["loss"] = f"{logs['loss']:.3f}"
        for name in self.metrics:
            if f"eval_{name}" in logs:
                self._shown[f"valid {name}"] = f"{logs[f'eval_{name}']:.3f}"
        self._show_rate(state)
        self._bar.set_postfix(self._shown)
        is_validated = any(name.startswith("eval_") for name in logs)
        # after an epoch, the validation follows the loss
        if self._bar.disable and (
            is_validated or ("loss" in logs and args.eval_strategy != "epoch")
        ):
            seconds = time.monotonic() - self._begin
            words = "  ".join(f"{name} {value}" for name, value in self._shown.items())
            epochs = f"epoch {state.epoch:.4g} of {state.num_train_epochs:g}"
            logger.info("%s  %s  %.0f s", epochs, words, seconds)

    def on_train_end(self, *_arguments: Any, **_: Any) -> None:
        self._bar.close()

    def _show_rate(self, state: TrainerState) -> None:
        done = ((state.epoch or 0.0) - self._begin_epoch) * self.num_sessions
        seconds = time.monotonic() - self._begin
        self._shown["sessions/s"] = f"{done / max(seconds, 1e-9):,.0f}"

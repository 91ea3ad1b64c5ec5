"""What happens beside the steps: the best weights, when to save, the log, progress.

The methods' signatures are those of Hugging Face's TrainerCallback.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from pipeline.evaluation.metrics import LOWER_IS_BETTER
from pipeline.recipe.train import TrainConfig

_REFRESH_SECONDS = 0.5


class BestEpoch(TrainerCallback, ExportableState):
    """Keeps the best weights by a validation metric and stops when none better come for long."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.model = model
        self.metric = f"eval_{config.metric}"
        self.patience = config.patience
        self.weights: dict[str, Tensor] | None = None
        self.sign = -1 if config.metric in LOWER_IS_BETTER else 1
        self.value = math.nan
        self.epoch = 0.0
        self.step = 0
        self.worse = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the weights."""
        names = ("value", "epoch", "step", "worse")
        return {"args": {}, "attributes": {name: getattr(self, name) for name in names}}

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: Any,
    ) -> None:
        """Compare with the best so far."""
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
    """When to log and to save: at the end of each epoch, and as often as the config says.

    `minutes_passed` tells whether it is time to save; with several processes all must hear the
    same.
    """

    def __init__(self, config: TrainConfig, minutes_passed: Callable[[], bool] | None) -> None:
        self.steps = config.checkpoint_steps
        self.minutes_passed = minutes_passed
        self.in_epoch = False
        """Whether an epoch is under way: its end brings its loss and perhaps a validation."""

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_others: Any
    ) -> None:
        """Note it."""
        self.in_epoch = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_others: Any
    ) -> None:
        """Save after so many steps or minutes."""
        if self.minutes_passed is None:
            return
        if (self.steps and state.global_step % self.steps == 0) or self.minutes_passed():
            control.should_save = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_others: Any
    ) -> None:
        """Log and save."""
        self.in_epoch = False
        control.should_log = True
        control.should_save = self.minutes_passed is not None


class JsonLines(TrainerCallback):
    """Appends what the Trainer logs to a file, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: Any,
    ) -> None:
        """Write one line."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": state.global_step, **others["logs"]}) + "\n")


class TensorBoard(TrainerCallback):
    """Writes what the Trainer logs as scalars for TensorBoard, under Hugging Face's names.

    A training that goes on writes what was logged before it was interrupted once more.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._writer: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_others: Any
    ) -> None:
        """Open the file."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.directory))
        for line in state.log_history:
            self._write(line, int(line["step"]))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: Any,
    ) -> None:
        """Write the numbers."""
        self._write(others["logs"], state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_others: Any
    ) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, logs: dict[str, Any], step: int) -> None:
        for name, value in logs.items():
            if name != "step":
                part, rest = ("eval", name[5:]) if name.startswith("eval_") else ("train", name)
                self._writer.add_scalar(f"{part}/{rest}", value, step)
        self._writer.flush()


class ProgressBar(TrainerCallback):
    """Progress on stderr: steps, time left, sessions/s, the loss and validation metrics.

    Where stderr is no terminal, one line an epoch. `running_loss` is the mean since the last line
    of the log.
    """

    def __init__(
        self, num_sessions: int, metric: str, running_loss: Callable[[], float | None]
    ) -> None:
        self.num_sessions = num_sessions
        self.metrics = dict.fromkeys([metric, "recall@20", "ndcg@20"])
        self.running_loss = running_loss
        self._bar: Any = None
        self._begin = self._refreshed = 0.0
        self._begin_epoch = 0.0
        self._shown: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_others: Any
    ) -> None:
        """Open the bar."""
        self._bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc="train", unit="step",
            disable=None,
        )  # fmt: skip
        self._begin = self._refreshed = time.monotonic()
        self._begin_epoch = state.epoch or 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_others: Any
    ) -> None:
        """Advance by a step."""
        self._bar.update()
        now = time.monotonic()
        # to read the loss is to wait for a GPU, so not at each step
        if not self._bar.disable and now - self._refreshed > _REFRESH_SECONDS:
            self._refreshed = now
            loss = self.running_loss()
            if loss is not None:
                self._shown = {**self._shown, "loss": f"{loss:.3f}"}
            self._show_rate(state)
            self._bar.set_postfix(self._shown)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: Any,
    ) -> None:
        """Take up loss and metrics of the epoch."""
        logs = others["logs"]
        if "loss" in logs:
            self._shown["loss"] = f"{logs['loss']:.3f}"
        for name in self.metrics:
            if f"eval_{name}" in logs:
                self._shown[f"valid {name}"] = f"{logs[f'eval_{name}']:.3f}"
        self._show_rate(state)
        self._bar.set_postfix(self._shown)
        if self._bar.disable and self._complete(args, logs):
            seconds = time.monotonic() - self._begin
            words = "  ".join(f"{name} {value}" for name, value in self._shown.items())
            print(  # noqa: T201
                f"epoch {state.epoch:.4g} of {state.num_train_epochs:g}  {words}  {seconds:.0f} s",
                file=sys.stderr,
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_others: Any
    ) -> None:
        """Close the bar."""
        self._bar.close()

    def _show_rate(self, state: TrainerState) -> None:
        done = ((state.epoch or 0.0) - self._begin_epoch) * self.num_sessions
        seconds = time.monotonic() - self._begin
        self._shown["sessions/s"] = f"{done / max(seconds, 1e-9):,.0f}"

    @staticmethod
    def _complete(args: TrainingArguments, logs: dict[str, Any]) -> bool:
        """Whether this is the last word on an epoch: its loss comes before its validation."""
        if args.eval_strategy == "epoch":
            return any(name.startswith("eval_") for name in logs)
        return "loss" in logs or any(name.startswith("eval_") for name in logs)

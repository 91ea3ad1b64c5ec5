"""What happens beside the steps: keeping the best epoch, writing the log, showing progress.

The methods' signatures are those of Hugging Face's TrainerCallback.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pipeline.core.recipe import TrainConfig
from pipeline.train.loader import SessionLoader


class BestEpoch(TrainerCallback):
    """Keeps the weights of the best epoch and stops when none has come for long."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.model = model
        self.metric = f"eval_{config.metric}"
        self.patience = config.patience
        self.weights: dict[str, Tensor] | None = None
        self.value = -math.inf
        self.epoch = 0.0
        self._worse = 0

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: Any,
    ) -> None:
        """Compare with the best so far."""
        value = others["metrics"][self.metric]
        if self.weights is None or value > self.value or math.isnan(self.value):
            self.value, self.epoch, self._worse = value, state.epoch or 0.0, 0
            self.weights = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}
            return
        self._worse += 1
        if self.patience is not None and self._worse >= self.patience:
            control.should_training_stop = True


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


class ProgressBar(TrainerCallback):
    """Progress on stderr: steps, time left, sessions/s, the last loss and validation metrics.

    Where stderr is no terminal, one line an epoch.
    """

    def __init__(self, loader: SessionLoader) -> None:
        self.loader = loader
        self._bar: Any = None
        self._begin = 0.0
        self._shown: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_others: Any
    ) -> None:
        """Open the bar."""
        self._bar = tqdm(total=state.max_steps, desc="train", unit="step", disable=None)
        self._begin = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_others: Any
    ) -> None:
        """Advance by a step."""
        self._bar.update()

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
        for name in ("recall@20", "ndcg@20"):
            if f"eval_{name}" in logs:
                self._shown[f"valid {name}"] = f"{logs[f'eval_{name}']:.3f}"
        seconds = time.monotonic() - self._begin
        done = (state.epoch or 0.0) * self.loader.num_sessions
        self._shown["sessions/s"] = f"{done / max(seconds, 1e-9):,.0f}"
        self._bar.set_postfix(self._shown)
        if self._bar.disable and self._complete(args, logs):
            words = "  ".join(f"{name} {value}" for name, value in self._shown.items())
            print(  # noqa: T201
                f"epoch {state.epoch:g} of {args.num_train_epochs:g}  {words}", file=sys.stderr
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_others: Any
    ) -> None:
        """Close the bar."""
        self._bar.close()

    @staticmethod
    def _complete(args: TrainingArguments, logs: dict[str, Any]) -> bool:
        """Whether this is the last word on an epoch: its loss comes before its validation."""
        if args.eval_strategy == "no":
            return "loss" in logs
        return any(name.startswith("eval_") for name in logs)

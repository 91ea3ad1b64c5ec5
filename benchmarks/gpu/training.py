"""Training on a GPU: our Trainer, and a hand-written loop of the same model."""

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    GPT2Config,
    GPT2Model,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from benchmarks.data import padded_batch, write_sessions
from benchmarks.gpu.plan import Plan, TrainingSetting
from benchmarks.gpu.profile import (
    Figures,
    StepProfile,
    figures_or_error,
    peak,
    reset_peak,
    synchronize,
    time_loop,
)
from benchmarks.settings import DROPOUT, LEARNING_RATE, N_HEAD, N_LAYER, WEIGHT_DECAY
from pipeline.core.columns import FIRST_ITEM, ITEM, SCHEMA_FILE
from pipeline.data.loader import SessionLoader
from pipeline.data.schema import Schema
from pipeline.model.build import build_model
from pipeline.training.trainer import Trainer

_POOL_BATCHES = 16
"""Batches whose sessions are sorted by length among each other, as in `pipeline train`."""
_BATCHES = 24
"""Number of different batches of the hand-written loop."""
_PROFILED = 8


def measure(plan: Plan, number: int) -> Iterator[tuple[str, Figures]]:
    """Yield the figures of a setting: ours, and hand-written loops if the setting has them."""
    setting = plan.training[number]
    device = torch.device(plan.device)
    yield "ours", figures_or_error(lambda: train_ours(plan, setting, device))
    if setting.has_hand_written:
        batches = _batches(plan, setting, device)
        for name, backend in (
            ("by hand, eager", None),
            ("by hand, compiled", _backend(device)),
        ):
            _free(device)
            yield name, figures_or_error(partial(train_by_hand, plan, setting, batches, backend))


def _free(device: torch.device) -> None:
    """Free graphs and memory of the previous row."""
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measure_compiled(plan: Plan, number: int) -> Iterator[tuple[str, Figures]]:
    """Yield the figures of ours with `torch_compile: true`, compilation not counted."""
    device = torch.device(plan.device)
    yield "ours, compiled", train_ours(plan, plan.training[number], device, compiled=True)


class EpochClock(TrainerCallback):
    """Callback that times whole epochs after the first, then profiles some steps of another."""

    def __init__(self, device: torch.device, sessions: int, least_seconds: float) -> None:
        """`sessions` is the number of sessions of an epoch."""
        self.figures: Figures = {}
        self._device = device
        self._sessions = sessions
        self._least_seconds = least_seconds
        self._epochs = self._steps = 0
        self._begin = 0.0
        self._profile: StepProfile | None = None

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_others: Any,
    ) -> None:
        """Start the clock in the second epoch."""
        if self._epochs == 1:
            reset_peak(self._device)
            synchronize(self._device)
            self._begin, self._steps = time.perf_counter(), 0

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_others: Any,
    ) -> None:
        """Count a step; end the training with the last step of the profile."""
        self._steps += 1
        if not self.figures:
            return
        if self._profile is None:
            self._profile = StepProfile(self._device)
            self._profile.start()
            self._steps = 0
        elif self._steps == _PROFILED or self._steps == self.epoch_steps - 1:
            seconds = self.figures["milliseconds"] / 1_000
            self.figures |= self._profile.stop(self._steps, seconds)
            control.should_training_stop = True

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_others: Any,
    ) -> None:
        """Stop the clock after the minimum time."""
        self._epochs += 1
        if self._epochs == 1:
            self.epoch_steps = self._steps
        if self._epochs < 2 or self.figures:
            return
        synchronize(self._device)
        seconds = time.perf_counter() - self._begin
        if seconds >= self._least_seconds:
            self.figures = {
                "sessions_per_second": self._sessions * (self._epochs - 1) / seconds,
                "milliseconds": 1_000 * seconds / self._steps,
                **peak(self._device),
            }


def train_ours(
    plan: Plan, setting: TrainingSetting, device: torch.device, *, compiled: bool = False
) -> Figures:
    """Train by the Trainer, with the session loader, as `pipeline train` does."""
    data = plan.scratch / f"sessions-{setting.setting.items}-{setting.batch_size}"
    if not data.is_dir():
        parts = {"train": plan.training_sessions}
        write_sessions(data, items=setting.setting.items, longest=plan.longest, parts=parts)
    arguments: dict[str, Any] = {"bf16": setting.bf16, "use_cpu": device.type == "cpu"}
    if compiled:
        arguments |= {"torch_compile": True, "torch_compile_backend": _backend(device)}
    config = setting.setting.train_config(
        setting.form, batch_size=setting.batch_size, arguments=arguments
    )
    set_seed(config.seed)
    model = build_model(
        Schema.from_json(data / SCHEMA_FILE),
        setting.setting.model_config(setting.form),
        plan.longest,
        config,
    )
    loader = SessionLoader(
        data,
        "train",
        item=ITEM,
        features=model.training_columns,
        batch_size=_POOL_BATCHES * setting.batch_size,
        shuffle=True,
        seed=config.seed,
    )
    clock = EpochClock(device, plan.training_sessions, plan.training_seconds)
    with tempfile.TemporaryDirectory(dir=plan.scratch) as folder:
        trainer = Trainer(
            model,
            config,
            train_loader=loader,
            valid_loader=None,
            log_path=Path(folder) / "log.jsonl",
            callbacks=[clock],
        )
        trainer.train()
    trained_on = next(model.parameters()).device.type
    if trained_on != device.type:
        raise RuntimeError(f"It trained on {trained_on}, expected {device.type}.")
    return clock.figures


class HandWritten(nn.Module):
    """Hand-written model: Hugging Face's GPT-2 on padded rows, tied scores, cross-entropy."""

    def __init__(self, setting: TrainingSetting, longest: int) -> None:
        super().__init__()
        d_model, rows = setting.setting.d_model, setting.setting.items + FIRST_ITEM
        self.items = nn.Embedding(rows, d_model, padding_idx=0)
        nn.init.normal_(self.items.weight, std=0.02)
        self.body = GPT2Model(
            GPT2Config(
                vocab_size=1,
                n_positions=longest,
                n_embd=d_model,
                n_layer=N_LAYER,
                n_head=N_HEAD,
                resid_pdrop=DROPOUT,
                embd_pdrop=DROPOUT,
                attn_pdrop=DROPOUT,
            )
        )

    def forward(self, sessions: Tensor) -> Tensor:
        """(B, L) item indices, 0 for padding -> () mean loss of the next items."""
        inputs, targets = sessions[:, :-1], sessions[:, 1:]
        hidden = self.body(
            inputs_embeds=self.items(inputs), attention_mask=(inputs > 0).long(), use_cache=False
        ).last_hidden_state
        logits = functional.linear(hidden, self.items.weight)  # (B, L - 1, V)
        return functional.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=0
        )


def train_by_hand(
    plan: Plan, setting: TrainingSetting, batches: list[Tensor], backend: str | None
) -> Figures:
    """Train the hand-written model on (B, L) batches in device memory; `backend` compiles it."""
    device = batches[0].device
    set_seed(0)
    model = HandWritten(setting, plan.longest).to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )
    loss_of = model if backend is None else torch.compile(model, backend=backend)

    def step(number: int) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=setting.bf16):
            loss = loss_of(batches[number % len(batches)])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return time_loop(
        step,
        device,
        sessions=setting.batch_size,
        least_seconds=plan.training_seconds,
        profiled=_PROFILED,
    )


def _backend(device: torch.device) -> str:
    """Return the compiler of a device; Inductor takes minutes on a CPU."""
    return "inductor" if device.type == "cuda" else "aot_eager"


def _batches(plan: Plan, setting: TrainingSetting, device: torch.device) -> list[Tensor]:
    random = np.random.default_rng(0)
    return [
        torch.from_numpy(
            padded_batch(
                random, setting.batch_size, setting.setting.items, plan.longest, full=False
            )
        ).to(device)
        for _ in range(_BATCHES)
    ]

"""Hugging Face's TrainingArguments for a training."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from transformers import TrainingArguments

from pipeline.core.errors import ConfigError
from pipeline.evaluation.metrics import lower_is_better
from pipeline.recipe.train import TrainConfig, check_trainer_arguments
from pipeline.training.distributed.processes import TIMEOUT_SECONDS, announced_processes

Arguments = TrainingArguments | Mapping[str, Any] | None


def training_arguments(
    config: TrainConfig, directory: str, *, validate: bool, arguments: Arguments = None
) -> TrainingArguments:
    """Arguments of `config`, then `config.arguments`, then `arguments`, without saving.

    A TrainingArguments object sets those that differ from their default. ConfigError for an unknown
    argument, a wrong value, or an argument set by a field of TrainConfig.
    """
    added = {**_by_name(config.arguments), **_by_name(arguments)}
    reports = _reports(added.pop("report_to", None))
    every = "epoch" if config.validate_every is None else "steps"
    own: dict[str, Any] = {
        "output_dir": directory,
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "warmup_steps": config.warmup_ratio,
        "lr_scheduler_type": "constant_with_warmup"
        if config.schedule == "constant"
        else config.schedule,
        "max_grad_norm": config.max_grad_norm,
        "optim": "adamw_torch_fused",
        "seed": config.seed,
        "logging_strategy": "steps" if "logging_steps" in added else "epoch",
        "save_strategy": "no",
        # our TensorBoard callback writes into the run
        "report_to": [name for name in reports if name not in ("tensorboard", "none")],
        "logging_nan_inf_filter": False,  # a diverged loss must show
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "ddp_timeout": TIMEOUT_SECONDS,
        "metric_for_best_model": config.metric,
        "greater_is_better": not lower_is_better(config.metric),
        "eval_strategy": "no" if not validate else every,
        "eval_steps": config.validate_every,
    }
    if announced_processes().count > 1 and not torch.cuda.is_available():
        own["use_cpu"] = True  # without it accelerate does not see the other processes
    if "bf16" not in added and "fp16" not in added and not added.get("use_cpu"):
        # emulated bf16 is slower than float32
        own["bf16"] = torch.cuda.is_available() and torch.cuda.is_bf16_supported(
            including_emulation=False
        )
    try:
        made = TrainingArguments(**{**own, **added})
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        line = " ".join(str(error).split())
        raise ConfigError(f"`train.arguments`: {line[:300]}") from None
    made._n_gpu = min(made.n_gpu, 1)  # one process per GPU, no DataParallel
    return made


def uses_tensorboard(config: TrainConfig, arguments: Arguments) -> bool:
    """Whether the log is also written for TensorBoard."""
    reports = {**config.arguments, **_by_name(arguments)}.get("report_to")
    return config.tensorboard or "tensorboard" in _reports(reports)


def _reports(report_to: str | list[str] | None) -> list[str]:
    return [report_to] if isinstance(report_to, str) else list(report_to or [])


def _by_name(arguments: Arguments) -> dict[str, Any]:
    """Arguments that a user set. ConfigError for unknown ones, and for those of TrainConfig."""
    if arguments is None:
        return {}
    if isinstance(arguments, TrainingArguments):
        default = TrainingArguments(output_dir=arguments.output_dir)
        arguments = {
            field.name: getattr(arguments, field.name)
            for field in fields(TrainingArguments)
            if field.init and getattr(arguments, field.name) != getattr(default, field.name)
        }
    names = [field.name for field in fields(TrainingArguments) if field.init]
    try:
        check_trainer_arguments(arguments, names=names)
    except ValueError as error:
        raise ConfigError(f"`arguments`: {error}.") from None
    return dict(arguments)

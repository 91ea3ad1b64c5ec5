"""Hugging Face's training arguments: from our config, and what a user adds by their own names."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from transformers import TrainingArguments

from pipeline.core.errors import ConfigError
from pipeline.evaluation.metrics import LOWER_IS_BETTER
from pipeline.recipe.train import TrainConfig, check_trainer_arguments
from pipeline.training.distributed.processes import TIMEOUT_SECONDS, announced_processes


def training_arguments(
    config: TrainConfig,
    directory: str,
    *,
    validate: bool,
    given: TrainingArguments | Mapping[str, Any] | None = None,
) -> TrainingArguments:
    """Hugging Face's arguments for this config; nothing is saved by it.

    `given` counts before `config.arguments`; of a TrainingArguments what differs from its default.
    ConfigError for what cannot be.
    """
    added = {**checked(config.arguments), **checked(given)}
    tensorboard = added.pop("report_to", [])
    reports = [tensorboard] if isinstance(tensorboard, str) else list(tensorboard or [])
    # ours writes into the run, Hugging Face's beside its checkpoints
    reports = [name for name in reports if name not in ("tensorboard", "none")]
    arguments: dict[str, Any] = {
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
        "report_to": reports,
        "logging_nan_inf_filter": False,  # a diverged loss must show
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "ddp_timeout": TIMEOUT_SECONDS,
        "metric_for_best_model": config.metric,
        "greater_is_better": config.metric not in LOWER_IS_BETTER,
        **_validation(config, validate),
    }
    if announced_processes().count > 1 and not torch.cuda.is_available():
        arguments["use_cpu"] = True  # only then does accelerate see the other processes
    if "bf16" not in added and "fp16" not in added and not added.get("use_cpu"):
        # emulated, it would be slower than what it replaces
        arguments["bf16"] = torch.cuda.is_available() and torch.cuda.is_bf16_supported(
            including_emulation=False
        )
    try:
        made = TrainingArguments(**{**arguments, **added})
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        line = " ".join(str(error).split())
        raise ConfigError(f"`train.arguments`: {line[:300]}") from None
    made._n_gpu = min(made.n_gpu, 1)  # data parallelism is by processes, not by threads
    return made


def wants_tensorboard(
    config: TrainConfig, given: TrainingArguments | Mapping[str, Any] | None
) -> bool:
    """Whether what is logged goes to TensorBoard."""
    reports = {**config.arguments, **checked(given)}.get("report_to") or []
    return config.tensorboard or "tensorboard" in (
        [reports] if reports == str(reports) else reports
    )


def checked(given: TrainingArguments | Mapping[str, Any] | None) -> dict[str, Any]:
    """By name what a user set. ConfigError for what cannot be set, or stands in a TrainConfig."""
    names = [field.name for field in fields(TrainingArguments)]
    if given is None:
        return {}
    chosen = dict(given) if isinstance(given, Mapping) else _set_by_user(given)
    try:
        check_trainer_arguments(chosen, names=names)
    except ValueError as error:
        raise ConfigError(f"`arguments`: {error}.") from None
    return chosen


def _set_by_user(given: TrainingArguments) -> dict[str, Any]:
    usual = TrainingArguments(output_dir=given.output_dir)
    return {
        field.name: getattr(given, field.name)
        for field in fields(TrainingArguments)
        if field.init and getattr(given, field.name) != getattr(usual, field.name)
    }


def _validation(config: TrainConfig, validate: bool) -> dict[str, Any]:
    if not validate:
        return {"eval_strategy": "no"}
    if config.validate_every is None:
        return {"eval_strategy": "epoch"}
    return {"eval_strategy": "steps", "eval_steps": config.validate_every}

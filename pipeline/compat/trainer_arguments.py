"""Training arguments with the names of Transformers4Rec, and the settings they map to."""

import math
import tempfile
from dataclasses import dataclass, fields
from typing import Any

from transformers import TrainingArguments

from pipeline.compat.arguments import expect
from pipeline.compat.dataloader import T4RecDataLoader
from pipeline.core.errors import ConfigError
from pipeline.recipe.train import TrainConfig, check_trainer_arguments

_TRANSLATED = {
    "num_train_epochs", "per_device_train_batch_size", "learning_rate", "weight_decay",
    "warmup_steps", "max_grad_norm", "seed", "metric_for_best_model", "eval_strategy",
    "eval_steps", "lr_scheduler_type", "lr_scheduler_kwargs",
}  # fmt: skip
"""Arguments that `training_config` and `further_arguments` map to other names."""
_WITHOUT_EFFECT = {
    "output_dir", "per_device_eval_batch_size", "dataloader_drop_last", "disable_tqdm",
    "remove_unused_columns", "save_strategy", "save_steps", "save_total_limit",
    "load_best_model_at_end", "greater_is_better", "label_smoothing_factor",
    "do_train", "do_eval", "do_predict",
}  # fmt: skip
"""Arguments that this Trainer reads itself, or that only Hugging Face's own loop reads."""


@dataclass
class T4RecTrainingArguments(TrainingArguments):
    """Hugging Face's TrainingArguments with those of Transformers4Rec.

    Former names of Hugging Face are accepted: `no_cuda`, `evaluation_strategy`.
    """

    max_sequence_length: int | None = None
    """Newest interactions of a session to read, unless the input block sets a length."""
    shuffle_buffer_size: int = 0
    """Without effect: whole files are shuffled."""
    data_loader_engine: str = "merlin"
    """Without effect: the loader is Merlin's."""
    eval_on_test_set: bool = False
    """Without effect, as there."""
    eval_steps_on_train_set: int = 20
    """Batches that `evaluate(metric_key_prefix="train")` reads."""
    predict_top_k: int | None = 100
    """K of the lists of `predict`; None for the `top_k` of the model, or all scores."""
    learning_rate_num_cosine_cycles_by_epoch: float = 1.25
    """Cycles of a cosine schedule for each epoch."""
    log_predictions: bool = False
    """Not supported: `predict` returns predictions."""
    compute_metrics_each_n_steps: int = 1
    """An evaluation ranks the targets of every n-th batch; its loss is that of all batches."""
    experiments_group: str = "default"
    """Without effect, as there."""
    avg_session_length: int | None = None
    """Older name of `max_sequence_length`."""
    no_cuda: bool = False
    """Older name of `use_cpu`."""
    evaluation_strategy: str | None = None
    """Older name of `eval_strategy`."""
    overwrite_output_dir: bool = False
    """Without effect."""

    def __post_init__(self) -> None:
        """Translate older names. ConfigError for unsupported values."""
        self.use_cpu = self.use_cpu or self.no_cuda
        if self.evaluation_strategy is not None:
            self.eval_strategy = self.evaluation_strategy
        if self.max_sequence_length is None:
            self.max_sequence_length = self.avg_session_length
        expect("log_predictions", self.log_predictions, False, because="`predict` returns them")
        T4RecDataLoader.parse(self.data_loader_engine)
        lengths = [self.compute_metrics_each_n_steps, self.predict_top_k or 1]
        if min(lengths) < 1:
            raise ConfigError("compute_metrics_each_n_steps and predict_top_k are 1 or more.")
        super().__post_init__()


def training_config(args: T4RecTrainingArguments, num_sessions: int) -> TrainConfig:
    """The train section of a recipe with the same settings; `num_sessions` is per epoch."""
    batch_size = args.per_device_train_batch_size
    steps = math.ceil(num_sessions / (batch_size * args.gradient_accumulation_steps))
    steps = args.max_steps if args.max_steps > 0 else steps * math.ceil(args.num_train_epochs)
    warmup = args.warmup_steps or 0
    every = None
    if args.eval_strategy == "steps":
        every = int(args.eval_steps or args.logging_steps)
    return TrainConfig(
        epochs=math.ceil(args.num_train_epochs),
        batch_size=batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        warmup_ratio=warmup if warmup < 1 else min(warmup / max(steps, 1), 0.99),
        max_grad_norm=args.max_grad_norm,
        seed=args.seed,
        validate_every=every,
        metric=metric_name(args.metric_for_best_model),
    )


def metric_name(key: str | None) -> str:
    """`eval_/next-item/ndcg_at_10` or `ndcg_at_10` -> `ndcg@10`, the name in a recipe."""
    if key is None:
        return TrainConfig().metric
    name = key.rpartition("/")[2].removeprefix("eval_")
    for theirs, ours in (("avg_precision", "map"), ("mean_reciprocal_rank", "mrr")):
        name = name.replace(theirs, ours)
    return name.replace("_at_", "@")


def further_arguments(args: T4RecTrainingArguments) -> dict[str, Any]:
    """Arguments of Hugging Face that differ from their default and have no counterpart here."""
    default = TrainingArguments(output_dir=args.output_dir or tempfile.gettempdir())
    arguments = {
        field.name: getattr(args, field.name)
        for field in fields(TrainingArguments)
        if field.init
        and field.name not in _TRANSLATED | _WITHOUT_EFFECT | {"gradient_accumulation_steps"}
        and getattr(args, field.name) != getattr(default, field.name)
    }
    try:
        check_trainer_arguments(arguments)
    except ValueError as error:
        raise ConfigError(f"T4RecTrainingArguments: {error}.") from None
    scheduler = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    keywords = args.lr_scheduler_kwargs
    options = dict(keywords) if isinstance(keywords, dict) else {}
    if scheduler in ("cosine", "cosine_with_restarts"):
        cycles = args.learning_rate_num_cosine_cycles_by_epoch * args.num_train_epochs
        restarts = scheduler == "cosine_with_restarts"
        options.setdefault("num_cycles", max(1, round(cycles)) if restarts else cycles)
    return {**arguments, "lr_scheduler_type": scheduler, "lr_scheduler_kwargs": options}

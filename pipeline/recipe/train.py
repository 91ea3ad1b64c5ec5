"""The `train` section of a recipe: how the model is trained."""

from collections.abc import Collection, Iterable
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.core.config import Config
from pipeline.core.errors import ConfigError, closest
from pipeline.recipe.choices import (
    FROM_PLUGINS,
    FULL_LOSSES,
    METRICS,
    PLUGIN_LOSSES,
    SAMPLED_LOSSES,
    TARGET_METRIC_NAME,
    TARGET_METRICS,
    ranking_cutoff,
)
from pipeline.recipe.durations import duration_seconds
from pipeline.recipe.model import ModelConfig, Value

TableOptimizer = Literal["adamw", "lazy-adamw", "rowwise-adamw"]


_CHECKPOINTS = "checkpoints of a run hold all that resuming needs, and the best weights are kept"
_LAYOUT = "checkpoints hold whole weights; for a large catalogue set `train.item_table: sharded`"
_NOT_MEMORY = "the scores of the catalogue take the memory, not the layers; see `train.recompute`"
_REFUSED = {
    "output_dir": "--out says where the run is written",
    "remove_unused_columns": "batches are not dictionaries of columns",
    "disable_tqdm": "progress is shown on stderr",
    "logging_nan_inf_filter": "a diverged loss must be visible",
    "ddp_backend": "it is gloo on CPUs and nccl on GPUs",
    "auto_find_batch_size": "another batch size changes the training",
    "greater_is_better": "`train.metric` decides it",
    **dict.fromkeys(("load_best_model_at_end", "save_total_limit"), _CHECKPOINTS),
    **dict.fromkeys(("save_only_model", "resume_from_checkpoint"), _CHECKPOINTS),
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config"), _LAYOUT),
    **dict.fromkeys(("gradient_checkpointing", "activation_checkpointing"), _NOT_MEMORY),
}
"""Arguments of Hugging Face that the project sets itself or that its Trainer ignores."""
_FIELDS = {
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "warmup_steps": "warmup_ratio",
    "warmup_ratio": "warmup_ratio",
    "max_grad_norm": "max_grad_norm",
    "label_smoothing_factor": "label_smoothing",
    "seed": "seed",
    "metric_for_best_model": "metric",
    "eval_strategy": "validate_every",
    "eval_steps": "validate_every",
    "save_strategy": "checkpoint_steps",
    "save_steps": "checkpoint_steps",
}
"""Arguments of Hugging Face that are fields of `TrainConfig`."""


def check_trainer_arguments(arguments: Iterable[str], *, names: Collection[str] = ()) -> None:
    """ValueError for the first of `arguments` that a recipe may not set.

    With `names`, the arguments of Hugging Face's TrainingArguments, an unknown argument is refused
    too.
    """
    for argument in arguments:
        if argument in _FIELDS:
            raise ValueError(f"`{argument}` is `train.{_FIELDS[argument]}` here; set that instead")
        if argument in _REFUSED:
            raise ValueError(f"leave out `{argument}`: {_REFUSED[argument]}")
        if names and argument not in names:
            hint = closest(argument, names)
            raise ValueError(f"Hugging Face has no training argument `{argument}`; {hint}")


class Weights(Config):
    """Weight of an interaction as a target, by a categorical feature."""

    feature: str
    """Feature such as the type of the event."""
    values: dict[Value, float] = Field(min_length=1)
    """Weight of each value, such as {purchase: 5, view: 1}."""
    default: float = Field(default=1.0, ge=0)
    """Weight of all other values."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(self.values.values()) < 0:
            raise ValueError("a weight is 0 or more")
        return self


SMALLEST_BATCH, LARGEST_BATCH = 8, 128
"""Bounds of `batch_size_for`."""
STEPS_PER_EPOCH = 128
"""Smallest number of steps per epoch; with fewer, an epoch of a small log teaches little."""


def batch_size_for(num_sessions: int) -> int:
    """Largest power of two with which this number of sessions makes `STEPS_PER_EPOCH` steps.

    Between `SMALLEST_BATCH` and `LARGEST_BATCH`: 16 for 2,400 sessions, 32 for 6,500, 128 from
    16,400 on.
    """
    exponent = max(1, num_sessions // STEPS_PER_EPOCH).bit_length() - 1
    return min(max(2**exponent, SMALLEST_BATCH), LARGEST_BATCH)


class TrainConfig(Config):
    """Settings of the training."""

    epochs: int = Field(default=10, ge=1)
    """Passes over the training sessions."""
    batch_size: int | None = Field(default=None, ge=1)
    """B: sessions in a batch of one process, a step unless gradients are accumulated. By default it
    follows from the number of training sessions, see `batch_size_for`."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Batches per step; their gradients are those of one batch that is larger by this factor."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Highest learning rate of AdamW."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of matrices; biases and norms have none."""
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    loss: str = "cross-entropy"
    """Over the whole catalogue: cross-entropy. Over negatives: sampled-softmax, gbce, bpr,
    bpr-max, top1, top1-max."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """cross-entropy: share of the target that is spread over the catalogue."""
    recompute: bool | None = None
    """cross-entropy: compute logits again for the backward pass, so that memory does not grow with
    T times V; by default if they take more than half a gigabyte."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """As in torch: with medium, matrix products round their factors to bfloat16 and accumulate in
    float32 (a CPU rounds some of the loss's gradients too); with high, a GPU may use
    TensorFloat-32."""
    negatives: Literal["uniform", "log-uniform", "popularity", "in-batch"] = "log-uniform"
    """Distribution from which a loss over negatives samples."""
    popularity_exponent: float = Field(default=1.0, gt=0, le=1)
    """popularity: power of the number of interactions; below 1 rare items are drawn more often."""
    num_negatives: int = Field(default=256, ge=1)
    """N: negatives per target; in-batch, the number of targets."""
    shared_negatives: bool = True
    """All targets of a batch share their negatives, which is much faster."""
    gbce_t: float = Field(default=0.75, ge=0, le=1)
    """gbce: 0 is binary cross-entropy, 1 corrects all of its overconfidence."""
    regularization: float = Field(default=0.0, ge=0)
    """bpr-max: weight of the penalty on the scores of negatives."""
    weights: Weights | None = None
    """Weights of interactions as targets."""
    half_life: str | None = None
    """Duration (`2d`, `6h`) over which the weight of a target halves, counted back from the newest
    training interaction; for catalogues and tastes that change."""
    table_optimizer: TableOptimizer = "adamw"
    """Optimizer of embedding tables. adamw updates every row in each step; lazy-adamw the rows of
    the batch, so that with a loss over negatives a step costs no more than its batch;
    rowwise-adamw also keeps one second moment a row, which halves the memory."""
    item_table: Literal["whole", "sharded"] = "whole"
    """sharded: each process holds a part of the item table with its gradient and optimizer state;
    for catalogues that are too large for one device."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Norm to which gradients are clipped."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of initial weights, shuffling and dropout."""
    metric: str = "ndcg@20"
    """Validation metric that decides which weights are the best: recall, ndcg, mrr, precision, map
    or dcg with any cutoff, as in recall@5, or loss; of a target beside the next item, its metric as
    in purchase.auc or price.rmse. By default that of the first target where the recipe has no next
    item."""
    patience: int | None = Field(default=None, ge=1)
    """Number of validations without a better `metric` after which training stops."""
    validate_every: int | None = Field(default=None, ge=1)
    """Steps between validations, besides one at the end; by default one after each epoch."""
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Steps between checkpoints, besides the one after each epoch."""
    checkpoint_minutes: float | None = Field(default=None, gt=0)
    """Minutes between checkpoints, besides the one after each epoch."""
    process_data: Literal["shared", "partitions"] = "shared"
    """With several processes: all read the same sessions and take their share of each batch, or
    each reads row groups of its own."""
    tensorboard: bool = False
    """Write the log for TensorBoard too, to `tensorboard/` in the run."""
    new_items: Literal["mean", "features"] = "mean"
    """With --windows or --from: initial vectors of new items, the mean of the earlier items or of
    those with the same categorical features."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of Hugging Face's TrainingArguments."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        losses = [*FULL_LOSSES, *SAMPLED_LOSSES, *PLUGIN_LOSSES]
        if self.loss not in losses:
            hint = closest(self.loss, losses)
            raise ValueError(f"there is no loss {self.loss!r}; {hint} {FROM_PLUGINS}")
        of_target = TARGET_METRIC_NAME.fullmatch(self.metric)
        if self.metric != "loss" and not of_target and ranking_cutoff(self.metric) is None:
            expected = ", ".join(f"{metric}@K" for metric in METRICS)
            raise ValueError(
                f"`metric` is {self.metric!r}, expected one of {expected} with a cutoff K such as "
                "20, loss, or that of a target, such as purchase.auc or price.rmse. "
                f"{FROM_PLUGINS}"
            )
        if self.label_smoothing and self.loss != "cross-entropy":
            raise ValueError("`label_smoothing` is for cross-entropy")
        if self.half_life is not None:
            try:
                duration_seconds(self.half_life, "`half_life`")
            except ConfigError as error:  # pydantic adds the location to a ValueError
                raise ValueError(str(error)) from None
        check_trainer_arguments(self.arguments)
        if self.item_table == "sharded":
            self._check_sharded()
        if self.gradient_accumulation_steps > 1 and "gradient_accumulation_steps" in self.arguments:
            raise ValueError("`gradient_accumulation_steps` is set twice; keep one")
        return self

    def for_model(self, model: ModelConfig) -> Self:
        """Return a copy whose `metric` is one of `model`. ConfigError if it is set to another.

        The default is that of the next item, or of the first target without a next item.
        """
        kinds = {target.feature: target.kind for target in model.targets}
        if not model.next_item and self.item_table == "sharded":
            raise ConfigError(
                "`item_table: sharded` is for scores of the next item, and the model has "
                "`next_item: false`. Leave it out."
            )
        if self.item_table == "sharded" and any(target.per_item for target in model.targets):
            raise ConfigError(
                "`per_item` targets read the vectors of the whole item table. Leave out "
                "`item_table: sharded`."
            )
        if self.item_table == "sharded" and model.repeats:
            raise ConfigError(
                "`repeats` reads the vectors of the whole item table. Leave out `item_table: "
                "sharded`."
            )
        if not model.next_item and "metric" not in self.model_fields_set:
            feature, kind = next(iter(kinds.items()))
            return self.model_copy(update={"metric": f"{feature}.{TARGET_METRICS[kind][0]}"})
        possible = [f"{name}.{m}" for name, kind in kinds.items() for m in TARGET_METRICS[kind]]
        match = TARGET_METRIC_NAME.fullmatch(self.metric)
        if match and self.metric not in possible:
            raise ConfigError(
                f"`train.metric` is {self.metric!r}, and `model.targets` has no such target. Its "
                f"metrics: {', '.join(possible) or 'none, as it has no target'}."
            )
        if match and self.item_table == "sharded":
            raise ConfigError(
                f"`train.metric` is {self.metric!r}, which training cannot compute with "
                "`item_table: sharded`. Choose a ranking metric."
            )
        if not match and self.metric != "loss" and not model.next_item:
            raise ConfigError(
                f"`train.metric` is {self.metric!r}, and the model has `next_item: false`. "
                f"Expected loss or one of {', '.join(possible)}."
            )
        return self

    def for_sessions(self, num_sessions: int) -> Self:
        """Return a copy with a `batch_size` for this number of sessions, unless one is set."""
        if self.batch_size is not None:
            return self
        return self.model_copy(update={"batch_size": batch_size_for(num_sessions)})

    def _check_sharded(self) -> None:
        if self.loss != "cross-entropy":
            raise ValueError(f"`item_table: sharded` is for cross-entropy, not for {self.loss}")
        if self.table_optimizer != "adamw":
            raise ValueError(f"`item_table: sharded` works with adamw, not {self.table_optimizer}")
        # with each of these, processes that must take the same steps would diverge
        for name in ("optim", "fp16", "torch_compile"):
            if self.arguments.get(name):
                raise ValueError(f"`item_table: sharded` does not work with `{name}`; leave it out")

"""The part of a recipe that says how the model learns."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.core.arguments import closest
from pipeline.core.config import Config
from pipeline.core.errors import ConfigError
from pipeline.recipe.choices import FULL_LOSSES, SAMPLED_LOSSES
from pipeline.recipe.durations import span_seconds
from pipeline.recipe.model import Value
from pipeline.recipe.trainer_arguments import check_trainer_arguments

TableOptimizer = Literal["adamw", "lazy-adamw", "rowwise-adamw"]


class Weights(Config):
    """How much an interaction counts as a target, by a categorical feature."""

    feature: str
    """Such as the type of the event."""
    values: dict[Value, float] = Field(min_length=1)
    """Weight of each value, such as {purchase: 5, view: 1}."""
    default: float = Field(default=1.0, ge=0)
    """Of all others."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if min(self.values.values()) < 0:
            raise ValueError("a weight is 0 or more")
        return self


SMALLEST_BATCH, LARGEST_BATCH = 8, 128
"""Bounds of `batch_size_for`."""
STEPS_PER_EPOCH = 128
"""Steps below which an epoch of a small log teaches little."""


def batch_size_for(num_sessions: int) -> int:
    """Largest power of two that makes `STEPS_PER_EPOCH` steps of so many training sessions.

    Between `SMALLEST_BATCH` and `LARGEST_BATCH`: 16 for 2,400 sessions, 32 for 6,500, 128 from
    16,400 on.
    """
    exponent = max(1, num_sessions // STEPS_PER_EPOCH).bit_length() - 1
    return min(max(2**exponent, SMALLEST_BATCH), LARGEST_BATCH)


class TrainConfig(Config):
    """How the model learns."""

    epochs: int = Field(default=10, ge=1)
    """Passes over the training sessions."""
    batch_size: int | None = Field(default=None, ge=1)
    """B: sessions that a process reads at once; a step, unless gradients are accumulated. Where it
    is not given, by the number of training sessions (see `batch_size_for`)."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Batches a step: their gradients count as those of one batch of so many times the size."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Highest rate of AdamW."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of matrices; biases and norms have none."""
    warmup_ratio: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps in which the rate climbs."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the rate after the warm-up."""
    loss: str = "cross-entropy"
    """Over the whole catalogue: cross-entropy. Over negatives: sampled-softmax, gbce, bpr,
    bpr-max, top1, top1-max."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """cross-entropy: share of the target that is spread over the catalogue."""
    recompute: bool | None = None
    """cross-entropy: compute scores again for the backward pass, so that memory does not grow with
    targets times items; where it is not given, if they take more than half a gigabyte."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """As in torch: with medium, products of matrices round their factors to bfloat16 and add up in
    float32 (a CPU rounds some of the loss's gradients too); with high, a GPU may round to
    TensorFloat-32."""
    negatives: Literal["uniform", "log-uniform", "popularity", "in-batch"] = "log-uniform"
    """Where a loss takes negatives from."""
    num_negatives: int = Field(default=256, ge=1)
    """N: negatives of a target; in-batch ones are as many as there are targets."""
    shared_negatives: bool = True
    """All targets of a batch have the same negatives, which is much faster."""
    gbce_t: float = Field(default=0.75, ge=0, le=1)
    """gbce: 0 is plain binary cross-entropy, 1 takes all of its overconfidence away."""
    regularization: float = Field(default=0.0, ge=0)
    """bpr-max: of the negatives' scores."""
    weights: Weights | None = None
    """Some interactions count more than others."""
    half_life: str | None = None
    """An interaction counts half as much as a target for every so much time (`2d`, `6h`) between
    it and the newest one of training; for catalogues and tastes that change."""
    table_optimizer: TableOptimizer = "adamw"
    """adamw updates every row in each step; lazy-adamw those that the batch touched, which for a
    loss over negatives makes a step as cheap as the batch; rowwise-adamw has one second moment a
    row besides, half the memory."""
    item_table: Literal["whole", "sharded"] = "whole"
    """sharded: each of several processes holds a part of the item's table, with its gradient and
    the optimizer's state; for catalogues that are too large for one device."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are cut to this norm."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of initial weights, shuffling and dropout."""
    metric: str = "ndcg@20"
    """Decides which weights are the best on the validation sessions: recall, ndcg, mrr, precision,
    map or dcg with any cutoff, as in recall@5, or loss."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many validations without a better `metric`."""
    validate_every: int | None = Field(default=None, ge=1)
    """Validate after so many steps and at the end; after each epoch where it is not given."""
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Write a checkpoint after so many steps too; after each epoch there is one always."""
    checkpoint_minutes: float | None = Field(default=None, gt=0)
    """Write a checkpoint whenever so many minutes have passed since the last one."""
    process_data: Literal["shared", "partitions"] = "shared"
    """With several processes: all read the same sessions and each takes its share of a batch, or
    each reads partitions (row groups) of its own."""
    tensorboard: bool = False
    """Write what is logged for TensorBoard too, into `tensorboard/` of the run."""
    new_items: Literal["mean", "features"] = "mean"
    """With --windows or --from: where the vectors of new items begin, at the mean of the known ones
    or of those with the same categorical features."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of Hugging Face's TrainingArguments, by their own names."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = [*FULL_LOSSES, *SAMPLED_LOSSES]
        if self.loss not in known:
            raise ValueError(f"there is no loss {self.loss!r}; {closest(self.loss, known)}")
        if self.label_smoothing and self.loss != "cross-entropy":
            raise ValueError("`label_smoothing` is for cross-entropy")
        if self.half_life is not None:
            try:
                span_seconds(self.half_life, "`half_life`")
            except ConfigError as error:  # pydantic adds where it stands to a ValueError
                raise ValueError(str(error)) from None
        check_trainer_arguments(self.arguments)
        if self.item_table == "sharded":
            self._check_sharded()
        if self.gradient_accumulation_steps > 1 and "gradient_accumulation_steps" in self.arguments:
            raise ValueError("`gradient_accumulation_steps` stands twice; keep one")
        return self

    def for_sessions(self, num_sessions: int) -> Self:
        """The same with a `batch_size` for so many training sessions, where none is given."""
        if self.batch_size is not None:
            return self
        return self.model_copy(update={"batch_size": batch_size_for(num_sessions)})

    def _check_sharded(self) -> None:
        if self.loss != "cross-entropy":
            raise ValueError(f"`item_table: sharded` is for cross-entropy, not for {self.loss}")
        if self.table_optimizer != "adamw":
            raise ValueError(f"`item_table: sharded` works with adamw, not {self.table_optimizer}")
        # which would treat processes apart that must take the same steps
        for name in ("optim", "fp16", "torch_compile"):
            if self.arguments.get(name):
                raise ValueError(f"`item_table: sharded` does not work with `{name}`; leave it out")

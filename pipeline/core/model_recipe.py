"""The part of a recipe that says which model learns, and how."""

from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from pipeline.core.arguments import closest
from pipeline.core.columns import ITEM
from pipeline.core.config import Config
from pipeline.core.errors import ConfigError
from pipeline.core.names import ARCHITECTURES, FULL_LOSSES, SAMPLED_LOSSES
from pipeline.core.spans import span_seconds
from pipeline.core.trainer_arguments import check_trainer_arguments

Value = str | int | bool
"""A category as it stands in the log."""
TableOptimizer = Literal["adamw", "lazy-adamw", "rowwise-adamw"]


class Pretrained(Config):
    """Vectors from a file, keyed by the raw values of a categorical feature."""

    file: str
    """Parquet or CSV: one column of ids, and a list column or columns of numbers."""
    feature: str = ITEM
    """Whose values the ids are."""
    use: Literal["input", "table"] = "input"
    """`input` adds them to what is known of an interaction; `table` begins the feature's own
    embeddings with them."""
    trainable: bool = False
    """Whether training changes them."""
    output_dim: int | None = Field(default=None, ge=1)
    """Width to which an `input` is projected; none where it is not given."""
    layer_norm: bool = False
    """Normalise an `input`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.use == "table" and (self.output_dim is not None or self.layer_norm):
            raise ValueError("`output_dim` and `layer_norm` are for `use: input`")
        return self


class Tower(Config):
    """Another sequence encoder beside the model's own; both read the same interactions."""

    architecture: str
    """As in `model`."""
    model_type: str | None = None
    """As in `model`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """As in `model`."""
    n_head: int = Field(default=4, ge=1)
    """Attention heads a layer."""
    n_layer: int = Field(default=1, ge=1)
    """Layers."""


class Member(Config):
    """A further model of an ensemble: what is given here differs from the first."""

    architecture: str | None = None
    """As in `model`."""
    model_type: str | None = None
    """As in `model`."""
    options: dict[str, Any] | None = None
    """As in `model`."""
    n_head: int | None = None
    """As in `model`."""
    n_layer: int | None = None
    """As in `model`."""
    d_model: int | None = None
    """As in `model`."""
    dropout: float | None = None
    """As in `model`."""
    feature_dropout: float | None = None
    """As in `model`."""
    item_dropout: float | None = None
    """As in `model`."""
    item_vectors: Literal["random", "co-visitation"] | None = None
    """As in `model`."""
    temperature: float | None = None
    """As in `model`."""


class Target(Config):
    """A column that the model predicts beside the next item, and does not read."""

    feature: str
    """Feature of the preprocessing: a session's, or one of each interaction."""
    kind: Literal["binary", "regression"]
    """A chance of yes, or a number."""
    positive: tuple[Value, ...] = ()
    """Values of a categorical feature that count as yes."""
    weight: float = Field(default=1.0, ge=0)
    """Of its loss; that of the next item has 1."""
    loss: Literal["mse", "l1", "huber"] = "mse"
    """Of a number."""
    summary: Literal["last", "mean"] = "last"
    """Which hidden state of a session: the one that predicts the next item, or the mean."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "binary" and not self.positive:
            raise ValueError("a binary target needs `positive`, the values that count as yes")
        if self.kind == "regression" and self.positive:
            raise ValueError("`positive` is for binary targets")
        return self


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


class ModelConfig(Config):
    """Shape of the model; with the schema all that is needed to rebuild it from a checkpoint."""

    architecture: str = "gpt2"
    """Sequence encoder: gpt2, xlnet, bert, albert, electra, roberta, longformer, reformer, gru,
    lstm, sasrec, hstu, core, ligr, or huggingface with a `model_type`."""
    model_type: str | None = None
    """Hugging Face's name of an architecture, such as llama, modernbert or mamba."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of Hugging Face's config of the architecture."""
    masking: Literal["clm", "mlm", "plm", "rtd"] = "clm"
    """clm: each position predicts the next item; mlm: hidden ones are predicted from both sides;
    plm: in a random order; rtd: mlm, and replaced ones are detected."""
    train_on_last_item_seq_only: bool = False
    """clm: the last item of a session alone is a target of training."""
    mlm_probability: float = Field(default=0.2, gt=0, lt=1)
    """Share of a session's interactions that mlm and rtd hide in training."""
    plm_probability: float = Field(default=1 / 6, gt=0, lt=1)
    """Share of a session's interactions that plm predicts in training."""
    max_span_length: int = Field(default=5, ge=1)
    """plm: longest run of interactions that are predicted."""
    permute_all: bool = False
    """plm: predict all interactions, each from those before it in the order."""
    sample_from_batch: bool | None = None
    """rtd: draw whole interactions of the batch; where the item is not the only feature, always."""
    tied_generator: bool = True
    """rtd: generator and discriminator are one encoder."""
    generator_loss_weight: float = Field(default=1.0, ge=0)
    """rtd: of the loss of hidden items."""
    discriminator_loss_weight: float = Field(default=1.0, ge=0)
    """rtd: of the loss of replaced items."""
    d_model: int = Field(default=64, ge=1)
    """D: width of interaction embeddings and hidden states."""
    n_head: int = Field(default=4, ge=1)
    """Attention heads a layer; must divide `d_model`. A recurrent network has none."""
    n_layer: int = Field(default=2, ge=1)
    """Layers of the sequence encoder."""
    dropout: float = Field(default=0.3, ge=0, lt=1)
    """Dropout of the encoder, also on interaction embeddings."""
    hidden_act: str = "gelu"
    """Activation of the encoder's layers, where the architecture leaves a choice."""
    mlp: tuple[int, ...] = ()
    """Widths of layers with ReLU between the input and the encoder."""
    towers: tuple[Tower, ...] = ()
    """Encoders side by side with the first; their hidden states are put together."""
    task_mlp: tuple[int, ...] = ()
    """Widths of layers with ReLU between the encoder and the scores."""
    item_dim: int | None = Field(default=None, ge=1)
    """Width of the item's table; `d_model` where it is not given."""
    embedding_dim: int = Field(default=16, ge=1)
    """Width of the tables of other categorical features."""
    embedding_deviation: float = Field(default=0.05, gt=0)
    """Of the initial weights of embedding tables."""
    item_vectors: Literal["random", "co-visitation"] = "random"
    """The item's table before training: random, or by which items stand near each other in the
    training sessions, which needs fewer epochs."""
    embedding_dims: dict[str, int] = Field(default_factory=dict)
    """Widths of single features' tables."""
    infer_embedding_sizes: bool = False
    """Widths of other tables from their cardinality: `multiplier` times its fourth root."""
    infer_embedding_sizes_multiplier: float = Field(default=2.0, gt=0)
    """See `infer_embedding_sizes`."""
    shared_tables: tuple[tuple[str, ...], ...] = ()
    """Categorical features that share one table."""
    pretrained: tuple[Pretrained, ...] = ()
    """Vectors from files."""
    aggregation: Literal["concat", "stack", "element-wise-sum", "element-wise-sum-item-multi"] = (
        "concat"
    )
    """How the features of an interaction become one vector."""
    continuous_projection: int | tuple[int, ...] | None = None
    """Widths of layers with ReLU through which all continuous features go together first."""
    continuous_soft_embeddings: bool = False
    """Each continuous feature becomes a mixture of learned vectors."""
    soft_embedding_cardinality: int = Field(default=10, ge=1)
    """Vectors of a soft embedding."""
    soft_embedding_dim: int = Field(default=8, ge=1)
    """Width of a soft embedding."""
    feature_layer_norm: bool = False
    """Normalise the embedding of each feature."""
    feature_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of each feature's embedding."""
    item_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the item vectors that score hidden states."""
    swap_noise: float = Field(default=0.0, ge=0, lt=1)
    """Chance that training swaps a feature's value with that of another interaction."""
    shared_embedding_noise: float = Field(default=0.0, ge=0, lt=1)
    """Chance that training replaces an index by a random one (stochastic shared embeddings)."""
    temperature: float = Field(default=1.0, gt=0)
    """Divides the scores."""
    normalize: bool = False
    """Score by the cosine of hidden state and item vector; wants a temperature of about 0.07."""
    weight_tying: bool = True
    """Score with the item's input embeddings."""
    targets: tuple[Target, ...] = ()
    """What is predicted beside the next item."""
    members: tuple[Member, ...] = ()
    """Further models that learn beside this one, each from its own loss; items are scored by the
    mean of all. `{}` is the same model again from other initial weights."""

    @property
    def each_member(self) -> "tuple[ModelConfig, ...]":
        """This model and its further members, each by itself."""
        alone = self.model_dump(mode="json", exclude={"members"})
        others = []
        for number, member in enumerate(self.members):
            changes = member.model_dump(mode="json", exclude_none=True)
            if "architecture" in changes:  # whose own these are
                changes = {"model_type": None, "options": {}} | changes
            try:
                others.append(ModelConfig.model_validate(alone | changes))
            except ValidationError as error:
                reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
                raise ValueError(f"`members.{number}`: {reason}") from None
        return (self.model_copy(update={"members": ()}), *others)

    @property
    def item_width(self) -> int:
        """Columns of the item's table, unless vectors from a file begin it."""
        return self.embedding_dims.get(ITEM) or self.item_dim or self.d_model

    @model_validator(mode="after")
    def _check(self) -> Self:
        encoders: list[ModelConfig | Tower] = [self, *self.towers]
        for encoder in encoders:
            _check_encoder(encoder, self.masking, self.d_model)
        projected = self.continuous_projection or ()
        widths = (projected,) if isinstance(projected, int) else projected
        if min((*self.mlp, *self.task_mlp, *widths), default=1) < 1:
            raise ValueError("a width of a layer is 1 or more")
        uses = [(vectors.feature, vectors.use) for vectors in self.pretrained]
        if len(set(uses)) < len(uses):
            raise ValueError("`pretrained` names a feature twice for the same use")
        if self.item_dim is not None and ITEM in self.embedding_dims:
            raise ValueError(f"`item_dim` and `embedding_dims: {ITEM}` say the same; keep one")
        if self.item_vectors != "random" and (ITEM, "table") in uses:
            raise ValueError(
                "`item_vectors` and `pretrained` both begin the item's table; keep one"
            )
        if self.continuous_soft_embeddings and self.continuous_projection is not None:
            raise ValueError("choose one of continuous_projection and continuous_soft_embeddings")
        if self.train_on_last_item_seq_only and self.masking != "clm":
            raise ValueError("`train_on_last_item_seq_only` is for clm")
        if ITEM in {target.feature for target in self.targets}:
            raise ValueError(f"`{ITEM}` is the next item's, which is always predicted")
        _ = self.each_member  # ValueError where one cannot be
        return self


def _check_encoder(encoder: ModelConfig | Tower, masking: str, d_model: int) -> None:
    name = encoder.architecture
    if name not in ARCHITECTURES:
        raise ValueError(f"there is no architecture {name!r}; {closest(name, [*ARCHITECTURES])}")
    if masking not in ARCHITECTURES[name]:
        works = ", ".join(ARCHITECTURES[name])
        others = [n for n, known in ARCHITECTURES.items() if masking in known]
        raise ValueError(
            f"{name} works with {works}, not with {masking}, which works with {', '.join(others)}"
        )
    if (name == "huggingface") != (encoder.model_type is not None):
        raise ValueError("`model_type` belongs to `architecture: huggingface`, and it needs one")
    if encoder.options and name in ("gru", "lstm", "sasrec", "hstu", "core", "ligr"):
        raise ValueError(f"`options` are for Hugging Face's architectures, not for {name}")
    if name not in ("gru", "lstm") and d_model % encoder.n_head:
        raise ValueError(f"`n_head` {encoder.n_head} does not divide `d_model` {d_model}")
    if name == "xlnet" and d_model % 2:
        raise ValueError(f"xlnet's positions need an even `d_model`, found {d_model}")


class TrainConfig(Config):
    """How the model learns."""

    epochs: int = Field(default=10, ge=1)
    """Passes over the training sessions."""
    batch_size: int = Field(default=128, ge=1)
    """B: sessions that a process reads at once; a step, unless gradients are accumulated."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Batches a step: their gradients count as those of one batch of so many times the size."""
    learning_rate: float = Field(default=1e-3, gt=0)
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

    def _check_sharded(self) -> None:
        if self.loss != "cross-entropy":
            raise ValueError(f"`item_table: sharded` is for cross-entropy, not for {self.loss}")
        if self.table_optimizer != "adamw":
            raise ValueError(f"`item_table: sharded` works with adamw, not {self.table_optimizer}")
        # which would treat processes apart that must take the same steps
        for name in ("optim", "fp16", "torch_compile"):
            if self.arguments.get(name):
                raise ValueError(f"`item_table: sharded` does not work with `{name}`; leave it out")

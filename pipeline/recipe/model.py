"""The `model` section of a recipe: the architecture and its inputs."""

from typing import Any, Literal, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from pipeline.core.columns import ITEM
from pipeline.core.config import Config
from pipeline.core.errors import ConfigError, closest
from pipeline.recipe.choices import ARCHITECTURES, FROM_PLUGINS, NEXT_ITEM, ranking_expression
from pipeline.recipe.counting import COUNTING

Value = str | int | bool
"""Raw value of a category."""


class Pretrained(Config):
    """Pretrained vectors of the values of a categorical feature, read from a file."""

    file: str
    """Parquet or CSV: a column of raw values, and a list column or columns of numbers."""
    feature: str = ITEM
    """Feature whose values have vectors."""
    use: Literal["input", "table"] = "input"
    """`input` adds an input to each interaction; `table` initializes the embeddings of the
    feature."""
    trainable: bool = False
    """Whether training updates the vectors."""
    output_dim: int | None = Field(default=None, ge=1)
    """Width to which an `input` is projected; by default there is no projection."""
    layer_norm: bool = False
    """Apply layer norm to an `input`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.use == "table" and (self.output_dim is not None or self.layer_norm):
            raise ValueError("`output_dim` and `layer_norm` are for `use: input`")
        return self


class Tower(Config):
    """Further sequence encoder over the same interactions as the first."""

    architecture: str
    """As in `model`."""
    model_type: str | None = None
    """As in `model`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """As in `model`."""
    n_head: int = Field(default=4, ge=1)
    """Attention heads per layer."""
    n_layer: int = Field(default=1, ge=1)
    """Layers."""


class Member(Config):
    """Further model of an ensemble; fields that are not set are those of the first."""

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
    """Column that the model predicts beside the next item, and does not read."""

    feature: str
    """Feature of the `preprocess` section, of a session or of each interaction."""
    kind: Literal["binary", "regression"]
    """A probability or a number."""
    positive: tuple[Value, ...] = ()
    """Values of a categorical feature that are the positive class."""
    weight: float = Field(default=1.0, ge=0)
    """Weight of its loss; the loss of the next item has weight 1."""
    loss: Literal["mse", "l1", "huber"] = "mse"
    """Loss of a regression target."""
    summary: Literal["last", "mean"] = "last"
    """Hidden state that the prediction reads: the last one of the session, or the mean of all."""
    per_item: bool = False
    """Predict it for the next interaction with each candidate item, for use in `rank_by`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.per_item and self.summary != "last":
            raise ValueError("`summary` is for a target of the session, not for `per_item`")
        if self.kind == "binary" and not self.positive:
            raise ValueError("a binary target needs `positive`, the values of the positive class")
        if self.kind == "regression" and self.positive:
            raise ValueError("`positive` is for binary targets")
        return self


def _item_vectors(fields: dict[str, Any]) -> Literal["random", "co-visitation"]:
    """Default of `item_vectors`: co-visitation where nothing else initializes the item table."""
    initialized = any(v.feature == ITEM and v.use == "table" for v in fields["pretrained"])
    shared = any(ITEM in group for group in fields["shared_tables"])
    return "random" if initialized or shared else "co-visitation"


def _temperature(fields: dict[str, Any]) -> float:
    """Default of `temperature`: a cosine is at most 1, too flat for a softmax over a catalogue."""
    return 0.07 if fields["normalize"] else 1.0


class ModelConfig(Config):
    """Settings of the model, which with the schema suffice to rebuild it from a checkpoint.

    The defaults are a model that is strong on shop and rating logs of 2,000 to 200,000 sessions
    (docs/reference/published-recipes.md). A default that depends on another setting is resolved
    here, so that a dump holds the value itself.
    """

    architecture: str = "sasrec"
    """Sequence encoder: gpt2, xlnet, bert, albert, electra, roberta, longformer, reformer, gru,
    lstm, sasrec, hstu, core, ligr, or huggingface with a `model_type`. Or a counting model, which
    reads none of the settings below but `options`: popularity, recent-popularity, co-visitation,
    sequential-rules, item-knn, ease or session-knn."""
    model_type: str | None = None
    """Hugging Face's name of an architecture, such as llama, modernbert or mamba."""
    options: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    """Further arguments of Hugging Face's config of the architecture; of hstu `time_bias`; of a
    counting model its options, see `pipeline.recipe.counting`."""
    masking: Literal["clm", "mlm", "plm", "rtd"] = "clm"
    """clm: each position predicts the next item; mlm: masked items are predicted from both sides;
    plm: items are predicted in a random order; rtd: mlm, and replaced items are detected."""
    train_on_last_item_seq_only: bool = False
    """clm: train on the last item of each session alone."""
    mlm_probability: float = Field(default=0.2, gt=0, lt=1)
    """Share of a session's interactions that mlm and rtd mask in training."""
    plm_probability: float = Field(default=1 / 6, gt=0, lt=1)
    """Share of a session's interactions that plm predicts in training."""
    max_span_length: int = Field(default=5, ge=1)
    """plm: longest run of interactions that are predicted."""
    permute_all: bool = False
    """plm: predict all interactions, each from those before it in the order."""
    sample_from_batch: bool | None = None
    """rtd: replacements are whole interactions of the batch; always so with several features."""
    tied_generator: bool = True
    """rtd: generator and discriminator share one encoder."""
    generator_loss_weight: float = Field(default=1.0, ge=0)
    """rtd: weight of the loss of masked items."""
    discriminator_loss_weight: float = Field(default=1.0, ge=0)
    """rtd: weight of the loss of replaced items."""
    d_model: int = Field(default=96, ge=1)
    """D: width of interaction embeddings and hidden states."""
    n_head: int = Field(default=4, ge=1)
    """Attention heads per layer; must divide `d_model`. A recurrent network has none."""
    n_layer: int = Field(default=2, ge=1)
    """Layers of the sequence encoder."""
    dropout: float = Field(default=0.3, ge=0, lt=1)
    """Dropout of the encoder, also on interaction embeddings."""
    hidden_act: str = "gelu"
    """Activation of the encoder's layers, where the architecture has a choice."""
    mlp: tuple[int, ...] = ()
    """Widths of layers with ReLU between the input and the encoder."""
    towers: tuple[Tower, ...] = ()
    """Encoders beside the first; their hidden states are combined."""
    task_mlp: tuple[int, ...] = ()
    """Widths of layers with ReLU between the encoder and the item scores."""
    item_dim: int | None = Field(default=None, ge=1)
    """Width of the item table, by default `d_model`."""
    embedding_dim: int = Field(default=16, ge=1)
    """Width of the tables of other categorical features."""
    embedding_deviation: float = Field(default=0.05, gt=0)
    """Standard deviation of the initial weights of embedding tables."""
    embedding_dims: dict[str, int] = Field(default_factory=dict)
    """Table widths by feature."""
    infer_embedding_sizes: bool = False
    """Set the widths of other tables to the multiplier times the fourth root of the cardinality."""
    infer_embedding_sizes_multiplier: float = Field(default=2.0, gt=0)
    """Multiplier of `infer_embedding_sizes`."""
    shared_tables: tuple[tuple[str, ...], ...] = ()
    """Categorical features that share one table."""
    pretrained: tuple[Pretrained, ...] = ()
    """Pretrained vectors from files."""
    item_vectors: Literal["random", "co-visitation"] = Field(default_factory=_item_vectors)
    """Initial item table: random, or by co-visitation in the training sessions, which needs fewer
    epochs and is better for rare items. By default co-visitation, unless `pretrained` initializes
    the item table or the item shares it with another feature (`shared_tables`)."""
    aggregation: Literal["concat", "stack", "element-wise-sum", "element-wise-sum-item-multi"] = (
        "concat"
    )
    """How the features of an interaction become one vector."""
    continuous_projection: int | tuple[int, ...] | None = None
    """Widths of layers with ReLU that project all continuous features together."""
    continuous_soft_embeddings: bool = False
    """Embed each continuous feature as a mixture of learned vectors."""
    soft_embedding_cardinality: int = Field(default=10, ge=1)
    """Vectors of a soft embedding."""
    soft_embedding_dim: int = Field(default=8, ge=1)
    """Width of a soft embedding."""
    feature_layer_norm: bool = False
    """Apply layer norm to the embedding of each feature."""
    feature_dropout: float = Field(default=0.2, ge=0, lt=1)
    """Dropout of each feature's embedding."""
    item_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the item vectors that hidden states are scored with."""
    swap_noise: float = Field(default=0.0, ge=0, lt=1)
    """Probability that training swaps a feature's value with that of another interaction."""
    shared_embedding_noise: float = Field(default=0.0, ge=0, lt=1)
    """Probability that training replaces an index by a random one (stochastic shared
    embeddings)."""
    normalize: bool = True
    """Score by the cosine of hidden state and item vector, not by their inner product."""
    temperature: float = Field(default_factory=_temperature, gt=0)
    """Divisor of the scores, by default 0.07 for a cosine and 1 for an inner product."""
    weight_tying: bool = True
    """Score with the item's input embeddings."""
    targets: tuple[Target, ...] = ()
    """Targets beside the next item."""
    rank_by: str | None = None
    """Score by which lists are ranked: an expression of `next_item`, the next item's score, and of
    the targets with `per_item`, such as `next_item + 0.5 * purchase`. By default `next_item`."""
    repeats: float = Field(default=0.0, ge=0, lt=1)
    """Share of the session's own items in the distribution of the next item, the newest first;
    lists are ordered by the sum of both shares. For logs in which sessions return to an item."""
    next_item: bool = True
    """Predict the next item; false for a model of `targets` alone."""
    members: tuple[Member, ...] = ()
    """Further models of an ensemble, each trained on its own loss; scores are the mean of all.
    `{}` is the same model with other initial weights."""

    @property
    def counting(self) -> Config | None:
        """Options of a counting model, None for an architecture that is trained by gradients."""
        options = COUNTING.get(self.architecture)
        return None if options is None else options.model_validate(self.options)

    def settings(self) -> dict[str, Any]:
        """Return the settings that define the model, as JSON values."""
        of_counting = None if self.counting is None else {"architecture", "options"}
        return self.model_dump(mode="json", include=of_counting)

    @field_validator("options")
    @classmethod
    def _check_options(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """Add the defaults of a counting model, so that a dump holds all of its options."""
        kind = COUNTING.get(info.data.get("architecture", ""))
        if kind is None:
            return options
        try:
            return kind.from_dict(options, info.data["architecture"]).model_dump(mode="json")
        except ConfigError as error:  # pydantic adds the location to a ValueError
            raise ValueError(str(error)) from None

    @property
    def each_member(self) -> "tuple[ModelConfig, ...]":
        """Models of the ensemble, this one first."""
        alone = self.model_dump(mode="json", exclude={"members"})
        others = []
        for number, member in enumerate(self.members):
            changes = member.model_dump(mode="json", exclude_none=True)
            if "architecture" in changes:  # these belong to the first one's architecture
                changes = {"model_type": None, "options": {}} | changes
            if changes.get("architecture") in COUNTING:
                raise ValueError(
                    f"`members.{number}`: {changes['architecture']} is a counting model, which "
                    "no ensemble takes"
                )
            try:
                others.append(ModelConfig.model_validate(alone | changes))
            except ValidationError as error:
                reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
                raise ValueError(f"`members.{number}`: {reason}") from None
        return (self.model_copy(update={"members": ()}), *others)

    @property
    def item_width(self) -> int:
        """Width of the item table, unless pretrained vectors initialize it."""
        return self.embedding_dims.get(ITEM) or self.item_dim or self.d_model

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.architecture in COUNTING:
            self._check_counting()
            return self
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
            raise ValueError(f"`item_dim` and `embedding_dims: {ITEM}` are one setting; keep one")
        if self.item_vectors != "random" and (ITEM, "table") in uses:
            raise ValueError(
                "`item_vectors` and `pretrained` both initialize the item table; keep one"
            )
        if self.continuous_soft_embeddings and self.continuous_projection is not None:
            raise ValueError("choose one of continuous_projection and continuous_soft_embeddings")
        if self.train_on_last_item_seq_only and self.masking != "clm":
            raise ValueError("`train_on_last_item_seq_only` is for clm")
        self._check_targets()
        self._check_repeats()
        _ = self.each_member  # raises ValueError for a wrong member
        return self

    def _check_counting(self) -> None:
        """ValueError for settings of another kind of model."""
        for name, is_set in (
            ("targets", bool(self.targets)),
            ("rank_by", self.rank_by is not None),
            ("next_item: false", not self.next_item),
            ("towers", bool(self.towers)),
            ("members", bool(self.members)),
            ("repeats", bool(self.repeats)),
        ):
            if is_set:
                raise ValueError(
                    f"{self.architecture} counts next items and has no `{name}`; leave it out"
                )

    def _check_repeats(self) -> None:
        for name, is_set in (
            ("next_item: false", not self.next_item),
            ("per_item", any(target.per_item for target in self.targets)),
            (f"masking: {self.masking}", self.masking != "clm"),
        ):
            if self.repeats and is_set:
                raise ValueError(f"`repeats` does not work with `{name}`; leave one of them out")

    def _check_targets(self) -> None:
        features = [target.feature for target in self.targets]
        if len(set(features)) < len(features):
            raise ValueError("`targets` names a feature twice")
        if not self.next_item and (not self.targets or self.members):
            raise ValueError("`next_item: false` needs `targets`, and goes without `members`")
        if ITEM in features:
            raise ValueError(
                f"`{ITEM}` is the next item's; `next_item` says whether it is predicted"
            )
        per_item = [target.feature for target in self.targets if target.per_item]
        for name, is_set in (
            ("next_item: false", not self.next_item),
            ("members", bool(self.members)),
            ("masking: rtd", self.masking == "rtd"),
        ):
            if per_item and is_set:
                raise ValueError(f"`per_item` does not work with `{name}`; leave one of them out")
        if NEXT_ITEM in per_item:
            raise ValueError(f"`{NEXT_ITEM}` is the next item's score; rename the target's feature")
        if self.rank_by is not None:
            try:
                ranking_expression(self.rank_by, per_item)
            except ValueError as error:
                raise ValueError(f"`rank_by`: {error}") from None


def _check_encoder(encoder: ModelConfig | Tower, masking: str, d_model: int) -> None:
    name = encoder.architecture
    if name in COUNTING:
        raise ValueError(f"{name} is a counting model, which cannot be an encoder")
    if name not in ARCHITECTURES:
        names = [*ARCHITECTURES, *COUNTING]
        hint = closest(name, names)
        raise ValueError(f"there is no architecture {name!r}; {hint} {FROM_PLUGINS}")
    if masking not in ARCHITECTURES[name]:
        works = ", ".join(ARCHITECTURES[name])
        others = [n for n, maskings in ARCHITECTURES.items() if masking in maskings]
        raise ValueError(
            f"{name} works with {works}, not with {masking}, which works with {', '.join(others)}"
        )
    if (name == "huggingface") != (encoder.model_type is not None):
        raise ValueError("`model_type` belongs to `architecture: huggingface`, and it needs one")
    if name == "hstu" and encoder.options not in ({}, {"time_bias": True}, {"time_bias": False}):
        raise ValueError("`options` of hstu are `time_bias: true` or `false`")
    if encoder.options and name in ("gru", "lstm", "sasrec", "core", "ligr"):
        raise ValueError(f"`options` are for Hugging Face's architectures, not for {name}")
    if name not in ("gru", "lstm") and d_model % encoder.n_head:
        raise ValueError(f"`n_head` {encoder.n_head} does not divide `d_model` {d_model}")
    if name == "xlnet" and d_model % 2:
        raise ValueError(f"xlnet's positions need an even `d_model`, found {d_model}")

"""Any Hugging Face architecture that takes `inputs_embeds`, as an encoder of sessions.

The direction of attention is measured: the derivative of early outputs by later inputs is exactly
zero for a causal model. A bidirectional model gets an (L, L) mask under clm; a model that ignores
the mask is refused.
"""

import copy
import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.core.errors import ConfigError, closest
from pipeline.data.batch import visible_positions
from pipeline.model.masking import Masking
from pipeline.model.ops.token_pruning import TokenPruning, token_pruning_of

Mask = Literal["none", "padding", "causal", "order"]
"""Attention mask: none, padding (B, L), causal (L, L), or the order of plm (B, L, L)."""


def import_transformers() -> Any:
    """Import Hugging Face transformers at first use, as the import takes seconds."""
    import transformers

    transformers.logging.set_verbosity_error()  # its warnings are about tokens
    return transformers


class HuggingFaceEncoder(nn.Module):
    """Encoder around a Hugging Face model.

    `fixed_length` pads every row to one number of positions; `dropout` applies to the input, for
    a model without dropout of its own.
    """

    def __init__(
        self,
        transformer: Any,
        mask: Mask,
        d_output: int,
        fixed_length: int | None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.transformer = transformer
        self.mask: Mask = mask
        self.d_output = d_output
        """Width of the hidden states."""
        self.fixed_length = fixed_length
        self.token_pruning: TokenPruning | None = None
        """Hooks that drop positions without a target in the last layer, None if unsupported."""

    def forward(
        self,
        embeddings: Tensor,
        lengths: Tensor,
        order: Tensor | None,
        has_target: Tensor | None = None,
        most_targets: int | None = None,
    ) -> Tensor:
        """(B, L, D), (B,), (B, L) or None -> (B, L, d_output).

        With `has_target` (B, L) bool the hidden states of other positions are undefined.
        `most_targets` is that of MaskedSequence.
        """
        if has_target is None or self.token_pruning is None or self.fixed_length is not None:
            hidden: Tensor = self._run(embeddings, lengths, order).last_hidden_state
            return hidden[:, : embeddings.size(1)]
        with self.token_pruning.only_at(has_target, most_targets):
            pruned: Tensor = self._run(embeddings, lengths, order).last_hidden_state
        return pruned

    def attentions(
        self, embeddings: Tensor, lengths: Tensor, order: Tensor | None
    ) -> tuple[Tensor, ...]:
        """(B, H, L, L) attention weights of each layer, query position by key position."""
        config = self.transformer.config
        before = config._attn_implementation
        can_switch = hasattr(self.transformer, "set_attn_implementation")
        if can_switch:
            self.transformer.set_attn_implementation("eager")  # the others return no weights
        try:
            output = self._run(embeddings, lengths, order, attentions=True)
        finally:
            if can_switch:
                self.transformer.set_attn_implementation(before)
        weights = getattr(output, "attentions", None)
        if not weights or any(layer is None for layer in weights):
            raise ConfigError(f"{config.model_type} gives no attention weights.")
        width = embeddings.size(1)
        # XLNet returns one tensor per stream; the last stream predicts
        layers = [layer[-1] if isinstance(layer, tuple) else layer for layer in weights]
        if config.model_type == "longformer":
            layers = [_by_position(layer) for layer in layers]
        return tuple(layer[:, :, :width, :width] for layer in layers)

    def _run(
        self, embeddings: Tensor, lengths: Tensor, order: Tensor | None, *, attentions: bool = False
    ) -> Any:
        if self.fixed_length is not None:
            padding = embeddings.new_zeros(1, self.fixed_length, embeddings.size(2))
            padding = padding.expand(embeddings.size(0), -1, -1)
            embeddings = torch.cat([embeddings, padding], 1)[:, : self.fixed_length]
        masks = self._masks(embeddings, lengths, order)
        if attentions:
            masks["output_attentions"] = True
        return self.transformer(inputs_embeds=self.dropout(embeddings), **masks)

    def _masks(self, embeddings: Tensor, lengths: Tensor, order: Tensor | None) -> dict[str, Any]:
        """Mask arguments of the Hugging Face model."""
        width, kind = embeddings.size(1), self.mask
        whole = prefers_whole_masks(embeddings) and self.transformer.training
        whole = whole and self.transformer.config._attn_implementation == "sdpa"
        if kind == "none" and whole:
            kind = "causal"
        if kind == "none":
            return {}  # causal: no position sees padding on the right
        if kind == "causal":
            future = torch.ones(width, width, dtype=torch.bool, device=lengths.device).triu(1)
            if self.transformer.config._attn_implementation == "eager":
                lowest = torch.finfo(embeddings.dtype).min
                mask = embeddings.new_zeros(width, width).masked_fill(future, lowest)
            else:
                mask = ~future
            return {"attention_mask": mask.expand(embeddings.size(0), 1, -1, -1)}
        # a row of padding alone needs one visible position
        visible = visible_positions(lengths.clamp(min=1), width).to(embeddings.dtype)
        if kind == "padding" and whole:
            return {"attention_mask": visible.bool()[:, None, None].expand(-1, 1, width, -1)}
        if kind == "padding":
            return {"attention_mask": visible}
        assert order is not None  # noqa: S101
        later = (order.unsqueeze(1) >= order.unsqueeze(2)) & (order.unsqueeze(1) >= 0)  # (B, L, L)
        own = torch.eye(width, dtype=embeddings.dtype, device=embeddings.device)
        return {
            "attention_mask": visible,
            "perm_mask": later.to(embeddings.dtype),
            "target_mapping": own.expand(embeddings.size(0), -1, -1),
        }


def prefers_whole_masks(values: Tensor) -> bool:
    """Whether to pass masks of (B, 1, L, L), which Hugging Face's models use unchanged.

    In training the models check whether a smaller mask masks any position, which synchronizes the
    GPU.
    """
    return values.device.type != "cpu"


def _by_position(weights: Tensor) -> Tensor:
    """(B, H, L, W + 1) weights at distances -W/2..W/2 -> (B, H, L, L)."""
    length, half = weights.size(2), weights.size(3) // 2
    positions = torch.arange(length, device=weights.device)
    distance = positions - positions.unsqueeze(1) + half  # (L, L)
    inside = (distance >= 0) & (distance < weights.size(3))
    columns = distance.clamp(0, weights.size(3) - 1).expand(*weights.shape[:2], -1, -1)
    return weights.gather(3, columns) * inside


def wrap_transformer(
    transformer: Any,
    masking: Masking,
    *,
    d_model: int,
    positions: int | None = None,
    fixed_length: int | None = None,
    dropout: float = 0.0,
) -> HuggingFaceEncoder:
    """Measure which attention mask the model needs, and wrap it as an encoder.

    `positions` is the number of positions of the model, None without a limit. ConfigError for a
    model that ignores the mask that it needs.
    """
    kind = transformer.config.model_type
    width = fixed_length or min(4, positions or 4)
    measured = _measure_visibility(transformer, "none", d_model, width, fixed_length)
    if masking.causal:
        if measured.sees_later:
            measured = _measure_visibility(transformer, "causal", d_model, width, fixed_length)
        if measured.sees_later:
            raise ConfigError(
                f"{kind} is bidirectional and ignores a causal mask, so clm would show it the "
                "target. Use mlm, or a causal architecture such as gpt2."
            )
    else:
        if masking.looks_both_ways and not measured.sees_later:
            raise ConfigError(f"{kind} is causal and works with clm, not with {masking.name}.")
        if measured.sees_later:
            measured = _measure_visibility(transformer, "padding", d_model, width, fixed_length)
        if measured.sees_later:
            raise ConfigError(f"{kind} ignores a padding mask, so padding would change scores.")
    # parameters without effect on the output, such as the token table, are not trained
    for parameter in measured.unused:
        parameter.requires_grad_(False)
    encoder = HuggingFaceEncoder(
        transformer, measured.mask, measured.d_output, fixed_length, dropout
    )
    if masking.few_targets:
        encoder.token_pruning = token_pruning_of(transformer)
    return encoder


class Visibility(NamedTuple):
    """Measurement of a model with one attention mask."""

    mask: Mask
    sees_later: bool
    """Whether early positions depend on later ones, or with a padding mask on padding."""
    d_output: int
    unused: list[nn.Parameter]
    """Parameters on which the output does not depend."""


def _measure_visibility(
    transformer: Any, mask: Mask, d_model: int, width: int, fixed_length: int | None
) -> Visibility:
    """Run two rows of `width` positions; the early positions must not depend on the rest."""
    early = min(2, (width + 1) // 2)
    encoder = HuggingFaceEncoder(transformer, mask, d_model, fixed_length)
    training = transformer.training
    transformer.eval()
    device = next(transformer.parameters()).device
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(2, width, d_model, generator=generator).to(device).requires_grad_()
    lengths = torch.full((2,), early if mask == "padding" else width, device=device)
    parameters = [p for p in transformer.parameters() if p.requires_grad]
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            hidden = encoder(embeddings, lengths, None)[:, :early]  # (2, early, d_output)
            weights = torch.randn(hidden.shape, generator=generator).to(device)
            by_input, *by_parameter = torch.autograd.grad(
                (hidden * weights).sum(), [embeddings, *parameters], allow_unused=True
            )
    except Exception as error:
        if mask == "causal":  # the model does not accept a causal mask
            return Visibility(mask, True, d_model, [])
        line = " ".join(str(error).split())[:160] or type(error).__name__
        raise ConfigError(
            f"{transformer.config.model_type} does not run on `inputs_embeds`: {line}"
        ) from None
    finally:
        transformer.train(training)
    unused = [p for p, g in zip(parameters, by_parameter, strict=True) if g is None]
    return Visibility(mask, bool(by_input[:, early:].any()), hidden.size(-1), unused)


def build_transformer(
    model: str,
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any],
    options: Mapping[str, Any],
    **arguments: Any,
) -> Any:
    """Build a Hugging Face model with fresh weights by its class name.

    Its config gets `settings`, which are fixed, and `defaults`, which `options` may change.
    """
    model_class = getattr(import_transformers(), model)
    config = make_config(model_class.config_class, settings, defaults, options)
    return construct(config.model_type, model_class, config, **arguments)


def make_config(
    config_class: Any,
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Any:
    """Make a Hugging Face config.

    ConfigError for an unknown option, which Hugging Face would ignore, and for an option that
    `settings` fix.
    """
    aliases = config_class.attribute_map
    names = [f.name for f in dataclasses.fields(config_class)] + list(aliases)
    for name in options:
        if name not in names:
            raise ConfigError(
                f"{config_class.__name__} has no option `{name}`; {closest(name, names)}"
            )
        if name in settings or aliases.get(name) in settings:
            raise ConfigError(
                f"The option `{name}` of {config_class.__name__} follows from the rest of the "
                "model; leave it out."
            )
    return construct(config_class.__name__, config_class, **{**settings, **defaults, **options})


def construct(name: str, constructor: Callable[..., Any], *values: Any, **arguments: Any) -> Any:
    """Call a constructor of Hugging Face. ConfigError in one line if it raises."""
    try:
        return constructor(*values, **arguments)
    except Exception as error:
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(f"{name} cannot be made: {line}") from None


def wrap_config_or_model(
    transformer: Any, masking: Masking
) -> tuple[HuggingFaceEncoder, int, int | None]:
    """Encoder of a Hugging Face config (with fresh weights) or model, its D and its L (or None).

    ConfigError for other objects. Rows are not padded to a fixed width; a model that depends on
    its shape needs `HuggingFaceConfig.build`.
    """
    transformers = import_transformers()
    if isinstance(transformer, transformers.PreTrainedModel):
        model = transformer
    elif isinstance(transformer, transformers.PretrainedConfig):
        config = copy.deepcopy(transformer)
        model = construct(config.model_type, transformers.AutoModel.from_config, config)
    else:
        raise ConfigError(
            f"TransformerBlock got {type(transformer).__name__}, expected a config such as "
            "GPT2Config.build(...), or one of Hugging Face's."
        )
    config = model.config
    if masking.name == "plm":
        raise ConfigError("plm works with xlnet: XLNetConfig.build(...).")
    if hasattr(config, "use_cache"):
        config.use_cache = False
    if masking.causal and config.model_type == "xlnet":
        config.attn_type = "uni"
        model.attn_type = "uni"
    width = getattr(config, "hidden_size", None)
    if not isinstance(width, int):
        raise ConfigError(
            f"{config.model_type} has no hidden_size, so it is not a sequence encoder."
        )
    positions = _num_positions(model)
    encoder = wrap_transformer(model, masking, d_model=width, positions=positions)
    return encoder, width, positions


def _num_positions(model: Any) -> int | None:
    """Number of positions of a Hugging Face model, None without a limit."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    # RoBERTa's position ids start after the padding id
    return positions if padding is None else positions - padding - 1

"""Any Hugging Face architecture that takes `inputs_embeds`, as an encoder of sessions.

Which way an architecture looks is measured, not looked up: the derivative of what it gives at
early positions by what stands at later ones is exactly zero if it does not look there. What looks
both ways gets a mask with one row for each position under clm; an architecture that does not heed
it is refused.
"""

import copy
import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn

from pipeline.core.arguments import closest
from pipeline.core.errors import ConfigError
from pipeline.data.batch import visible_positions
from pipeline.model.encoders.config import EncoderConfig
from pipeline.model.masking import Masking
from pipeline.model.ops.token_pruning import TokenPruning, token_pruning_of

transformers.logging.set_verbosity_error()  # it advises on tokens, which sessions do not have

Mask = Literal["none", "padding", "causal", "order"]
"""What the attention is told: nothing; which positions are padding; for each position, which ones
it may see; the same, by the order of a permutation."""


class HuggingFaceEncoder(nn.Module):
    """Encoder around a Hugging Face model."""

    def __init__(
        self,
        transformer: Any,
        mask: Mask,
        d_output: int,
        room: int | None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.transformer = transformer
        self.mask: Mask = mask
        self.d_output = d_output
        """Width of the hidden states."""
        self.room = room
        """Positions that rows are padded to, where the model must always see the same number."""
        self.token_pruning: TokenPruning | None = None
        """Where it can do without some positions."""

    def forward(
        self,
        embeddings: Tensor,
        lengths: Tensor,
        order: Tensor | None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """(B, L, D), (B,), (B, L) or None -> (B, L, d_output).

        What stands where (B, L) `wanted` is False may be anything.
        """
        if wanted is None or self.token_pruning is None or self.room is not None:
            with_all = self._run(embeddings, lengths, order).last_hidden_state
            return with_all[:, : embeddings.size(1)]
        with self.token_pruning.only_at(wanted):
            return self._run(embeddings, lengths, order).last_hidden_state

    def attentions(
        self, embeddings: Tensor, lengths: Tensor, order: Tensor | None
    ) -> tuple[Tensor, ...]:
        """(B, H, L, L) weights of each layer, as the positions that look by those looked at."""
        config = self.transformer.config
        before = config._attn_implementation
        if hasattr(self.transformer, "set_attn_implementation"):
            self.transformer.set_attn_implementation("eager")  # the others keep no weights
        try:
            found = getattr(
                self._run(embeddings, lengths, order, attentions=True), "attentions", None
            )
        finally:
            if hasattr(self.transformer, "set_attn_implementation"):
                self.transformer.set_attn_implementation(before)
        if not found or any(layer is None for layer in found):
            raise ConfigError(f"{config.model_type} gives no attention weights.")
        width = embeddings.size(1)
        # XLNet gives one tensor for each of its two streams; the last one predicts
        layers = [layer[-1] if isinstance(layer, tuple) else layer for layer in found]
        if config.model_type == "longformer":
            layers = [_by_position(layer) for layer in layers]
        return tuple(layer[:, :, :width, :width] for layer in layers)

    def _run(
        self,
        embeddings: Tensor,
        lengths: Tensor,
        order: Tensor | None,
        *,
        attentions: bool = False,
    ) -> Any:
        if self.room is not None:
            filling = embeddings.new_zeros(1, self.room, embeddings.size(2))
            filling = filling.expand(embeddings.size(0), -1, -1)
            embeddings = torch.cat([embeddings, filling], 1)[:, : self.room]
        masks = self._masks(embeddings, lengths, order)
        if attentions:
            masks["output_attentions"] = True
        return self.transformer(inputs_embeds=self.dropout(embeddings), **masks)

    def _masks(self, embeddings: Tensor, lengths: Tensor, order: Tensor | None) -> dict[str, Any]:
        width = embeddings.size(1)
        if self.mask == "none":
            return {}  # padding is on the right, where no position looks
        if self.mask == "causal":
            ahead = torch.ones(width, width, dtype=torch.bool, device=lengths.device).triu(1)
            if self.transformer.config._attn_implementation == "eager":
                lowest = torch.finfo(embeddings.dtype).min
                look = embeddings.new_zeros(width, width).masked_fill(ahead, lowest)
            else:
                look = ~ahead
            return {"attention_mask": look.expand(embeddings.size(0), 1, -1, -1)}
        # a row of padding alone would have nothing to attend to
        visible = visible_positions(lengths.clamp(min=1), width).to(embeddings.dtype)
        if self.mask == "padding":
            return {"attention_mask": visible}
        assert order is not None  # noqa: S101
        later = (order.unsqueeze(1) >= order.unsqueeze(2)) & (order.unsqueeze(1) >= 0)  # (B, L, L)
        own = torch.eye(width, dtype=embeddings.dtype, device=embeddings.device)
        return {
            "attention_mask": visible,
            "perm_mask": later.to(embeddings.dtype),
            "target_mapping": own.expand(embeddings.size(0), -1, -1),
        }


def _by_position(weights: Tensor) -> Tensor:
    """(B, H, L, W + 1) weights of what lies -W/2..W/2 away -> (B, H, L, L)."""
    length, reach = weights.size(2), weights.size(3) // 2
    places = torch.arange(length, device=weights.device)
    away = places - places.unsqueeze(1) + reach  # (L, L)
    inside = (away >= 0) & (away < weights.size(3))
    columns = away.clamp(0, weights.size(3) - 1).expand(*weights.shape[:2], -1, -1)
    return weights.gather(3, columns) * inside


def encoder_around(
    transformer: Any,
    masking: Masking,
    *,
    d_model: int,
    positions: int | None = None,
    room: int | None = None,
    dropout: float = 0.0,
) -> HuggingFaceEncoder:
    """Find out how a model must be told what it may see. ConfigError if it cannot be.

    `positions` is how many it has, if there is a limit; `dropout` is of what goes in, for a model
    that has none of its own.
    """
    kind = transformer.config.model_type
    width = room or min(4, positions or 4)
    natural = _probe(transformer, "none", d_model, width, room)
    if masking.causal:
        found = natural
        if natural.looks_ahead:
            found = _probe(transformer, "causal", d_model, width, room)
        if found.looks_ahead:
            raise ConfigError(
                f"{kind} looks both ways and cannot be kept from it, so clm would show it the "
                "target. Use mlm, or an architecture that looks back alone, such as gpt2."
            )
    else:
        if masking.looks_both_ways and not natural.looks_ahead:
            raise ConfigError(
                f"{kind} looks back alone and works with clm, not with {masking.name}."
            )
        found = natural
        if natural.looks_ahead:
            found = _probe(transformer, "padding", d_model, width, room)
        if found.looks_ahead:
            raise ConfigError(f"{kind} does not heed a padding mask, so padding would change it.")
    # its own token table, pooling and the like: what has no part in the result is not trained
    for parameter in found.unused:
        parameter.requires_grad_(False)
    encoder = HuggingFaceEncoder(transformer, found.mask, found.d_output, room, dropout)
    if masking.name in ("mlm", "rtd"):  # they learn from the hidden positions
        encoder.token_pruning = token_pruning_of(transformer)
    return encoder


@dataclasses.dataclass(frozen=True)
class Probe:
    """What was seen of a model."""

    mask: Mask
    looks_ahead: bool
    """Whether early positions depend on later ones (or, with a padding mask, on padding)."""
    d_output: int
    unused: list[nn.Parameter]
    """Parameters on which the result does not depend."""


def _probe(transformer: Any, mask: Mask, d_model: int, width: int, room: int | None) -> Probe:
    """Two rows of `width` positions, of which the first (two) must not depend on the rest."""
    seen = min(2, (width + 1) // 2)
    encoder = HuggingFaceEncoder(transformer, mask, d_model, room)
    training = transformer.training
    transformer.eval()
    device = next(transformer.parameters()).device
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(2, width, d_model, generator=generator).to(device).requires_grad_()
    lengths = torch.full((2,), seen if mask == "padding" else width, device=device)
    parameters = [p for p in transformer.parameters() if p.requires_grad]
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            early = encoder(embeddings, lengths, None)[:, :seen]  # (2, seen, d_output)
            weights = torch.randn(early.shape, generator=generator).to(device)
            by_input, *by_parameter = torch.autograd.grad(
                (early * weights).sum(), [embeddings, *parameters], allow_unused=True
            )
    except Exception as error:
        if mask == "causal":  # it does not take such a mask
            return Probe(mask, True, d_model, [])
        line = " ".join(str(error).split())[:160] or type(error).__name__
        raise ConfigError(
            f"{transformer.config.model_type} does not run on `inputs_embeds`: {line}"
        ) from None
    finally:
        transformer.train(training)
    unused = [p for p, g in zip(parameters, by_parameter, strict=True) if g is None]
    return Probe(mask, bool(by_input[:, seen:].any()), early.size(-1), unused)


def bert_settings(shape: EncoderConfig) -> dict[str, Any]:
    """What the configs of BERT and its kin call the numbers of a shape."""
    return {
        "vocab_size": 1,
        "hidden_size": shape.d_model,
        "intermediate_size": 4 * shape.d_model,
        "num_attention_heads": shape.n_head,
        "num_hidden_layers": shape.n_layer,
        "max_position_embeddings": shape.positions(),
        "hidden_act": shape.hidden_act,
        "initializer_range": shape.initializer_range,
        "layer_norm_eps": shape.layer_norm_eps,
        "hidden_dropout_prob": shape.dropout,
        "attention_probs_dropout_prob": shape.dropout,
        "pad_token_id": 0,
    }


def make_config(config_class: Any, settings: dict[str, Any], options: Mapping[str, Any]) -> Any:
    """A Hugging Face config. ConfigError for an option that it does not have: it takes any."""
    known = [f.name for f in dataclasses.fields(config_class)] + list(config_class.attribute_map)
    for name in options:
        if name not in known:
            raise ConfigError(
                f"{config_class.__name__} has no option `{name}`; {closest(name, known)}"
            )
    return made(config_class.__name__, lambda: config_class(**{**settings, **options}))


def made(name: str, make: Callable[[], Any]) -> Any:
    """What `make` gives. ConfigError in one line where another's program refuses."""
    try:
        return make()
    except Exception as error:
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(f"{name} cannot be made: {line}") from None


def encoder_of(given: Any, masking: Masking) -> tuple[HuggingFaceEncoder, int, int | None]:
    """Encoder, D and number of positions (None: unlimited) of a Hugging Face config or model.

    Rows have any width: where the model depends on its shape, use `HuggingFaceConfig.build`.
    """
    if isinstance(given, transformers.PreTrainedModel):
        model = given
    else:
        config = copy.deepcopy(given)
        model = made(given.model_type, lambda: transformers.AutoModel.from_config(config))
    config = model.config
    if hasattr(config, "use_cache"):
        config.use_cache = False
    if masking.causal and config.model_type == "xlnet":
        config.attn_type = "uni"
        model.attn_type = "uni"  # type: ignore[assignment]
    if masking.name == "plm":
        raise ConfigError("plm works with xlnet: XLNetConfig.build(...).")
    width = getattr(config, "hidden_size", None)
    if not isinstance(width, int):
        raise ConfigError(f"{config.model_type} has no hidden_size, so it is no sequence encoder.")
    positions = getattr(config, "max_position_embeddings", None)
    positions = positions if isinstance(positions, int) and positions > 0 else None
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    if positions is not None and padding is not None:
        positions -= padding + 1  # as RoBERTa's, they begin behind the padding's
    return encoder_around(model, masking, d_model=width, positions=positions), width, positions

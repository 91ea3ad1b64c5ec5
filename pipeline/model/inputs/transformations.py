"""Transformations of features before (`pre`) and after (`post`) they are embedded."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeline.core.columns import FIRST_ITEM, PADDING
from pipeline.core.errors import ConfigError
from pipeline.data.batch import SessionBatch, visible_positions
from pipeline.model.inputs.columns import child_name
from pipeline.model.ops.slots import Slots


class StochasticSwapNoise(nn.Module):
    """In training, replace random values by values of other interactions of the batch.

    Each feature is drawn independently; all indices, or the vector, of an interaction are replaced
    together. Padding is neither replaced nor a source. Features of a session are swapped between
    sessions.
    """

    def __init__(self, replacement_prob: float = 0.1) -> None:
        super().__init__()
        _check_chance("replacement_prob", replacement_prob)
        self.replacement_prob = replacement_prob

    def forward(self, batch: SessionBatch) -> SessionBatch:
        """SessionBatch -> SessionBatch; the input is not changed."""
        if not self.training:
            return batch
        width = batch.width
        visible = visible_positions(batch.lengths, width)
        features = {}
        for name, values in batch.features.items():
            if values.dim() > 1 and values.size(1) == width:
                swapped = self._swap(values.flatten(0, 1), visible.flatten())
            else:
                swapped = self._swap(values, batch.lengths > 0)
            features[name] = swapped.reshape(values.shape)
        return batch._replace(features=features)

    def _swap(self, values: Tensor, is_real: Tensor) -> Tensor:
        """(N, ...), (N,) -> (N, ...)."""
        real = Slots.of(is_real, is_real.numel())  # one slot per row, R of them filled
        count, slot = real.num_filled(), torch.arange(is_real.numel(), device=is_real.device)
        # a step of 1..R-1 among the real interactions, so never to itself
        steps = 1 + torch.rand(slot.shape, device=slot.device) * (count - 1)
        others = (slot + steps.to(torch.int64).clamp(max=count - 1)) % count.clamp(min=1)
        chosen = (torch.rand(slot.shape, device=slot.device) < self.replacement_prob) & (count > 1)
        own = real.take(values)
        chosen = chosen.reshape(-1, *[1] * (values.dim() - 1))
        return real.put(values, torch.where(chosen, own[others], own))


class StochasticSharedEmbeddings(nn.Module):
    """SSE-SE (Wu et al. 2019): in training, replace random indices by others of the feature.

    Replacements are drawn uniformly from the values of the vocabulary; padding stays.
    """

    def __init__(self, replacement_prob: float = 0.01) -> None:
        super().__init__()
        _check_chance("replacement_prob", replacement_prob)
        self.replacement_prob = replacement_prob
        self.num_rows: dict[str, int] | None = None

    def build(self, num_rows: Mapping[str, int]) -> None:
        """Set the number of rows of each categorical feature. ConfigError if it is set already."""
        if self.num_rows is not None:
            raise ConfigError("StochasticSharedEmbeddings belongs to another input block already.")
        self.num_rows = dict(num_rows)

    def forward(self, batch: SessionBatch) -> SessionBatch:
        """SessionBatch -> SessionBatch; the input is not changed."""
        if not self.training:
            return batch
        if self.num_rows is None:
            raise ConfigError("StochasticSharedEmbeddings works as `pre` of an input block.")
        features = dict(batch.features)
        for name, rows in self.num_rows.items():
            indices = features[name]
            if rows > FIRST_ITEM:
                drawn = torch.randint_like(indices, FIRST_ITEM, rows)
                chosen = torch.rand(indices.shape, device=indices.device) < self.replacement_prob
                features[name] = torch.where(chosen & (indices != PADDING), drawn, indices)
        return batch._replace(features=features)


class TabularLayerNorm(nn.Module):
    """Layer normalization of each feature's vector; a single number is unchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleDict()

    def build(self, widths: Mapping[str, int]) -> None:
        """Build the layers. ConfigError if they exist already."""
        if len(self.norms):
            raise ConfigError("TabularLayerNorm belongs to another input block already.")
        for name, width in widths.items():
            if width > 1:
                self.norms[child_name(name)] = nn.LayerNorm(width)

    def forward(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """F of (B, L, d_f) -> the same shapes."""
        normed = {}
        for name, part in parts.items():
            key = child_name(name)
            normed[name] = self.norms[key](part) if key in self.norms else part
        return normed


class TabularDropout(nn.Module):
    """Dropout on each feature's vector."""

    def __init__(self, dropout_rate: float = 0.1) -> None:
        super().__init__()
        if not 0 <= dropout_rate < 1:
            raise ConfigError(f"dropout_rate is {dropout_rate}, expected 0 or more and below 1.")
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """F of (B, L, d_f) -> the same shapes."""
        return {name: self.dropout(part) for name, part in parts.items()}


Transformations = str | nn.Module | Sequence[str | nn.Module] | None
_PRE: dict[str, type[nn.Module]] = {
    "stochastic-swap-noise": StochasticSwapNoise,
    "ssn": StochasticSwapNoise,
    "stochastic-shared-embeddings": StochasticSharedEmbeddings,
    "sse": StochasticSharedEmbeddings,
}
_POST: dict[str, type[nn.Module]] = {"layer-norm": TabularLayerNorm, "dropout": TabularDropout}


def build_pre(pre: Transformations, num_rows: Mapping[str, int]) -> list[nn.Module]:
    """Build modules of SessionBatch -> SessionBatch from names or modules."""
    modules = [_module(transformation, "pre", _PRE) for transformation in _each(pre)]
    for module in modules:
        if isinstance(module, tuple(_POST.values())):
            raise ConfigError(f"{type(module).__name__} works on embeddings. Give it as `post`.")
        if isinstance(module, StochasticSharedEmbeddings):
            module.build(num_rows)
    return modules


def build_post(post: Transformations) -> list[nn.Module]:
    """Build modules of {name: (B, L, d)} -> {name: (B, L, d)} from names or modules."""
    modules = [_module(transformation, "post", _POST) for transformation in _each(post)]
    for module in modules:
        if isinstance(module, tuple(_PRE.values())):
            raise ConfigError(
                f"{type(module).__name__} works on features before embedding. Give it as `pre`."
            )
    return modules


def _each(transformations: Transformations) -> Sequence[str | nn.Module]:
    if transformations is None:
        return []
    return [transformations] if isinstance(transformations, str | nn.Module) else transformations


def _module(name: str | nn.Module, argument: str, classes: dict[str, type[nn.Module]]) -> nn.Module:
    """Build a module by its name; a module is returned unchanged."""
    if isinstance(name, nn.Module):
        return name
    if name in (every := _PRE | _POST):
        return every[name]()
    raise ConfigError(f"{argument} is {name!r}. Expected {', '.join(classes)} or a module.")


def _check_chance(what: str, chance: float) -> None:
    if not 0 <= chance <= 1:
        raise ConfigError(f"{what} is {chance}, expected 0 to 1.")

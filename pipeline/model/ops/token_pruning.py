"""Token pruning: the last layer of an encoder computes some positions only.

After its attention a layer is position-wise: feed-forward network, dropout and norms, most of its
time. A masked model learns from the masked positions, a fifth of all, so the last layer drops the
others before this part.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pipeline.model.ops.slots import Slots


class TokenPruning:
    """Hooks around the position-wise part of a layer.

    The layer and the names of its weights are unchanged. Outside `only_at` the hooks do nothing;
    inside, the output at dropped positions is 0.
    """

    def __init__(self, first: nn.Module, last: nn.Module, *, positions_first: bool) -> None:
        """The part starts at the inputs of `first` and ends at the output of `last`.

        `positions_first` if hidden states are (L, B, D) rather than (B, L, D).
        """
        self._positions_first = positions_first
        self._slots: Slots | None = None
        self._shape: tuple[int, ...] = ()
        first.register_forward_pre_hook(self._choose)
        last.register_forward_hook(self._put_back)

    @contextmanager
    def only_at(self, has_target: Tensor, most: int | None = None) -> Iterator[None]:
        """Keep the positions of (B, L) bool `has_target` inside the context.

        `most` is the number of slots, None for the packed form.
        """
        self._slots = Slots.of(has_target.T if self._positions_first else has_target, most)
        try:
            yield
        finally:
            self._slots = None

    def _choose(self, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._slots is None:
            return None
        self._shape = tuple(inputs[0].shape)
        return tuple(self._slots.take(hidden) for hidden in inputs)

    def _put_back(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        if self._slots is None:
            return None
        return self._slots.put(output.new_zeros(*self._shape[:2], output.size(-1)), output)


def token_pruning_of(transformer: Any) -> TokenPruning | None:
    """Hooks for BERT, ELECTRA, RoBERTa and XLNet, None for other architectures."""
    if transformer.config.model_type == "xlnet":
        network = transformer.layer[-1].ff
        return TokenPruning(network, network, positions_first=True)
    layers = getattr(getattr(transformer, "encoder", None), "layer", None)
    if transformer.config.model_type not in ("bert", "electra", "roberta") or layers is None:
        return None
    return TokenPruning(layers[-1].attention.output, layers[-1].output, positions_first=False)

"""The last layer of an encoder at some positions alone.

What a layer does after its attention it does for each position by itself: feed-forward network,
dropout and norms, most of its work. Where a masked model learns from the hidden positions alone, a
fifth of all, the rest of that work is for nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class LastLayer:
    """Hooks around the part of a layer that is the same for each position.

    They keep the layer as it is, its weights' names included, and do nothing outside of `only_at`.
    What stands at other positions is 0 then.
    """

    def __init__(self, first: nn.Module, last: nn.Module, *, positions_first: bool) -> None:
        """The part begins with the inputs of `first` and ends with the output of `last`."""
        self._positions_first = positions_first
        self._rows: Tensor | None = None
        self._shape: tuple[int, ...] = ()
        first.register_forward_pre_hook(self._choose)
        last.register_forward_hook(self._put_back)

    @contextmanager
    def only_at(self, wanted: Tensor) -> Iterator[None]:
        """(B, L) bool: for the time of a pass."""
        order = wanted.T if self._positions_first else wanted
        self._rows = order.reshape(-1).nonzero().squeeze(1)
        try:
            yield
        finally:
            self._rows = None

    def _choose(self, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._rows is None:
            return None
        self._shape = tuple(inputs[0].shape)
        return tuple(hidden.reshape(-1, hidden.size(-1))[self._rows] for hidden in inputs)

    def _put_back(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        if self._rows is None:
            return None
        count = self._shape[0] * self._shape[1]
        whole = output.new_zeros(count, output.size(-1)).index_copy(0, self._rows, output)
        return whole.view(*self._shape[:2], -1)


def last_layer_of(transformer: Any) -> LastLayer | None:
    """Of BERT, its kin and XLNet; None of what is built otherwise."""
    if transformer.config.model_type == "xlnet":
        network = transformer.layer[-1].ff
        return LastLayer(network, network, positions_first=True)
    layers = getattr(getattr(transformer, "encoder", None), "layer", None)
    if transformer.config.model_type not in ("bert", "electra", "roberta") or layers is None:
        return None
    return LastLayer(layers[-1].attention.output, layers[-1].output, positions_first=False)

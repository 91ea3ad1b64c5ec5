"""Next-item prediction over the whole catalogue."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ConfigError


class NextItemPredictionTask(nn.Module):
    """Scores of items from hidden states; softmax cross-entropy over all of them.

    `weight_tying` scores with the item's input embeddings (Inan et al. 2017), otherwise with a
    table of its own. `normalize` takes the cosine in place of the inner product.
    """

    def __init__(
        self,
        *,
        weight_tying: bool = True,
        softmax_temperature: float = 1.0,
        normalize: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if softmax_temperature <= 0:
            raise ConfigError(f"softmax_temperature is {softmax_temperature}, expected above 0.")
        self.weight_tying = weight_tying
        self.softmax_temperature = softmax_temperature
        self.normalize = normalize
        self.label_smoothing = label_smoothing
        self.projection: nn.Module = nn.Identity()
        self.output_table: nn.Parameter | None = None

    def build(self, d_hidden: int, num_rows: int, d_item: int) -> None:
        """Make what the widths ask for: a linear layer to the item's, or a table of its own."""
        if not self.weight_tying:
            self.output_table = nn.Parameter(torch.randn(num_rows, d_hidden) * d_hidden**-0.5)
        elif d_hidden != d_item:
            self.projection = nn.Linear(d_hidden, d_item, bias=False)

    def logits(self, hidden: Tensor, item_table: Tensor) -> Tensor:
        """(T, D), (V, item width) -> (T, V - 3): items alone, the reserved rows left out."""
        queries, items = self.embed_hidden(hidden), self.embed_items(item_table)
        return queries @ items.T / self.softmax_temperature

    def embed_hidden(self, hidden: Tensor) -> Tensor:
        """(T, D) -> (T, E): what is multiplied with the embeddings of items."""
        projected: Tensor = self.projection(hidden)
        return functional.normalize(projected, dim=-1) if self.normalize else projected

    def embed_items(self, item_table: Tensor) -> Tensor:
        """(V, item width) -> (V - 3, E)."""
        table = item_table if self.output_table is None else self.output_table
        items = table[FIRST_ITEM:]
        return functional.normalize(items, dim=-1) if self.normalize else items

    def loss(self, hidden: Tensor, targets: Tensor, item_table: Tensor) -> Tensor:
        """(B, L, D), (B, L), (V, item width) -> (): mean over positions that have a target.

        A target that is missing or unknown is none. Without any target the loss is 0.
        """
        # (T, D) rather than (B * L, D): the logits are the largest tensor of a step
        has_target = targets >= FIRST_ITEM
        logits = self.logits(hidden[has_target], item_table)
        if logits.size(0) == 0:
            return logits.sum() + hidden.sum() * 0  # keeps the graph, so that backward works
        return functional.cross_entropy(
            logits, targets[has_target] - FIRST_ITEM, label_smoothing=self.label_smoothing
        )

    def scores(self, hidden: Tensor, item_table: Tensor) -> Tensor:
        """(B, D), (V, item width) -> (B, V); reserved indices have minus infinity."""
        items = self.logits(hidden, item_table)
        return functional.pad(items, (FIRST_ITEM, 0), value=float("-inf"))

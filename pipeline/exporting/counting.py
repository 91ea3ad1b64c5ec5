"""Top-K of a counting model in the TorchScript program that is served.

Letters: B sessions, L positions, V items, K length of a list, X excluded items, C candidates.
"""

import torch
from torch import Tensor, nn

from pipeline.exporting.topk import mask_excluded, rows_at_once
from pipeline.model.counting.scorer import Scorer, first_of_highest


class CountingTopK(nn.Module):
    """Ranks all items by the scores of a scorer's tables, for a few sessions at a time."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(
        self, values: Tensor, num_items: Tensor, excluded: Tensor, candidates: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, L) indices, (B, X) and (B, C) item indices -> (B, K) best scores and item indices."""
        first = 3
        popularity = self.scorer.popularity
        k = min(int(num_items), popularity.size(0))
        at_once = rows_at_once(popularity)
        best: list[Tensor] = []
        items: list[Tensor] = []
        for begin in range(0, values.size(0), at_once):
            end = begin + at_once
            scores = self.scorer(values[begin:end])
            scores = mask_excluded(
                scores, excluded[begin:end], candidates[begin:end], float("-inf")
            )
            top, columns = first_of_highest(scores, k)
            best.append(top)
            items.append(columns + first)
        return torch.cat(best), torch.cat(items)

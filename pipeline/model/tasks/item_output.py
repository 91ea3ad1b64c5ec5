"""Output of a target per candidate item, by which lists can be ranked.

Letters: T rows, D width of hidden states, E width of item vectors, C items, V rows of the item
table.
"""

import torch
from torch import Tensor, nn


class ItemOutput(nn.Module):
    """(W h) . e + u . h + c + b of a hidden state h and an item's vector e and bias b.

    h is the hidden state that predicts the next item, e the vector that scores the item. u . h is
    the term of the session, b that of the item; b begins at 0, so an item without labels has the
    mean of all items.
    """

    def __init__(self, d_hidden: int, num_rows: int, width: int) -> None:
        """Hidden states of width `d_hidden`, V `num_rows`, E `width`."""
        super().__init__()
        self.width = width
        self.queries = nn.Linear(d_hidden, width + 1)
        """(..., D) -> (..., E + 1): W h, and u . h + c."""
        self.item_bias = nn.Parameter(torch.zeros(num_rows, 1))
        """b of each index, (V, 1)."""

    def at(self, hidden: Tensor, vectors: Tensor, indices: Tensor) -> Tensor:
        """(T, D), (T, E), (T,) item indices -> (T,): the output for one item per row."""
        # Vectors are constants: gradients of few labels would move item vectors, which the
        # next-item loss fits to every target.
        biases = nn.functional.embedding(indices, self.item_bias)
        return item_outputs(self.queries(hidden), vectors.detach().unsqueeze(-1), biases)[:, 0]


def item_outputs(queries: Tensor, vectors: Tensor, biases: Tensor) -> Tensor:
    """(T, E + 1), (E, C), (C,) -> (T, C); or (T, E, C), (T, C) if each row has its own items."""
    return item_products(queries[:, :-1], vectors) + queries[:, -1:] + biases


def item_products(queries: Tensor, vectors: Tensor) -> Tensor:
    """(T, E), (E, C) or (T, E, C) -> (T, C): inner products."""
    if vectors.dim() == 2:
        return queries @ vectors
    return (queries.unsqueeze(1) @ vectors).squeeze(1)

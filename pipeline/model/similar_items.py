"""Items similar to an item, and a model that recommends them.

Letters: n items, V rows of the item table, K length of a list, E width of item vectors.
"""

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ConfigError
from pipeline.data.batch import SessionBatch
from pipeline.model.counting.model import CountingModel
from pipeline.model.counting.scorer import NeighbourScorer
from pipeline.model.model import Model
from pipeline.model.sealed import SealedInputs

_SCORES_AT_ONCE = 16_000_000
"""Maximum scores in memory, 64 MB in float32."""


def similar_items(model: Model, positions: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(n,) catalogue positions -> (n, K) scores and positions of the nearest items, best first.

    The score is the cosine of item vectors; for a counting model, which has none, the score after a
    session of this item alone. An item is not in its own list. ConfigError for a model that does
    not score by items.
    """
    if not model.width and model.inputs.feature_names != [model.inputs.item]:
        raise ConfigError(
            f"The model scores by {model.inputs.feature_names[-1]!r}, so that no items are similar "
            "to an item."
        )
    num_items = model.num_rows - FIRST_ITEM
    vectors = functional.normalize(model.item_embeddings()) if model.width else None
    lists = []
    for rows in positions.split(max(1, _SCORES_AT_ONCE // num_items)):
        if vectors is None:
            items = rows.unsqueeze(1) + FIRST_ITEM
            batch = SessionBatch({model.inputs.item: items}, torch.ones_like(rows))
            best = model.top_k(batch, k, excluded=items)
            lists.append((best.scores, best.items - FIRST_ITEM))
        else:
            cosines = vectors[rows] @ vectors.T
            cosines.scatter_(1, rows.unsqueeze(1), -torch.inf)
            nearest = cosines.topk(k)
            lists.append((nearest.values, nearest.indices))
    scores, items = (torch.cat(column) for column in zip(*lists, strict=True))
    return scores, items


@torch.no_grad()
def similar_items_model(model: Model, count: int) -> CountingModel:
    """Return a model that recommends the `count` items most similar to the newest one of a session.

    Items with a score of 0 or less follow in the order of the catalogue. Errors are those of
    `similar_items`.
    """
    num_items = model.num_rows - FIRST_ITEM
    count = min(count, num_items - 1)
    positions = torch.arange(num_items, device=model.device)
    scores, items = (column.cpu() for column in similar_items(model, positions, count))
    is_similar = scores > 0
    offsets = functional.pad(is_similar.sum(1).cumsum(0), (1, 0))
    scorer = NeighbourScorer(
        torch.zeros(num_items),
        offsets,
        items[is_similar].to(torch.int32),
        scores[is_similar].float(),
        torch.ones(1, dtype=torch.float64),
    )
    item, longest = model.inputs.item, model.inputs.max_sequence_length
    assert longest is not None  # noqa: S101  a run has one
    inputs = SealedInputs(item, [item], longest, {item: model.num_rows})
    return CountingModel(scorer, inputs, item).eval()

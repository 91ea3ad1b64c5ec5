"""Top-K lists offline: the model in torch, over sessions that preprocessing wrote, no server."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline.core.artifact import read_manifest
from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ConfigError
from pipeline.core.fitted import Fitted
from pipeline.model.build import load_model
from pipeline.train.device import best_device
from pipeline.train.loader import SessionLoader


class Lists(NamedTuple):
    """Recommendations for B sessions, best first."""

    items: np.ndarray
    """(B, K) raw ids."""
    scores: np.ndarray
    """(B, K) float32."""


@torch.inference_mode()
def predict(run: Path, data: Path, part: str, k: int, batch_size: int = 256) -> Iterator[Lists]:
    """What comes after each session of a part, in the order of its files.

    ConfigError if `k` is not between 1 and the size of the catalogue.
    """
    read_manifest(run, "run")
    catalogue = Fitted.read(run).item.values.to_numpy(zero_copy_only=False)
    if not 1 <= k <= len(catalogue):
        raise ConfigError(f"k is {k}, expected 1 to {len(catalogue)}.")
    model = load_model(run).to(best_device())
    longest = model.inputs.max_sequence_length
    loader = SessionLoader(
        data,
        part,
        item=model.inputs.item,
        features=model.inputs.feature_names,
        batch_size=batch_size,
    )
    for batch in loader:
        stops = batch.lengths
        rows = torch.arange(stops.numel(), device=stops.device)
        starts = (stops - longest).clamp(min=0) if longest else torch.zeros_like(stops)
        scores = model(batch.window(rows, starts, stops).to(next(model.parameters()).device))
        best, indices = torch.topk(scores[:, FIRST_ITEM:], k)
        yield Lists(catalogue[indices.cpu().numpy()], best.cpu().numpy())

"""Training a model on the batches of any loader, one step each."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from pipeline.compat.evaluation import evaluate_batches
from pipeline.compat.features import as_sessions
from pipeline.data.batch import SessionBatch
from pipeline.model.model import Model

logger = logging.getLogger(__name__)


def fit(
    model: Model,
    batches: Iterable[Any],
    optimizer: Any,
    evaluation: Iterable[Any] | None,
    num_epochs: int,
    *,
    amp: bool,
    verbose: bool,
) -> list[dict[str, float]]:
    """Train for `num_epochs` passes over `batches`; return loss and metrics of each epoch.

    `optimizer` is an optimizer or makes one of parameters. `amp` computes in bfloat16 where torch
    does so by autocast.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        optimizer = optimizer(model.parameters())
    device = next(model.parameters()).device
    epochs = []
    for epoch in range(num_epochs):
        model.train()
        losses = []
        for batch in batches:
            if isinstance(batch, Mapping | SessionBatch):
                features, targets = batch, None
            else:
                features, targets = batch
            sessions = as_sessions(model.inputs, features, targets).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                loss = model.loss(sessions)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        values = {"loss": float(torch.stack(losses).mean()) if losses else float("nan")}
        if evaluation is not None:
            values |= evaluate_batches(model, evaluation)
        if verbose:
            logger.info("epoch %d of %d  loss %.3f", epoch + 1, num_epochs, values["loss"])
        epochs.append(values)
    return epochs

"""Training of a model on the batches of any loader, one step per batch."""

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.compat.evaluation import evaluate_batches
from pipeline.compat.features import sessions_of
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
) -> NDArray[Any]:
    """Train for `num_epochs` passes over `batches`; return (epochs,) mean losses.

    `optimizer` is an optimizer or a function from parameters to one. `amp` enables autocast to
    bfloat16. `verbose` logs the loss of each epoch and the metrics of `evaluation`.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        optimizer = optimizer(model.parameters())
    device = next(model.parameters()).device
    epochs = []
    for epoch in range(num_epochs):
        model.train()
        losses = []
        for batch in batches:
            sessions = sessions_of(model.inputs, batch).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                loss = model.loss(sessions)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        epochs.append(float(torch.stack(losses).mean()) if losses else float("nan"))
        if verbose:
            metrics = {} if evaluation is None else evaluate_batches(model, evaluation)
            logger.info("epoch %d of %d  loss %.3f  %s", epoch + 1, num_epochs, epochs[-1], metrics)
    return np.array(epochs)

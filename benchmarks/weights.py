"""The original's weights in our model, and differences of loss and gradients.

Both sides contain the same Hugging Face module, so the names of its weights agree. An array file of
the original holds `weight/NAME`, `gradient/NAME` and `loss`.
"""

from typing import Any

import numpy as np
import torch

from pipeline.core.columns import FIRST_ITEM
from pipeline.model.model import Model

_TABLE = "embedding_tables.item_id.weight"
_MASKED_ITEM = "masked_item_embedding"
_ENCODER = ".transformer."

Arrays = dict[str, np.ndarray]


def copy_from(original: Arrays, model: Model) -> dict[str, str]:
    """Copy the original's weights to `model`; return the original's name of each parameter.

    Further position embeddings of the original are left out. KeyError for a trainable parameter
    without a counterpart.
    """
    names = {key.removeprefix("weight/") for key in original if key.startswith("weight/")}
    counterparts = {}
    table = model.inputs.item_table.weight
    masked_item = getattr(model.inputs.masking, "hidden_item", None)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter is table:
                ending = _TABLE
            elif parameter is masked_item:
                ending = _MASKED_ITEM
            else:
                ending = _ENCODER + name.rpartition(_ENCODER)[2]
            counterpart = min((other for other in names if other.endswith(ending)), default=None)
            if counterpart is None:
                raise KeyError(f"the original has nothing for {name}")
            counterparts[name] = counterpart
            value = torch.from_numpy(original[f"weight/{counterpart}"])
            parameter.copy_(value[: parameter.size(0)])
    return counterparts


def compare(loss: float, model: Model, original: Arrays, names: dict[str, str]) -> dict[str, Any]:
    """Return the relative difference of the loss and the largest one of all gradients.

    The relative difference of a gradient is its largest absolute difference divided by the largest
    absolute value of the original's. Rows of reserved indices are left out: the original gives them
    a share of the softmax.
    """
    their_loss = float(original["loss"])
    largest, parameter_name = 0.0, ""
    for name, parameter in model.named_parameters():
        if name not in names:
            continue
        theirs = original[f"gradient/{names[name]}"][: parameter.size(0)]
        assert parameter.grad is not None  # noqa: S101
        ours = parameter.grad.float().numpy()
        if parameter is model.inputs.item_table.weight:
            ours, theirs = ours[FIRST_ITEM:], theirs[FIRST_ITEM:]
        scale = float(np.abs(theirs).max())
        # the gradient of a key's bias is zero but for rounding
        if scale < 1e-7:
            continue
        difference = float(np.abs(ours - theirs).max()) / scale
        if difference > largest:
            largest, parameter_name = difference, name
    return {
        "loss": loss,
        "original_loss": their_loss,
        "loss_difference": abs(loss - their_loss) / abs(their_loss),
        "gradient_difference": largest,
        "parameter": parameter_name,
        "parameters": len(names),
    }

"""The original's weights in our model, and gradients of both beside each other.

Both have the same modules of Hugging Face inside, so the names of their weights agree from there
on. An array file of the original holds `weight/NAME`, `gradient/NAME` and `loss`.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.core.columns import FIRST_ITEM
from pipeline.model.model import Model

_TABLE = "embedding_tables.item_id.weight"
_HIDDEN_ITEM = "masked_item_embedding"
_ENCODER = ".transformer."

Arrays = dict[str, np.ndarray]


def copy_from(original: Arrays, model: Model) -> dict[str, str]:
    """Give `model` the original's weights; return the original's name of each parameter.

    Positions of which the original has more than ours are left out. KeyError for a parameter that
    learns and has no counterpart.
    """
    names = {key.removeprefix("weight/") for key in original if key.startswith("weight/")}
    counterparts = {}
    table, hidden_item = model.inputs.item_table.weight, _hidden_item(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter is table:
                ending = _TABLE
            elif parameter is hidden_item:
                ending = _HIDDEN_ITEM
            else:
                ending = _ENCODER + name.rpartition(_ENCODER)[2]
            found = sorted(other for other in names if other.endswith(ending))
            if not found:
                raise KeyError(f"the original has nothing for {name}")
            counterparts[name] = found[0]
            value = torch.from_numpy(original[f"weight/{found[0]}"])
            parameter.copy_(value[: parameter.size(0)])
    return counterparts


def compare(loss: float, model: Model, original: Arrays, names: dict[str, str]) -> dict[str, Any]:
    """Relative differences of the loss and, of all parameters the largest, of the gradients.

    That of a gradient is the largest difference in it over the largest number in the original's.
    Rows of reserved indices are left out: the original gives them a share of the softmax.
    """
    their_loss = float(original["loss"])
    worst, where = 0.0, ""
    for name, parameter in model.named_parameters():
        if name not in names:
            continue
        theirs = original[f"gradient/{names[name]}"][: parameter.size(0)]
        assert parameter.grad is not None  # noqa: S101
        ours = parameter.grad.float().numpy()
        if parameter is model.inputs.item_table.weight:
            ours, theirs = ours[FIRST_ITEM:], theirs[FIRST_ITEM:]
        scale = float(np.abs(theirs).max())
        # keys' biases in a softmax have no gradient but what rounding leaves
        if scale < 1e-7:
            continue
        difference = float(np.abs(ours - theirs).max()) / scale
        if difference > worst:
            worst, where = difference, name
    return {
        "loss": loss,
        "original_loss": their_loss,
        "loss_difference": abs(loss - their_loss) / abs(their_loss),
        "gradient_difference": worst,
        "parameter": where,
        "parameters": len(names),
    }


def _hidden_item(model: Model) -> nn.Parameter | None:
    found = getattr(model.inputs.masking, "hidden_item", None)
    return found if isinstance(found, nn.Parameter) else None

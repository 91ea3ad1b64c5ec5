"""Ranking scores: the score of the next item, combined with targets per item by `rank_by`.

Letters: T sessions, Q width of `Model.queries`, W width of `Model.items`, E width of item vectors,
N targets per item, C items.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from pipeline.core.expressions import Expression
from pipeline.model.tasks.item_output import item_outputs, item_products
from pipeline.model.tasks.targets import TargetTask
from pipeline.recipe.choices import NEXT_ITEM


def item_values(
    tasks: Sequence[TargetTask],
    queries: Tensor,
    items: Tensor,
    width: int,
    names: Collection[str],
) -> dict[str, Tensor]:
    """(T, Q), (W, C) or (T, W, C) -> (T, C) values by name, for `names`; `width` is E.

    `next_item` is the logit of the next item. Targets per item are probabilities, or numbers in
    the units of the log.
    """
    vectors, biases = items.split([width, len(tasks)], -2)
    parts = queries.split([width, *([width + 1] * len(tasks))], -1)
    values = {NEXT_ITEM: item_products(parts[0], vectors)} if NEXT_ITEM in names else {}
    for number, task in enumerate(tasks):
        if task.task_name in names:
            outputs = item_outputs(parts[number + 1], vectors, biases[..., number, :])
            values[task.task_name] = task.predictions(outputs)
    return values


def rank_values(expression: Expression, values: Mapping[str, Tensor]) -> Tensor:
    """Value of `rank_by` for (T, C) values by name, (T, C)."""
    combined: Tensor = expression.evaluate(values, _FUNCTIONS)
    return combined


def _log(values: Tensor | float) -> Tensor:
    """Natural logarithm of the values, clamped to the smallest float32, about 1e-38."""
    values = torch.as_tensor(values)
    return values.clamp(min=torch.finfo(torch.float32).tiny).log()


def _exp(values: Tensor | float) -> Tensor:
    return torch.as_tensor(values).exp()


_FUNCTIONS: dict[str, Callable[..., Tensor]] = {"log": _log, "exp": _exp}
"""Functions of `rank_by`, with the names of `RANKING_FUNCTIONS`."""

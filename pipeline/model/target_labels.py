"""Labels of target tasks: classes or numbers from the encoded values of a column."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.core.columns import NULL
from pipeline.core.errors import ConfigError, closest
from pipeline.data.fitted import Fitted
from pipeline.recipe.features import NumberFeature
from pipeline.recipe.model import ModelConfig, Target


@dataclass(frozen=True)
class Units:
    """Units of a continuous column: x = exp(y) - 1 if `log`, else y, for y = z deviation + mean."""

    mean: float = 0.0
    deviation: float = 1.0
    log: bool = False

    def restore(self, standardized: Tensor) -> Tensor:
        """Standardized numbers -> numbers in the units of the log, of the same shape."""
        numbers = standardized * self.deviation + self.mean
        return numbers.exp() - 1 if self.log else numbers  # ONNX has no expm1


Labels = Tensor | Units
"""(V,) class of each index of a categorical target, NaN for none; or the units of a number."""


def target_labels(fitted: Fitted, model: ModelConfig) -> dict[str, Labels]:
    """Labels of each target of the recipe, by feature. ConfigError for a target that the data lack.

    An interaction or session whose value is missing has no label.
    """
    return {target.feature: _labels(fitted, target) for target in model.targets}


def _labels(fitted: Fitted, target: Target) -> Labels:
    name = target.feature
    if target.kind == "binary":
        numbers = dict.fromkeys(target.positive, 1.0)
        table = value_table(fitted, name, numbers, 0.0, "a target")
        table[NULL] = torch.nan
        return table
    features = {feature.name: feature for feature in fitted.recipe.features}
    feature = features.get(name)
    if feature is not None and feature.kind == "categorical":
        raise ConfigError(
            f"`model.targets`: {name!r} is categorical, so it cannot be a regression target. "
            "Choose a continuous feature, or kind: binary."
        )
    if name not in fitted.standardizations:
        columns = [*fitted.standardizations]
        raise ConfigError(
            f"`model.targets`: the data have no column {name!r} of numbers; "
            f"{closest(name, columns) if columns else 'they have no numbers at all.'}"
        )
    statistics = fitted.standardizations[name]
    # the time since the previous interaction is a logarithm, and is not a feature of the recipe
    log = feature is None or (isinstance(feature, NumberFeature) and feature.log)
    return Units(statistics.mean, statistics.deviation or 1.0, log)


def value_table(
    fitted: Fitted,
    feature: str,
    numbers: Mapping[str | int | bool, float],
    other: float,
    where: str,
) -> Tensor:
    """(V,) number of each value of a categorical feature, `other` for values without one.

    ConfigError for a value that is not in the training data, or a multi-valued feature.
    """
    values = vocabulary_values(fitted, feature, where)
    first = fitted.vocabularies[feature].first
    if any(f.name == feature and len(f.columns) > 1 for f in fitted.recipe.features):
        raise ConfigError(f"{where} names {feature!r}, which has several values per interaction.")
    indices = {str(value): index for index, value in enumerate(values, first)}
    table = torch.full((first + len(values),), other)
    for value, number in numbers.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if text not in indices:
            raise ConfigError(
                f"{where}: {feature!r} never is {value!r} in the training data. It is: "
                f"{', '.join(map(str, values[:10]))}{' and others' if len(values) > 10 else ''}."
            )
        table[indices[text]] = number
    return table


def vocabulary_values(fitted: Fitted, feature: str, where: str) -> list[object]:
    """Values of a categorical feature by index. ConfigError for another feature."""
    if feature not in fitted.vocabularies:
        features = ", ".join(fitted.vocabularies)
        raise ConfigError(
            f"{where} names {feature!r}, which is not a categorical feature of the data. "
            f"These are: {features}."
        )
    values: list[object] = fitted.vocabularies[feature].values.to_pylist()
    return values

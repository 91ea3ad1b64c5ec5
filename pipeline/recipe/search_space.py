"""Search space of `pipeline tune`: ranges of settings of a recipe."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from pipeline.core.config import Config, read_yaml
from pipeline.core.errors import ConfigError, closest
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.train import TrainConfig

SECTIONS: dict[str, type[Config]] = {"model": ModelConfig, "train": TrainConfig}
"""Sections with tunable settings; the data exist before the search."""
_FIXED = {
    "train.seed": "every trial trains with the recipe's seed; --set train.seed=N varies it",
    "train.metric": "trials are compared by it",
}
"""Settings that the search decides itself, with the reason."""
KINDS = ("uniform", "log", "int", "choice")


class Range(NamedTuple):
    """Range of one setting."""

    kind: str
    """uniform: between two numbers; log: log-uniform between them; int: whole numbers, both ends
    included; choice: one of some values."""
    ends: tuple[Any, ...]
    """Values of a choice, or the lower and upper end."""


def read_space(path: Path) -> dict[str, Range]:
    """Read ranges by `section.key`. ConfigError for a key or a value that no recipe may have."""
    space = {}
    for key, value in read_yaml(path, "a search space in YAML").items():
        field = _field(key, path)
        space[key] = _range(value, f"{path}: `{key}`")
        if field is None:
            continue
        for end in _examples(space[key]):
            _check_value(field, end, f"{path}: `{key}`")
    if not space:
        raise ConfigError(
            f"{path} is empty, expected ranges such as `train.learning_rate: {{log: [1e-4, .1]}}`."
        )
    return space


def _field(key: Any, path: Path) -> Any:
    """Pydantic field of a key, None for one of `model.options`, which each architecture checks."""
    section, _, name = str(key).partition(".")
    if section == "model" and name.startswith("options."):
        return None
    if section not in SECTIONS:
        raise ConfigError(
            f"{path}: unknown key `{key}`; {closest(section, [*SECTIONS])} Expected a section and "
            "a setting, such as `train.learning_rate`."
        )
    fields = SECTIONS[section].model_fields
    if name not in fields:
        raise ConfigError(f"{path}: unknown key `{key}`; {closest(name, [*fields])}")
    if key in _FIXED:
        raise ConfigError(f"{path}: `{key}` cannot be searched: {_FIXED[key]}.")
    return fields[name]


def _range(value: Any, where: str) -> Range:
    if not isinstance(value, dict) or len(value) != 1:
        raise ConfigError(
            f"{where} is {value!r}, expected one range, such as {{log: [1e-4, 1e-2]}}."
        )
    kind, ends = next(iter(value.items()))
    if kind not in KINDS:
        raise ConfigError(f"{where}: unknown range {kind!r}; {closest(str(kind), [*KINDS])}")
    if not isinstance(ends, list) or not ends:
        raise ConfigError(f"{where}: `{kind}` is {ends!r}, expected a list.")
    if kind == "choice":
        return Range(kind, tuple(_number(end) for end in ends))
    low, high = _two_numbers([_number(end) for end in ends], f"{where}: `{kind}`")
    if kind == "int" and not (low == int(low) and high == int(high)):
        raise ConfigError(f"{where}: `int` is {ends}, expected whole numbers.")
    if kind == "log" and low <= 0:
        raise ConfigError(f"{where}: `log` is {ends}, expected numbers above 0.")
    return Range(kind, (int(low), int(high)) if kind == "int" else (float(low), float(high)))


def _two_numbers(ends: list[Any], where: str) -> tuple[float, float]:
    numbers = [end for end in ends if isinstance(end, int | float) and math.isfinite(end)]
    if len(ends) != 2 or len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ConfigError(f"{where} is {ends}, expected two numbers, the lower one first.")
    return numbers[0], numbers[1]


def _examples(values: Range) -> tuple[Any, ...]:
    """Values that the setting must accept: the ends, and a number between them for floats."""
    if values.kind in ("uniform", "log"):
        low, high = values.ends
        return (*values.ends, low + (high - low) * (math.sqrt(5) - 1) / 2)
    return values.ends


def _number(value: Any) -> Any:
    """Numbers such as 1e-4, which are text in YAML 1.1, as numbers."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _check_value(field: Any, value: Any, where: str) -> None:
    """ConfigError if the setting does not accept the value, whatever the other settings are."""
    adapter: TypeAdapter[Any] = TypeAdapter(field.rebuild_annotation())
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"{where}: {value!r}: {error.errors()[0]['msg']}.") from None

"""Configuration that checks itself: frozen, keyword-only, and a misspelt key is an error."""

from pathlib import Path
from typing import Any, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from pipeline.core.arguments import closest
from pipeline.core.errors import ConfigError

_SHOWN = 60
"""Characters of a wrong value that are repeated."""
_KEYS = 8
"""Keys of a section that are named."""
_TYPES = {
    "string_type": "text",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    "dict_type": "keys and values",
}
_LIMITS = {
    "greater_than": ("gt", "more than {}"),
    "greater_than_equal": ("ge", "{} or more"),
    "less_than": ("lt", "less than {}"),
    "less_than_equal": ("le", "{} or less"),
    "literal_error": ("expected", "{}"),
}
"""By the validator's name of an error, the limit it tells and how that reads."""


class Config(BaseModel):
    """Root of every config section. Fields say their unit or shape letter in their docstring."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str) -> Self:
        """Validate `values`; ConfigError names the first wrong key as `where: key`."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(f"{where}: {_explain(cls, error.errors()[0])}") from None

    @classmethod
    def from_yaml(cls, path: Path, overrides: tuple[str, ...] = ()) -> Self:
        """Read a YAML file, then apply `section.key=value` overrides in turn."""
        return cls.from_dict(read_values(path, overrides), str(path))


def read_values(path: Path | None, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Return the sections of a YAML file, changed by `section.key=value` overrides in turn.

    Nothing is validated. Without a file the overrides are all there is.
    """
    values = {} if path is None else read_yaml(path)
    for override in overrides:
        _override(values, override)
    return values


def read_yaml(path: Path) -> dict[str, Any]:
    """Parse a YAML mapping. ConfigError if it is missing, not YAML or not a mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist. Expected a recipe in YAML, such as those in configs/."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}.") from None
    except (yaml.YAMLError, ValueError) as error:  # the latter of a date that is none
        line = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid YAML: {line}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no mapping. Expected sections such as `preprocess:`.")
    return values


def _override(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"Override {override!r} is not of the form section.key=value.")
    *sections, key = name.split(".")
    for section in sections:
        child = values.get(section)
        if child is None:  # also a section with no key under it
            child = values[section] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"Override {override!r}: {section!r} is not a section.")
        values = child
    try:
        values[key] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"Override {override!r}: {text!r} is not a YAML value.") from None


def _explain(root: type[BaseModel], error: ErrorDetails) -> str:
    location = ".".join(str(part) for part in error["loc"]) or "the whole"
    if error["type"] == "extra_forbidden":
        *parents, key = error["loc"]
        known = list(_model_at(root, tuple(parents)).model_fields)
        return f"unknown key `{location}`; {closest(str(key), known)}"
    if error["type"] == "missing":
        return f"`{location}` is missing. Add it."
    found = repr(error["input"])
    # of a whole section the reason says what is wrong with it
    found = f" is {found}" if len(found) <= _SHOWN else ""
    reason = _expected(root, error)
    return f"`{location}`{found}: {reason}{'' if reason[-1] in '.?' else '.'}"


def _expected(root: type[BaseModel], error: ErrorDetails) -> str:
    """What should stand there, in words of YAML."""
    kind, limits = error["type"], error.get("ctx", {})
    if kind in ("model_type", "model_attributes_type"):
        keys = list(_model_at(root, error["loc"]).model_fields)
        more = ", ..." if len(keys) > _KEYS else ""
        return f"expected a section with keys: {', '.join(keys[:_KEYS])}{more}"
    if kind in _TYPES:
        return f"expected {_TYPES[kind]}"
    if kind in _LIMITS:
        name, words = _LIMITS[kind]
        return f"expected {words.format(limits[name])}"
    return error["msg"].removeprefix("Value error, ")


def _model_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    """Follow field names (and list indices) down to the model that holds the last one."""
    for part in location:
        if not isinstance(part, str) or part not in model.model_fields:
            continue
        for candidate in _types_in(model.model_fields[part].annotation):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
                break
    return model


def _types_in(annotation: Any) -> list[Any]:
    inner = get_args(annotation)
    return [leaf for part in inner for leaf in _types_in(part)] if inner else [annotation]

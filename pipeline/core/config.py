"""Root of the typed configuration: frozen, keyword-only, unknown keys are errors."""

import errno
from datetime import date
from pathlib import Path
from typing import Any, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from pipeline.core.errors import ConfigError, closest
from pipeline.core.files import read_small

_MAX_CHARACTERS = 60
"""Longest wrong value that a message repeats."""
_MAX_KEYS = 8
"""Largest number of keys of a section that a message lists."""
_MAX_BYTES, _MAX_NODES, _MAX_DEPTH = 1 << 18, 50_000, 50
"""Limits of a YAML file: bytes, values (each alias counts as a copy) and levels of nesting."""
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
    "too_short": ("min_length", "{} or more entries"),
}
"""Key in the error's context and text of the message, by pydantic's error type."""


class Config(BaseModel):
    """Root of all config sections. The docstring of a field gives its unit or shape letter."""

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


def read_values(path: Path | None, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Return the sections of a YAML file, changed by `section.key=value` overrides in turn.

    Nothing is validated. Without a file only the overrides apply.
    """
    values = {} if path is None else read_yaml(path)
    for override in overrides:
        _override(values, override)
    return values


class _Loader(yaml.SafeLoader):
    """Safe loader that refuses duplicate keys, of which PyYAML keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.value != "<<":
                key, line = self.construct_object(key_node), key_node.start_mark.line + 1
                if key in lines:
                    raise yaml.YAMLError(
                        f"`{key}` is in line {lines[key]} and again in line {line}. Keep one"
                    )
                lines[key] = line
        return super().construct_mapping(node, deep)


def read_yaml(
    path: Path, what: str = "a recipe in YAML, such as those in configs/"
) -> dict[str, Any]:
    """Parse a YAML mapping. ConfigError if the file is missing, not YAML or not a mapping."""
    try:
        values = parse_yaml(_read_text(path))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist. Expected {what}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}.") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no such date
        line = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid YAML: {line}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no mapping. Expected sections such as `preprocess:`.")
    return values


def _read_text(path: Path) -> str:
    """Content of a small file or pipe. ConfigError for a large one."""
    try:
        return read_small(path, _MAX_BYTES).decode("utf-8")
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise ConfigError(
            f"{path} has more than {_MAX_BYTES:,} bytes, which no recipe needs."
        ) from None


def parse_yaml(text: str) -> Any:
    """Parse YAML text. YAMLError or ValueError if it is invalid or above the limits of a file."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError(f"it is nested deeper than {_MAX_DEPTH} levels") from None
    finally:
        loader.dispose()


def _check_size(root: yaml.Node) -> None:
    """YAMLError for too many nodes, too deep nesting and recursive aliases; aliases are copies.

    A few lines of nested aliases expand to billions of values.
    """
    sizes: dict[int, tuple[int, int]] = {}
    open_nodes: set[int] = set()

    def measure(node: yaml.Node) -> tuple[int, int]:
        if id(node) in open_nodes:
            raise yaml.YAMLError("an alias is inside the value that it refers to")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            flat = [
                each for part in parts for each in (part if isinstance(part, tuple) else (part,))
            ]
            inner = [measure(each) for each in flat]
            size = 1 + sum(count for count, _ in inner)
            depth = 1 + max((each for _, each in inner), default=0)
            if size > _MAX_NODES or depth > _MAX_DEPTH:
                raise yaml.YAMLError(
                    f"it has more than {_MAX_NODES:,} values or {_MAX_DEPTH} levels, with those "
                    "that aliases (*) repeat"
                )
            open_nodes.discard(id(node))
            sizes[id(node)] = size, depth
        return sizes[id(node)]

    measure(root)


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
        values[key] = parse_yaml(text)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(
            f"Override {override!r}: {text!r} is not a YAML value. Text is in quotes: "
            f"'{name}=\"{text}\"'."
        ) from None


def _explain(root: type[BaseModel], error: ErrorDetails) -> str:
    keys, model = _locate(root, error["loc"])
    location = ".".join(keys) or "the whole"
    if error["type"] == "extra_forbidden":
        return f"unknown key `{location}`; {closest(keys[-1], [*model.model_fields])}"
    if error["type"] == "missing":
        return f"`{location}` is missing. Add it."
    value = error["input"]
    value = str(value) if isinstance(value, date) else repr(value)
    # a section that contradicts itself is not repeated: its reason names the key
    is_section = error["type"] == "value_error" and isinstance(error["input"], dict)
    value = "" if is_section or len(value) > _MAX_CHARACTERS else f" is {value}"
    reason = _expected(model, error)
    return f"`{location}`{value}: {reason}{'' if reason[-1] in '.?' else '.'}"


def _expected(model: type[BaseModel], error: ErrorDetails) -> str:
    """Return what the value should be, in terms of YAML."""
    kind, limits = error["type"], error.get("ctx", {})
    if kind in ("model_type", "model_attributes_type"):
        keys = list(model.model_fields)
        more = ", ..." if len(keys) > _MAX_KEYS else ""
        return f"expected a section with keys: {', '.join(keys[:_MAX_KEYS])}{more}"
    if kind == "string_type" and isinstance(error["input"], bool):
        return "expected text. YAML reads yes and no without quotes as true and false"
    if kind in _TYPES:
        return f"expected {_TYPES[kind]}"
    if kind in _LIMITS:
        name, words = _LIMITS[kind]
        return f"expected {words.format(limits[name])}"
    return error["msg"].removeprefix("Value error, ")


def _locate(
    model: type[BaseModel], location: tuple[int | str, ...]
) -> tuple[list[str], type[BaseModel]]:
    """Return the keys and list indices of an error, and the innermost section among them.

    For a union, pydantic adds a tag to the location, in this project the name of a class.
    """
    keys: list[str] = []
    members: dict[str, type[BaseModel]] = {}
    for part in location:
        if part in members:
            model, members = members[str(part)], {}
            continue
        keys.append(str(part))
        if isinstance(part, str) and part in model.model_fields:
            types = _types_in(model.model_fields[part].annotation)
            sections = [t for t in types if isinstance(t, type) and issubclass(t, BaseModel)]
            members = {section.__name__: section for section in sections}
            model = sections[0] if sections else model
    return keys, model


def _types_in(annotation: Any) -> list[Any]:
    inner = get_args(annotation)
    return [leaf for part in inner for leaf in _types_in(part)] if inner else [annotation]

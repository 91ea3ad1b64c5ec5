"""Reference of the recipe, made from the config classes of `pipeline.recipe`."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.core.config import Config
from pipeline.recipe.counting import COUNTING
from pipeline.recipe.recipe import Recipe

ROOT = Path(__file__).parents[2]
_HEAD = """# Recipe

Every key of a recipe, with its type, its default and an example. `pipeline recipes show NAME`
prints a whole recipe; [features](../how-to/features.md), [training](../how-to/train.md) and the
other how-to pages say what the keys are for. Keys without a default are required where their
section is written. A misspelt key is an error that names the right one.
"""
_OPTIONS = """
## Options of counting models

`model.options` where `model.architecture` is one of these; for other architectures they are those
of Hugging Face's configuration or of the [encoder](architectures.md).
"""
_TYPES = {str: "text", int: "whole number", float: "number", bool: "true or false"}


class Section(NamedTuple):
    """Config class at one place of a recipe."""

    path: str
    """Keys from the root, such as `preprocess.split`; a list of sections ends in `[]`."""
    config: type[Config]

    @property
    def anchor(self) -> str:
        """Title on the page."""
        return f"{self.path} ({self.config.__name__})" if self.path.endswith("[]") else self.path


def sections(config: type[Config] = Recipe, path: str = "") -> Iterator[Section]:
    """Config classes of a recipe, each after the one that holds it."""
    if path:
        yield Section(path, config)
    for name, field in config.model_fields.items():
        for inner, is_list in _configs(field.annotation):
            yield from sections(inner, f"{path}.{name}".lstrip(".") + ("[]" if is_list else ""))


def recipe_keys() -> Iterator[tuple[Section, str, FieldInfo]]:
    """All keys of a recipe."""
    for section in sections():
        for name, field in section.config.model_fields.items():
            yield section, name, field


def recipe_page() -> str:
    """Return the page in Markdown."""
    examples = Examples()
    lines = [_HEAD]
    for section in sections():
        lines += [f"\n## {section.anchor}\n", _first_paragraph(section.config), ""]
        lines += _table(section.config, section.path, examples)
    lines.append(_OPTIONS)
    for name, options in COUNTING.items():
        lines += [f"\n### {name}\n", _first_paragraph(options), ""]
        lines += _table(options, "model.options", examples)
    return "\n".join(lines) + "\n"


class Examples:
    """Values of keys in examples.yaml, the recipes of `configs/` and YAML blocks of the pages."""

    def __init__(self) -> None:
        text = (Path(__file__).parent / "examples.yaml").read_text(encoding="utf-8")
        self._values: dict[str, Any] = yaml.safe_load(text)
        for path in sorted((ROOT / "configs").rglob("*.yaml")):
            self._collect(yaml.safe_load(path.read_text(encoding="utf-8")), "")
        for page in sorted((ROOT / "docs").rglob("*.md")):
            for block in page.read_text(encoding="utf-8").split("```yaml\n")[1:]:
                try:
                    self._collect(yaml.safe_load(block.partition("```")[0]), "")
                except yaml.YAMLError:
                    continue  # a fragment, such as two alternatives side by side

    def _collect(self, value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                self._collect(inner, f"{path}.{key}".lstrip("."))
        elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
            for entry in value:
                self._collect(entry, f"{path}[]")
        if path and value is not None and not isinstance(value, dict):
            self._values.setdefault(path, value)

    def value(self, path: str, field: FieldInfo) -> Any:
        """Value of a key that is not its default, else one of its choices, else the default."""
        default = _default(field)
        if path in self._values and self._values[path] != default:
            return self._values[path]
        return next((c for c in _choices(field.annotation) if c != default), None)


def _table(config: type[Config], path: str, examples: Examples) -> list[str]:
    rows = ["| key | type | default | example | |", "| --- | --- | --- | --- | --- |"]
    for name, field in config.model_fields.items():
        default = _default(field)
        default_text = "" if field.is_required() else _code(default)
        example = examples.value(f"{path}.{name}", field)
        is_section = bool(list(_configs(field.annotation)))
        example_text = "" if example is None or is_section else _code(example)
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        kind = type_name(field.annotation).replace("|", "\\|")
        rows.append(
            f"| `{name}` | {kind} | {default_text if not is_section else ''} | {example_text} "
            f"| {meaning} |"
        )
    return rows


def type_name(annotation: Any) -> str:
    """Type of a key in words of YAML, such as "list of text"."""
    arguments = get_args(annotation)
    forms: dict[Any, Callable[[], str]] = {
        Annotated: lambda: type_name(arguments[0]),
        Literal: lambda: ", ".join(f"`{choice}`" for choice in arguments),
        tuple: lambda: f"list of {type_name(arguments[0])}",
        dict: lambda: f"keys with {type_name(arguments[1])}",
    }
    if get_origin(annotation) in forms:
        return forms[get_origin(annotation)]()
    if arguments:  # a union
        names = [type_name(a) for a in arguments if a is not type(None)]
        return " or ".join(dict.fromkeys(names))
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return "section"
    return _TYPES.get(annotation, "any value")


def _configs(annotation: Any, is_list: bool = False) -> Iterator[tuple[type[Config], bool]]:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation, is_list
    for argument in get_args(annotation):
        yield from _configs(argument, is_list or get_origin(annotation) is tuple)


def _choices(annotation: Any) -> Iterator[Any]:
    if annotation is bool:
        yield from (False, True)
    elif get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for argument in get_args(annotation):
            yield from _choices(argument)


def _default(field: FieldInfo) -> Any:
    if field.default_factory is not None:
        try:
            return field.default_factory()  # type: ignore[call-arg]
        except (TypeError, KeyError):  # it is computed from other keys; the text says how
            return None
    return None if field.default is PydanticUndefined else field.default


def _code(value: Any) -> str:
    if isinstance(value, float):
        text = f"{value:g}"
    elif isinstance(value, str):
        text = value or '""'
    else:
        text = json.dumps(value, default=str, ensure_ascii=False)
    return "`" + text.replace("|", "\\|").replace("`", "'") + "`"


def _first_paragraph(config: type[Config]) -> str:
    return " ".join((config.__doc__ or "").partition("\n\n")[0].split())

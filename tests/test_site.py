"""Reference pages of the site: every key, option and public name."""

import importlib.util
import json
import re
import sys
from types import ModuleType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import typer
import yaml
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

import pipeline
from pipeline import model
from pipeline.cli.main import app
from pipeline.core.config import Config
from pipeline.model.masking import Stage
from pipeline.recipe.counting import COUNTING
from pipeline.recipe.recipe import Recipe
from tests.conftest import ROOT, Shop


def hook(name: str) -> ModuleType:
    """Module of docs/hooks."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "hooks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


RECIPE = hook("recipe_reference")
COMMANDS = hook("command_reference")
API = hook("api_reference")
GALLERY = hook("gallery")
hook("drawing")
PANELS = hook("panels")
FIGURES = hook("figures")


def config_classes(annotation: Any) -> set[type[Config]]:
    """Config classes in a type, with those in their fields."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        fields = annotation.model_fields.values()
        return {annotation}.union(*(config_classes(f.annotation) for f in fields))
    if get_origin(annotation) in (Annotated, Union, UnionType, tuple, dict):
        return set[type[Config]]().union(*map(config_classes, get_args(annotation)))
    return set()


def test_every_key_of_a_recipe_has_a_row_with_an_example() -> None:
    page = RECIPE.recipe_page()
    classes = config_classes(Recipe) - {Recipe} | set(COUNTING.values())
    assert len(classes) > 20
    for config in classes:
        paragraph = " ".join((config.__doc__ or "").partition("\n\n")[0].split())
        section = page.partition(f"\n{paragraph}\n")[2].partition("\n## ")[0].partition("\n### ")[0]
        rows = {line.split("`")[1]: line for line in section.splitlines() if line[:3] == "| `"}
        assert list(rows) == list(config.model_fields), config
        for name, row in rows.items():
            *_, default, example, meaning, _ = row.replace("\\|", "/").split("|")
            assert meaning.strip(), (config, name)
            is_section = bool(config_classes(config.model_fields[name].annotation))
            assert is_section or (example.strip() and example != default), (config, name)


def fields_at(path: str) -> list[FieldInfo]:
    """Fields of a key such as `model.towers[].n_head`; several where its section has variants."""
    section, _, name = path.rpartition(".")
    if section == "model.options":
        return [c.model_fields[name] for c in COUNTING.values() if name in c.model_fields]
    return [field for s, key, field in RECIPE.recipe_keys() if (s.path, key) == (section, name)]


def test_examples_are_values_of_their_keys() -> None:
    examples = yaml.safe_load((ROOT / "docs" / "hooks" / "examples.yaml").read_text())
    for path, value in examples.items():
        fields = fields_at(path)
        assert fields, f"a recipe has no {path}"
        for field in fields:
            TypeAdapter(Annotated[field.annotation, field]).validate_python(value)
            assert value != field.default, path


def test_every_command_and_option_has_a_row() -> None:
    page = COMMANDS.command_page()
    root = typer.main.get_command(app)
    names = [name for name, _ in COMMANDS.commands()]
    groups = {n: c.commands for n, c in root.commands.items() if hasattr(c, "commands")}  # type: ignore[attr-defined]
    assert names[1:] == [
        f"pipeline {part}"
        for name in root.commands  # type: ignore[attr-defined]
        for part in (name, *(f"{name} {inner}" for inner in groups.get(name, ())))
    ]
    for name, command in COMMANDS.commands():
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        for parameter in command.params:
            if getattr(parameter, "hidden", False):
                continue
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert option in section, (name, option)


def test_every_public_name_has_a_directive() -> None:
    pages = {package.title: package for package in API.packages()}
    for package in pages.values():
        directives = re.findall("^::: (.+)$", API.api_page(package), re.MULTILINE)
        assert directives == list(package.names.values())
        # without a heading of its own a function has no signature
        assert API.api_page(package).count("show_root_heading: true") == len(directives)
    assert set(pages["Python"].names) == set(pipeline.__all__) - {"__version__"}
    for name, value in vars(model).items():
        if not name.startswith("_") and not isinstance(value, ModuleType):
            assert name in pages["Building blocks in Python"].names, name


def test_examples_are_notebooks_too() -> None:
    assert len(GALLERY.programs()) >= 6
    for program in GALLERY.programs():
        content = json.loads(GALLERY.notebook(program))
        code = ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == "code"]
        texts = ["".join(c["source"]) for c in content["cells"] if c["cell_type"] == "markdown"]
        assert texts[0].startswith("# "), program
        # the cells are the program, but for what stands between them
        lines = [line for cell in code for line in cell.splitlines() if line]
        commands = [line for line in program.read_text().splitlines() if line]
        assert lines == [line for line in commands if line in lines], program
        assert compile("\n".join(code), str(program), "exec")


def test_committed_figures_are_those_of_the_code(shop: Shop) -> None:
    folder = ROOT / "docs" / "figures"
    figures = FIGURES.figures(shop.repository)
    assert {path.name for path in folder.iterdir()} == set(figures)
    for name, content in figures.items():
        command = "PYTHONPATH=. python docs/hooks/figures.py"
        assert (folder / name).read_text(encoding="utf-8") == content, f"{name}: run {command}"


@pytest.mark.parametrize("stage", [Stage.EVALUATE, Stage.PREDICT])
@pytest.mark.parametrize("masking", ["clm", "mlm", "plm", "rtd"])
def test_figure_of_visibility_shows_all_interactions_but_the_target(
    masking: str, stage: Stage
) -> None:
    panel = PANELS.panel(PANELS.small_model(masking), stage)
    (query,) = [i for i, target in enumerate(panel.predicts) if target]
    is_target = [letter == panel.predicts[query] for letter in "abcdef"]
    assert panel.sees[query] == [not flag for flag in is_target]
    assert any(is_target) == (stage == Stage.EVALUATE)


@pytest.mark.parametrize("masking", ["clm", "mlm", "plm", "rtd"])
def test_figure_of_visibility_shows_no_target_in_training(masking: str) -> None:
    panel = PANELS.panel(PANELS.small_model(masking), Stage.TRAIN)
    masked = panel.masked or panel
    targets = [(i, "abcdef".index(letter)) for i, letter in enumerate(masked.predicts) if letter]
    assert len(targets) > 1
    for position, target in targets:
        assert not masked.sees[position][target]
        assert any(masked.sees[position])
    assert (panel.masked is None) == (masking != "rtd")
    if panel.masked is not None:
        replaced = [a != b for a, b in zip(panel.reads, "abcdef", strict=True)]
        assert [label == "replaced" for label in panel.detects] == replaced
        assert any(replaced)

"""Recipes of published models that come with the package, by name."""

from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.config import read_values
from pipeline.core.errors import ConfigError, closest
from pipeline.core.files import find_resource


class PublishedRecipe(NamedTuple):
    """A file of `configs/models/`."""

    name: str
    """Name that `--recipe` takes, such as gru4rec."""
    title: str
    """The model and its paper, from the first line of the file."""
    path: Path

    @property
    def text(self) -> str:
        """The recipe as YAML; its comments say which settings are those of the paper."""
        return self.path.read_text(encoding="utf-8")


def published_recipes() -> dict[str, PublishedRecipe]:
    """Return the recipes by name, sorted."""
    recipes = {}
    for path in sorted(find_resource("configs/models").glob("*.yaml"), key=lambda path: path.stem):
        title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        recipes[path.stem] = PublishedRecipe(path.stem, title, path)
    return recipes


def published_recipe(name: str) -> PublishedRecipe:
    """Return the recipe of a name. ConfigError if there is none."""
    recipes = published_recipes()
    if name not in recipes:
        raise ConfigError(f"There is no published recipe {name!r}; {closest(name, recipes)}")
    return recipes[name]


def recipe_values(recipe: Path | None, overrides: tuple[str, ...]) -> dict[str, Any]:
    """`read_values` of a file, or of the published recipe with that name if there is no such file.

    ConfigError for a file that cannot be read, and for a name that no recipe has.
    """
    is_name = recipe is not None and recipe.name == str(recipe) and not recipe.suffix
    if recipe is not None and is_name and not recipe.exists():
        names = published_recipes()
        if recipe.name not in names:
            raise ConfigError(
                f"{recipe} does not exist. Expected a recipe in YAML, or the name of a published "
                f"one; {closest(recipe.name, names)}"
            )
        recipe = names[recipe.name].path
    return read_values(recipe, overrides)

"""`pipeline recipes`."""

from typing import Annotated

import typer

from pipeline.cli.console import print_result
from pipeline.cli.options import Json

recipes = typer.Typer(no_args_is_help=True)


@recipes.command("list", epilog="Example: pipeline recipes list")
def list_recipes(as_json: Json = False) -> None:
    """Print the names of the recipes of published models, which `--recipe` takes."""
    from pipeline.recipe.published import published_recipes

    published = published_recipes().values()
    width = max(len(recipe.name) for recipe in published)
    lines = [f"{recipe.name:<{width}}  {recipe.title}" for recipe in published]
    lines += ["", "Next: pipeline train DATA --recipe NAME, or pipeline recipes show NAME"]
    facts = {"recipes": {recipe.name: {"title": recipe.title} for recipe in published}}
    print_result(facts, as_json, "\n".join(lines))


@recipes.command("show", epilog="Example: pipeline recipes show gru4rec > gru4rec.yaml")
def show_recipe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that `list` prints.")],
) -> None:
    """Print a recipe as YAML; its comments say which settings are those of the paper."""
    from pipeline.recipe.published import published_recipe

    typer.echo(published_recipe(name).text, nl=False)

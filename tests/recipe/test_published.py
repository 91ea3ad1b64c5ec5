"""Recipes of published models: named, shown, and taken by every `--recipe`."""

from pathlib import Path

import pytest
import yaml

from pipeline.core.errors import ConfigError
from pipeline.recipe.published import published_recipe, published_recipes, recipe_values
from pipeline.recipe.recipe import Recipe


@pytest.mark.parametrize("name", published_recipes())
def test_every_published_recipe_loads_by_its_name(name: str) -> None:
    recipe = published_recipe(name)
    values = yaml.safe_load(recipe.text)
    assert sorted(values) == ["model", "train"]  # any data may be trained on with it
    assert Recipe.load(name) == Recipe.from_dict(values, name)
    assert recipe.title
    assert recipe.text.splitlines()[1] == "#"


def test_a_file_of_the_same_name_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "core").write_text("model: {d_model: 8}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert recipe_values(Path("core"), ("train.epochs=2",)) == {
        "model": {"d_model": 8},
        "train": {"epochs": 2},
    }


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("gru4re", "gru4re does not exist.*did you mean `gru4rec`"),
        ("gru4rec.yaml", "gru4rec.yaml does not exist"),
        ("folder/gru4rec", "folder/gru4rec does not exist"),
    ],
)
def test_other_names_are_refused(path: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        recipe_values(Path(path), ())
    with pytest.raises(ConfigError, match="There is no published recipe"):
        published_recipe(path)

"""Programs, recipes and tables of the pages in docs/, run or compared with the code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from pipeline import compat
from pipeline import model as tr
from pipeline.recipe import choices as names
from pipeline.recipe.counting import COUNTING
from pipeline.recipe.recipe import Recipe
from tests.conftest import ROOT, Shop

BLOCKS = (ROOT / "docs" / "building-blocks.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def run(code: str, namespace: dict[str, object]) -> dict[str, object]:
    exec(compile(code, "docs", "exec"), namespace)  # noqa: S102
    return namespace


def test_first_program_of_building_blocks_runs(shop: Shop) -> None:
    program = blocks(BLOCKS, "python")[0].replace("data/shop", str(shop.data))
    model = run(program, {})["model"]
    assert isinstance(model, tr.Model)
    features = {
        name: torch.zeros(1, 2, dtype=torch.int64)
        if name in model.inputs.tables
        else torch.zeros(1, 2)
        for name in model.inputs.feature_names
    }
    features["item_id"] += 5
    session_batch = tr.SessionBatch(features, torch.tensor([2]))
    namespace = {"model": model.eval(), "batch": session_batch, "blocked": None, "allowed": None}
    result = run(blocks(BLOCKS, "python")[1], namespace)
    assert result["best"].items.shape == (1, 20)  # type: ignore[attr-defined]


def test_recipes_of_building_blocks_are_valid() -> None:
    texts = blocks(BLOCKS, "yaml")
    assert len(texts) == 7
    for text in texts:
        Recipe.from_dict(yaml.safe_load(text), "docs")


def test_table_of_architectures_equals_the_code() -> None:
    rows = re.findall(r"^\| (`.*)\|$", BLOCKS, flags=re.MULTILINE)
    table = {}
    for row in rows:
        cells = [cell.strip() for cell in row.split("|")]
        if len(cells) == 6:
            result = [m for m, cell in zip(("clm", "mlm", "plm", "rtd"), cells[1:5]) if cell]  # noqa: B905
            for name in re.findall(r"`([a-z0-9]+)`", cells[0]):
                table[name] = tuple(result)
    assert table == names.ARCHITECTURES


def test_every_option_of_a_counting_model_is_in_building_blocks() -> None:
    section = BLOCKS.partition("## Counting models")[2].partition("\n## ")[0]
    rows = {row.split("`")[1]: row for row in re.findall(r"^\| `.*\|$", section, re.MULTILINE)}
    assert list(rows) == list(COUNTING)
    for name, options in COUNTING.items():
        assert [n for n in options.model_fields if f"`{n}" not in rows[name]] == [], name


def test_every_loss_is_in_building_blocks() -> None:
    for loss in (*names.FULL_LOSSES, *names.SAMPLED_LOSSES, *names.NEGATIVES):
        assert f"`{loss}`" in BLOCKS


def test_plugins_of_the_page_work_in_a_recipe(tmp_path: Path) -> None:
    program = next(code for code in blocks(BLOCKS, "python") if "class AverageConfig(" in code)
    (tmp_path / "own.py").write_text(program, encoding="utf-8")
    (tmp_path / "check.py").write_text(PLUGIN_CHECK, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "check.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


PLUGIN_CHECK = """
from pathlib import Path

import torch

from pipeline import model as tr
from pipeline.evaluation.metrics import gains
from pipeline.model.build import build_model
from pipeline.plugins import load_plugins
from pipeline.recipe.recipe import Recipe

load_plugins(Path("own.py"))
recipe = Recipe.from_dict(
    {
        "model": {"architecture": "average", "d_model": 8, "item_vectors": "random"},
        "train": {"loss": "hinge", "num_negatives": 5, "metric": "first@3"},
    },
    "test",
)
item = tr.ColumnSchema.create_categorical("item_id", 17, tags=["item_id"])
model = build_model(tr.Schema((item,)), recipe.model, 6, recipe.train).eval()
items = torch.tensor([[4, 5, 6, 7], [8, 9, 0, 0]])
loss = model.loss(tr.SessionBatch({"item_id": items}, torch.tensor([4, 2])))
loss.backward()
assert float(loss.detach()) > 0
scores = model(tr.SessionBatch({"item_id": items}, torch.tensor([4, 2])))
alone = model(tr.SessionBatch({"item_id": items[1:, :2]}, torch.tensor([2])))
assert torch.allclose(scores[1], alone[0], atol=1e-6)
assert gains(torch.tensor([1, 2]).numpy(), (3,))["first@3"].tolist() == [1, 0]
"""


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_names_and_links_of_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    package = compat if page.stem == "from-transformers4rec" else tr
    for name in set(re.findall(r"\btr\.(\w+)", text)):
        assert hasattr(package, name), name
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / link).exists(), link

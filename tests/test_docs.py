"""Programs, recipes and tables of the pages in docs/, run or compared with the code."""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

from pipeline import compat
from pipeline import model as tr
from pipeline.exporting.torchscript import InferenceModel, pack_request, trace, unpack_answer
from pipeline.model import architectures, losses
from pipeline.model.build import build_model
from pipeline.recipe import choices as names
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.train import TrainConfig
from tests.conftest import ROOT, Shop

BLOCKS = (ROOT / "docs" / "building-blocks.md").read_text(encoding="utf-8")
SCHEMA = tr.Schema((tr.ColumnSchema.create_categorical("item_id", 27, tags=["item_id"]),))


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def batch(lengths: list[int], width: int) -> tr.SessionBatch:
    generator = torch.Generator().manual_seed(0)
    inside = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    ids = torch.randint(3, 30, inside.shape, generator=generator) * inside
    return tr.SessionBatch({"item_id": ids}, torch.tensor(lengths))


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
    assert len(texts) == 3
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


def test_every_loss_is_in_building_blocks() -> None:
    for loss in (*names.FULL_LOSSES, *names.SAMPLED_LOSSES, *names.NEGATIVES):
        assert f"`{loss}`" in BLOCKS


def test_new_architecture_takes_one_file_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = next(code for code in blocks(BLOCKS, "python") if "class Average(" in code)
    line = next(code for code in blocks(BLOCKS, "python") if code.startswith('    "average"'))
    (tmp_path / "average.py").write_text(file)
    monkeypatch.setattr(architectures, "__path__", [*architectures.__path__, str(tmp_path)])
    added = run("added = {" + line + "}", {})["added"]
    monkeypatch.setattr(
        "pipeline.recipe.choices.ARCHITECTURES",
        names.ARCHITECTURES | added,  # type: ignore[operator]
    )
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("pipeline") and hasattr(
            module, "ARCHITECTURES"
        ):
            monkeypatch.setattr(module, "ARCHITECTURES", names.ARCHITECTURES)
    config = ModelConfig(architecture="average", d_model=8)
    model = build_model(SCHEMA, config, 6).eval()
    session_batch = batch([6, 3], 6)
    served = InferenceModel(model, ["item_id"], set())
    with torch.no_grad():
        scores = model(session_batch)
        alone = model(
            tr.SessionBatch(
                {"item_id": session_batch.features["item_id"][1:, :3]}, torch.tensor([3])
            )
        )
        program = trace(served, 6)
        none = torch.zeros(2, 1, dtype=torch.int64)
        inputs = pack_request(served, [session_batch.features["item_id"]], 5, none, none)
        result = [unpack_answer(one(inputs), served.width).scores for one in (program, served)]
        assert torch.allclose(*result)
    assert torch.allclose(scores[1], alone[0], atol=1e-6)
    sys.modules.pop("pipeline.model.architectures.average")


def test_new_loss_takes_one_class_and_two_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    program = next(code for code in blocks(BLOCKS, "python") if "class HingeLoss(" in code)
    entry = next(code for code in blocks(BLOCKS, "python") if code.startswith('    "hinge"'))
    line = next(code for code in blocks(BLOCKS, "python") if code.startswith("SAMPLED_LOSSES"))
    added = run(line, {})["SAMPLED_LOSSES"]
    assert added == (*names.SAMPLED_LOSSES, "hinge")
    for module in ("pipeline.recipe.choices", "pipeline.recipe.train"):
        monkeypatch.setattr(f"{module}.SAMPLED_LOSSES", added)
    table = run(program + "\ntable = {" + entry + "}", {})["table"]
    monkeypatch.setattr(losses, "LOSSES", losses.LOSSES | table)  # type: ignore[operator]
    train = TrainConfig(loss="hinge", num_negatives=5)
    model = build_model(SCHEMA, ModelConfig(d_model=8), 6, train)
    loss = model.loss(batch([6, 3], 6))
    loss.backward()
    assert float(loss) > 0


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_names_and_links_of_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    package = compat if page.stem == "from-transformers4rec" else tr
    for name in set(re.findall(r"\btr\.(\w+)", text)):
        assert hasattr(package, name), name
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / link).exists(), link

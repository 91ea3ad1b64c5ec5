"""Tables of the documents: made of runs, and written where a document has their place."""

from pathlib import Path

import pytest

from benchmarks.results import (
    BEGIN,
    END,
    TABLES,
    Row,
    Table,
    check_names,
    measure_results,
    write_tables,
)
from pipeline.core.errors import ConfigError
from pipeline.recipe.recipe import Recipe
from tests.conftest import ROOT, Shop


def test_a_table_has_the_models_and_the_baselines(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Row(recipe="gru4rec", settings=("train.epochs=1", "model.d_model=8"))
    table = Table(log=(shop.clicks.name,), recipe="configs/demo.yaml", rows={"small": row})
    monkeypatch.setitem(TABLES, "shop", table)

    def once() -> str:
        [(name, text)] = measure_results(shop.clicks.parent, tmp_path, ("shop",), None)
        assert name == "shop"
        return text

    text = once()
    head, _, *rows = text.splitlines()
    assert head.endswith("| HR@20 | MRR@20 | NDCG@20 | processor time |")
    assert [line.split(" | ")[0] for line in rows][:2] == ["| small", "| popularity"]
    assert all(line.count("|") == head.count("|") for line in rows)
    trained = (tmp_path / "shop" / "small" / "manifest.json").stat().st_mtime_ns
    assert once() == text
    assert (tmp_path / "shop" / "small" / "manifest.json").stat().st_mtime_ns == trained


def test_tables_are_written_between_their_lines(tmp_path: Path) -> None:
    document = tmp_path / "results.md"
    document.write_text(f"a\n{BEGIN.format('x')}\nold\n{END}\nb\n", encoding="utf-8")
    assert write_tables(document, {"x": "| new |", "y": "| other |"}) == ["x"]
    assert document.read_text("utf-8") == f"a\n{BEGIN.format('x')}\n| new |\n{END}\nb\n"
    document.write_text(BEGIN.format("x") + "\nold\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="without"):
        write_tables(document, {"x": "| new |"})


def test_a_wrong_name_and_a_missing_log_end_with_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no table 'rsc'"):
        check_names(("rsc",))
    with pytest.raises(ConfigError, match=r"train\.tsv\.gz does not exist"):
        list(measure_results(tmp_path, tmp_path, ("rsc15",), None))


@pytest.mark.parametrize("name", TABLES)
def test_recipes_of_every_table_load_and_a_document_has_its_place(name: str) -> None:
    table = TABLES[name]
    assert Recipe.load(ROOT / table.recipe, table.settings).preprocess.item
    documents = [page.read_text("utf-8") for page in (ROOT / "docs").rglob("*.md")]
    assert sum(text.count(BEGIN.format(name)) for text in documents) == 1
    assert not any(f"{BEGIN.format(name)}\n{END}" in text for text in documents)  # not empty

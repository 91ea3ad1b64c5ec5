"""Lists of files in docs/reference/artifacts.md, compared with what the stages write."""

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback, TrainerState

from pipeline.exporting.onnx_directory import export_onnx
from pipeline.exporting.options import ExportOptions
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.search_space import Range
from pipeline.serve.request_log.files import FILE_PATTERN
from pipeline.training.run import train
from pipeline.training.tune import tune
from pipeline.updating.run import UpdateJob, update_model
from tests.conftest import ROOT, Shop

PAGE = (ROOT / "docs" / "reference" / "artifacts.md").read_text(encoding="utf-8")
WORDS = {"{part}": "(train|valid|test)", "{N}": r"\d+", "{name}": "recommender", "*": ".+"}
POPULARITY = Recipe.from_dict(
    {
        "preprocess": {
            "session": "session",
            "item": "product",
            "timestamp": {"column": "time"},
            "split": {"valid": "1d", "test": "1d"},
        },
        "model": {"architecture": "popularity"},
        "train": {},
    },
    "test",
)
"""A recipe of a model that is fitted in a moment."""


def patterns(heading: str) -> set[str]:
    """Names in the first column of the tables of a section."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\|.*\|$", section, re.MULTILINE)[2:]
    column = 1 if heading == "Single files" else 0
    cells = [row.split(" | ")[column] for row in rows]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern of the page stands for the name of a file."""
    parts = re.split(r"(\{\w+\}|\*)", pattern)
    expression = "".join(WORDS.get(p, r"\w+" if p == "{column}" else re.escape(p)) for p in parts)
    return re.fullmatch(expression, name) is not None


def compare(directory: Path, expected: set[str]) -> None:
    """Every file has a row, and every row stands for a file."""
    names = [p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()]
    names = [name for name in names if "__pycache__" not in name]
    assert [name for name in names if not any(matches(p, name) for p in expected)] == []
    assert [p for p in sorted(expected) if not any(matches(p, name) for name in names)] == []


def test_data_run_and_repository_have_the_files_of_the_page(shop: Shop) -> None:
    everywhere = patterns("In every directory") - {"manifest.sig"}
    assert everywhere == {"manifest.json"}
    compare(shop.data, patterns("Data directory") | everywhere)
    compare(shop.run, patterns("Run") | everywhere)
    compare(shop.repository, patterns("Model repository") | everywhere)


def test_onnx_directory_has_the_files_of_the_page(shop: Shop, tmp_path: Path) -> None:
    export_onnx(shop.run, tmp_path / "onnx", ExportOptions())
    compare(tmp_path / "onnx", patterns("ONNX directory") | {"manifest.json"})


def test_directory_of_update_has_the_files_of_the_page(shop: Shop, tmp_path: Path) -> None:
    update_model(UpdateJob(folder=tmp_path / "shop", recipe=POPULARITY, logs=[shop.clicks]))
    compare(tmp_path / "shop", patterns("Directory of `update`"))


def test_directory_of_tune_has_the_files_of_the_page(shop: Shop, tmp_path: Path) -> None:
    recipe = {"model": {"architecture": "session-knn"}}
    space = {"model.options.k": Range("int", (1, 100))}
    tune(shop.data, recipe, space, tmp_path / "tuning", num_trials=2)
    compare(tmp_path / "tuning", patterns("Directory of `tune`"))


class Interruption(TrainerCallback):
    """Ends a training as its second epoch begins."""

    def on_epoch_begin(self, args: Any, state: TrainerState, *_: Any, **others: Any) -> None:
        """KeyboardInterrupt after the first epoch."""
        if state.epoch:
            raise KeyboardInterrupt


def test_checkpoints_have_the_files_of_the_page(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(
            shop.data,
            shop.recipe.model,
            shop.recipe.train,
            tmp_path / "run",
            callbacks=[Interruption()],
        )
    *_, newest = sorted((tmp_path / ".run.checkpoints").iterdir())
    assert newest.name.startswith("step-")
    compare(newest, patterns("Checkpoints") | {"manifest.json"})


def test_request_log_has_the_name_of_the_page() -> None:
    assert FILE_PATTERN in patterns("Single files")


def test_a_file_without_a_row_and_a_row_without_a_file_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.json").touch()
    compare(tmp_path, {"a.json"})
    for rows in ({"b.json"}, {"a.json", "b.json"}, set[str]()):
        with pytest.raises(AssertionError):
            compare(tmp_path, rows)

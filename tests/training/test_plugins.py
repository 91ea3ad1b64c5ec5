"""Losses, architectures and metrics of a file of one's own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Shop

PLUGINS = '''
import torch
from torch import nn

from pipeline.model.architectures.config import ArchitectureConfig
from pipeline.plugins import register_architecture, register_loss, register_metric


@register_loss("focal")
class FocalLoss(nn.Module):
    def forward(self, logits, targets):
        chance = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
        return -((1 - chance.exp()) ** 2) * chance


class Averages(nn.Module):
    """Mean of the interactions so far."""

    def __init__(self, config):
        super().__init__()
        self.d_output = config.d_model
        self.layer = nn.Linear(config.d_model, config.d_model)

    def forward(self, embeddings, lengths, order):
        count = torch.arange(1, embeddings.size(1) + 1, device=embeddings.device)
        return self.layer(embeddings.cumsum(1) / count[:, None])


@register_architecture("clm")
class AveragesConfig(ArchitectureConfig):
    name = "averages"

    def encoder(self, masking):
        return Averages(self)


@register_metric("first")
def first(ranks, cutoff):
    return (ranks == 1).to(ranks.dtype)
'''


def run(folder: Path, *words: object, code: int = 0) -> Any:
    command = [sys.executable, "-m", "pipeline", *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env={"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if "--json" in words else done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shop: Shop) -> Path:
    path = tmp_path_factory.mktemp("plugins")
    (path / "own.py").write_text(PLUGINS, encoding="utf-8")
    settings = {
        "model.architecture": "averages",
        "model.d_model": 16,
        "train.loss": "focal",
        "train.metric": "first@3",
        "train.epochs": 1,
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    run(path, "train", shop.data, "--plugins", "own.py", *words, "--out", "run")
    return path


@pytest.mark.slow
def test_a_run_of_plugins_needs_no_plugins_later(shop: Shop, folder: Path) -> None:
    (folder / "own.py").rename(folder / "away.py")
    try:
        result = run(folder, "evaluate", "run", "--data", shop.data, "--json")
        assert 0 < result["results"]["run"]["recall@20"] <= 1
        assert "first@20" not in result["results"]["run"]
        run(folder, "export", "run", "--out", "repository")
        lists = run(folder, "recommend", "run", "--items", "sku-00001", "--json")
        assert len(lists["sessions"][0]["recommendations"]) == 10
    finally:
        (folder / "away.py").rename(folder / "own.py")


def test_a_metric_of_ones_own_stands_beside_the_others(shop: Shop, folder: Path) -> None:
    words = "evaluate", "run", "--data", shop.data, "--plugins", "own.py", "--json"
    values = run(folder, *words)["results"]["run"]
    assert values["first@20"] == values["first@5"], "the cutoff does not matter to it"
    assert 0 < values["first@20"] < values["recall@5"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not exist"),
        ("1 / 0", "own.py failed at line 1: ZeroDivisionError"),
        (
            "from pipeline.plugins import register_loss\n\n@register_loss('bpr')\nclass L: ...\n",
            "has a loss 'bpr'",
        ),
        ("raise ValueError('two\\nlines')", "ValueError: two lines."),
        ("from pipeline.plugins import register_architecture as r\nr('clmm')", "clm, mlm"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    shop: Shop, tmp_path: Path, text: str | None, words: str
) -> None:
    if text is not None:
        (tmp_path / "own.py").write_text(text, encoding="utf-8")
    arguments = "train", shop.data, "--plugins", "own.py", "--out", "run"
    error = run(tmp_path, *arguments, code=2)
    assert words in error
    assert len(error.strip().splitlines()) == 1


def test_a_loss_with_arguments_is_refused(shop: Shop, tmp_path: Path) -> None:
    text = (
        "from torch import nn\nfrom pipeline.plugins import register_loss\n\n"
        "@register_loss('mine')\nclass Mine(nn.Module):\n"
        "    def __init__(self, scale):\n        super().__init__()\n"
    )
    (tmp_path / "own.py").write_text(text, encoding="utf-8")
    settings = "--set", "train.loss=mine"
    error = run(
        tmp_path, "train", shop.data, "--plugins", "own.py", *settings, "--out", "r", code=2
    )
    assert "'mine' cannot be made without arguments" in error


def test_an_unknown_name_without_the_file_is_refused(shop: Shop, tmp_path: Path) -> None:
    for setting, message in (
        ("train.loss=focal", "there is no loss 'focal'"),
        ("train.metric=first@20", "`metric` is 'first@20'"),
        ("model.architecture=average", "there is no architecture 'average'"),
    ):
        error = run(tmp_path, "train", shop.data, "--set", setting, "--out", "run", code=2)
        assert message in error
        assert "needs the file that registers it: --plugins FILE.py" in error


def test_a_metric_without_a_gain_of_each_rank_is_refused(shop: Shop, tmp_path: Path) -> None:
    text = "from pipeline.plugins import register_metric\n\n@register_metric('average')\n"
    (tmp_path / "own.py").write_text(f"{text}def average(ranks, cutoff): return ranks.mean()\n")
    words = ["--set", "train.metric=average@5", "--set", "train.epochs=1"]
    error = run(tmp_path, "train", shop.data, "--plugins", "own.py", "--out", "run", *words, code=2)
    assert "'average' gives () of" in error

"""Sharded item tables: training of several processes equals that with whole tables."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import ConfigError
from pipeline.data.column_schema import ColumnSchema
from pipeline.data.schema import Schema
from pipeline.model.build import build_model
from pipeline.model.model_files import load_model
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.train import TrainConfig
from pipeline.training.distributed.processes import Processes
from pipeline.training.distributed.sharding import check_shardable
from pipeline.training.run import train
from tests.conftest import ROOT
from tests.training.sharded_processes import MODELS, config
from tests.training.small_data import small_data
from tests.training.test_processes import log, same_weights

TWO = Processes(0, 2)
PER_ITEM = {"feature": "price", "kind": "regression", "per_item": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two and three processes wrote."""
    folder = tmp_path_factory.mktemp("sharding")
    small_data(
        folder,
        features=(
            {"name": "category", "kind": "categorical", "of": "item"},
            {"name": "price", "kind": "continuous", "log": True},
        ),
    )
    command = [sys.executable, "-m", "tests.training.sharded_processes", str(folder)]
    subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=(folder / "stderr").open("w"),
        cwd=ROOT,
        check=True,
        timeout=600,
    )
    return folder


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("what", ["losses", "ranks"])
def test_sharded_losses_and_ranks_equal_those_of_the_whole_table(
    folder: Path, what: str, count: int
) -> None:
    """The processes compare them; one of them has no target."""
    for rank in range(count):
        assert (folder / f"{what}{count}.{rank}").exists(), (folder / "stderr").read_text()[-2000:]


@pytest.mark.parametrize("name", MODELS)
def test_sharded_training_learns_the_weights_of_the_whole_table(folder: Path, name: str) -> None:
    """In two processes, cosine in three."""
    whole, parts = folder / f"{name}-whole", folder / f"{name}-sharded"
    # Adam makes full steps of what is rounding alone: a bias of keys, which changes no attention
    same_weights(whole, parts, rtol=1e-5, atol=5e-5)
    one, other = log(whole), log(parts)
    assert [line["step"] for line in one] == [line["step"] for line in other]
    for left, right in zip(one, other, strict=True):
        for key in {*left} & {"loss", "grad_norm", "eval_loss", "eval_recall@20", "eval_ndcg@20"}:
            assert left[key] == pytest.approx(right[key], rel=1e-5, abs=2e-6), key


def test_run_of_a_sharded_table_has_all_rows(folder: Path) -> None:
    rows = Schema.from_json(folder / "data" / "schema.pbtxt").item_id.num_rows
    assert rows % 2
    assert rows % 3
    assert load_model(folder / "gpt2-sharded").inputs.item_table.weight.shape == (rows, 8)
    assert not [*folder.glob(".*checkpoints")]


def test_process_holds_gradients_and_moments_of_its_rows_only(folder: Path) -> None:
    rows = Schema.from_json(folder / "data" / "schema.pbtxt").item_id.num_rows
    for rank in range(3):
        counts = json.loads((folder / f"rows.{rank}").read_text())
        own = rows * (rank + 1) // 3 - rows * rank // 3
        assert counts == dict.fromkeys(("weight", "gradient", "exp_avg", "exp_avg_sq"), own)


def test_interrupted_sharded_training_continues(folder: Path) -> None:
    assert (folder / "stopped.1").exists()
    assert "Continuing from step 5." in (folder / "stderr").read_text()
    same_weights(folder / "resumed", folder / "gpt2-sharded", rtol=0, atol=0)


def test_death_of_a_process_ends_the_other_with_one_line(folder: Path) -> None:
    assert "Another process of this training ended" in (folder / "error").read_text()


def test_single_process_keeps_the_whole_table(folder: Path) -> None:
    for table in ("whole", "sharded"):
        train(
            folder / "data",
            MODELS["gpt2"],
            config("gpt2", table, epochs=1),
            folder / f"one-{table}",
        )
    same_weights(folder / "one-whole", folder / "one-sharded", rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"loss": "gbce"}, "is for cross-entropy, not for gbce"),
        ({"table_optimizer": "lazy-adamw"}, "works with adamw, not lazy-adamw"),
        ({"arguments": {"optim": "adafactor"}}, "does not work with `optim`"),
        ({"arguments": {"fp16": True}}, "does not work with `fp16`"),
    ],
)
def test_incompatible_training_settings_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TrainConfig.from_dict({"item_table": "sharded", **settings}, "recipe")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"architecture": "bert", "masking": "rtd"}, "rtd scores all items"),
        ({"weight_tying": False}, "set `weight_tying: true`"),
        ({"item_dropout": 0.1}, "set it to 0"),
        ({"targets": [PER_ITEM]}, "leave `per_item` out"),
    ],
)
def test_models_without_a_shardable_table_are_refused(
    folder: Path, settings: dict[str, Any], says: str
) -> None:
    schema = Schema.from_json(folder / "data" / "schema.pbtxt")
    if "targets" in settings:
        schema = Schema((*schema, ColumnSchema.create_continuous("price")))
    with pytest.raises(ConfigError, match=says):
        check_shardable(build_model(schema, ModelConfig(d_model=8, **settings), 20), TWO)
    with pytest.raises(ConfigError, match="rows are too few for 12"):
        check_shardable(build_model(schema, ModelConfig(d_model=8), 20), Processes(0, 12))

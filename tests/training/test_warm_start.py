"""A training that begins from the weights of an earlier run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ConfigError
from pipeline.data.batch import SessionBatch
from pipeline.data.directory import Data
from pipeline.data.fitted import Fitted, Vocabulary
from pipeline.model.build import build_model
from pipeline.model.model import Model
from pipeline.model.model_files import load_model
from pipeline.model.run import Run
from pipeline.preprocessing.run import preprocess
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.train import TrainConfig
from pipeline.training import run as training_run
from pipeline.training.incremental.warm_start import initialize_new_rows, matched_rows, warm_start
from pipeline.training.run import train

MODEL = ModelConfig(d_model=8, n_head=2, n_layer=1)
TRAIN = TrainConfig(epochs=1, batch_size=16)
RECIPE = Preprocess.from_dict(
    {
        "session": "session",
        "item": "item",
        "timestamp": {"column": "time", "unit": "s"},
        "features": [{"name": "kind", "kind": "categorical", "of": "item"}],
    },
    "test",
)


def write_data(folder: Path, items: list[int], recipe: Preprocess = RECIPE) -> Path:
    """Sessions of consecutive items; the first stand in the most sessions."""
    folder.mkdir()
    lines = ["session,item,kind,time"]
    for session in range(30):
        begin = session % len(items)
        for click in range(4):
            item = items[max(0, begin - click)]
            lines.append(f"s{session},{item},k{item % 3},{100 * session + click}")
    (folder / "clicks.csv").write_text("\n".join(lines) + "\n")
    preprocess(recipe, [folder / "clicks.csv"], [], folder / "data")
    return folder / "data"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("old") / "log", [*range(10, 20)])


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    train(data, MODEL, TRAIN, data.parent / "run")
    return data.parent / "run"


def warm_started(
    run: Path, data: Path, config: ModelConfig = MODEL, new_items: str = "mean"
) -> Model:
    opened = Data.open(data)
    model = build_model(opened.schema, config, opened.recipe.max_sequence_length)
    warm_start(model, Run.open(run), opened, config, new_items)
    return model.eval()


def scores(model: Model, data: Path, items: list[int]) -> dict[object, float]:
    """Score of each raw item after a session of raw `items`."""
    fitted = Fitted.read(data)
    index = {
        name: {
            value: FIRST_ITEM + place for place, value in enumerate(vocabulary.values.to_pylist())
        }
        for name, vocabulary in fitted.vocabularies.items()
    }
    features = {
        "item_id": torch.tensor([[index["item_id"][item] for item in items]]),
        "kind": torch.tensor([[index["kind"][f"k{item % 3}"] for item in items]]),
    }
    batch = SessionBatch(features, torch.tensor([len(items)]))
    with torch.no_grad():
        row = model(batch)[0]
    return {item: float(row[place]) for item, place in index["item_id"].items()}


def test_warm_started_model_scores_like_the_run_on_the_same_data(data: Path, run: Path) -> None:
    assert scores(warm_started(run, data), data, [12, 15, 11]) == scores(
        load_model(run), data, [12, 15, 11]
    )


def test_targets_per_item_move_with_their_items(data: Path, tmp_path: Path) -> None:
    target = {"feature": "kind", "kind": "binary", "positive": ["k0"], "per_item": True}
    config = MODEL.from_dict(
        {**MODEL.model_dump(), "targets": [target], "rank_by": "log(kind)"}, "test"
    )
    run = tmp_path / "run"
    train(data, config, TRAIN.model_copy(update={"epochs": 6, "learning_rate": 0.03}), run)
    expected = scores(load_model(run, Fitted.read(data)), data, [12, 15, 11])
    turned = write_data(tmp_path / "log", [*reversed(range(10, 21))])
    # another expression is no other model
    by_chance = config.model_copy(update={"rank_by": "kind"})
    moved = scores(warm_started(run, turned, by_chance), turned, [12, 15, 11])
    assert expected == pytest.approx(
        {item: np.log(moved[item]) for item in expected}, rel=1e-5, abs=1e-6
    )
    others = [chance for item, chance in moved.items() if item != 20]
    assert min(others) < moved[20] < max(others)


def test_scores_do_not_depend_on_the_order_of_the_catalogue(
    data: Path, run: Path, tmp_path: Path
) -> None:
    turned = write_data(tmp_path / "log", [*reversed(range(10, 20))])
    assert not Fitted.read(turned).item.values.equals(Fitted.read(data).item.values)
    expected = scores(load_model(run), data, [12, 15, 11])
    assert scores(warm_started(run, turned), turned, [12, 15, 11]) == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize("new_items", ["mean", "features"])
def test_new_items_start_at_a_mean_and_old_rows_are_copied(
    data: Path, run: Path, tmp_path: Path, new_items: str
) -> None:
    larger = write_data(tmp_path / "log", [*range(12, 24)])
    model, before = warm_started(run, larger, new_items=new_items), load_model(run)
    ids = Fitted.read(larger).item.values.to_pylist()
    old = {
        item: row for row, item in enumerate(Fitted.read(data).item.values.to_pylist(), FIRST_ITEM)
    }
    table, earlier = model.inputs.item_table.weight, before.inputs.item_table.weight
    assert set(ids) - set(old) == {20, 21, 22, 23}
    for row, item in enumerate(ids, FIRST_ITEM):
        if item in old:
            assert table[row].equal(earlier[old[item]])
        else:
            same = [old[i] for i in ids if i in old and (new_items == "mean" or i % 3 == item % 3)]
            mean = earlier[same].double().mean(0).float()
            torch.testing.assert_close(table[row], mean, rtol=1e-6, atol=1e-8)


def test_training_starts_from_the_weights_of_the_run(
    data: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = []

    def spy(model: Model, *arguments: Any) -> None:
        warm_start(model, *arguments)
        tables.append(model.inputs.item_table.weight.detach().clone())

    monkeypatch.setattr(training_run, "warm_start", spy)
    config = TRAIN.model_copy(update={"learning_rate": 1e-12, "weight_decay": 0.0})
    train(data, MODEL, config, tmp_path / "new", start=run)
    assert len(tables) == 1
    torch.testing.assert_close(load_model(tmp_path / "new").inputs.item_table.weight, tables[0])


def test_new_row_falls_back_to_items_with_fewer_shared_features() -> None:
    weight = torch.tensor([[0.0]] * 3 + [[1.0], [3.0], [8.0], [0.5], [0.5], [0.5]])
    is_copied = torch.tensor([True] * 6 + [False] * 3)
    # (category, brand), 0 where an item has none
    features = np.array([[0, 0]] * 3 + [[4, 4], [4, 5], [5, 4], [4, 5], [4, 9], [0, 4]])
    initialize_new_rows(weight, is_copied, features)
    assert weight[3:6].squeeze(1).tolist() == [1, 3, 8]
    assert weight[6:].squeeze(1).tolist() == [3, 2, 4]  # both, the category, none


def test_raw_values_match_between_numbers_and_text() -> None:
    numbers = Vocabulary(type="int64", values=pa.array([7, 5]))
    texts = Vocabulary(type="string", values=pa.array(["5", "6", "7"]))
    assert matched_rows(numbers, texts).tolist() == [0, 1, 2, 4, -1, 3]


def other_features(folder: Path) -> Path:
    return write_data(folder, [*range(10, 20)], RECIPE.model_copy(update={"features": ()}))


@pytest.mark.parametrize(
    ("config", "make", "message"),
    [
        (MODEL.model_copy(update={"n_layer": 2}), None, "`model.n_layer: 1`, the recipe 2"),
        (MODEL.model_copy(update={"item_dim": 4}), None, "`model.item_dim: None`, the recipe 4"),
        (ModelConfig(architecture="gru", d_model=8, n_layer=1), None, "`model.architecture"),
        (MODEL, other_features, "has features"),
        (MODEL, lambda folder: write_data(folder, [*range(90, 99)]), "knows none"),
    ],
)
def test_incompatible_run_is_refused_in_one_line(
    data: Path,
    run: Path,
    tmp_path: Path,
    config: ModelConfig,
    make: Callable[[Path], Path] | None,
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        warm_started(run, data if make is None else make(tmp_path / "log"), config)
    assert "\n" not in str(error.value)


def test_dropout_can_differ_from_the_run(data: Path, run: Path) -> None:
    warm_started(run, data, MODEL.model_copy(update={"dropout": 0.0}))

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
from pipeline.data.fitted import Fitted, Vocabulary
from pipeline.data.schema import Schema
from pipeline.model.build import build_model, load_model
from pipeline.model.model import Model
from pipeline.preprocessing.run import preprocess
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.train import TrainConfig
from pipeline.training import run as of_run
from pipeline.training.incremental.warm_start import begin_from, begin_new_rows, matched_rows
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


def begun(run: Path, data: Path, config: ModelConfig = MODEL, **settings: Any) -> Model:
    fitted = Fitted.read(data)
    schema = Schema.from_json(data / "schema.pbtxt")
    model = build_model(schema, config, fitted.recipe.max_sequence_length)
    begin_from(model, run, data, fitted, config, settings.get("new_items", "mean"))
    return model.eval()


def scores(model: Model, data: Path, items: list[int]) -> dict[object, float]:
    """Of each raw item after a session of raw `items`."""
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
        found = model(batch)[0]
    return {item: float(found[place]) for item, place in index["item_id"].items()}


def test_on_the_same_data_it_scores_as_the_run_before_any_step(data: Path, run: Path) -> None:
    assert scores(begun(run, data), data, [12, 15, 11]) == scores(
        load_model(run), data, [12, 15, 11]
    )


def test_the_order_of_the_catalogue_changes_no_score(data: Path, run: Path, tmp_path: Path) -> None:
    turned = write_data(tmp_path / "log", [*reversed(range(10, 20))])
    assert not Fitted.read(turned).item.values.equals(Fitted.read(data).item.values)
    expected = scores(load_model(run), data, [12, 15, 11])
    assert scores(begun(run, turned), turned, [12, 15, 11]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("new_items", ["mean", "features"])
def test_new_items_begin_at_a_mean_and_old_rows_are_copied(
    data: Path, run: Path, tmp_path: Path, new_items: str
) -> None:
    larger = write_data(tmp_path / "log", [*range(12, 24)])
    model, before = begun(run, larger, new_items=new_items), load_model(run)
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


def test_training_begins_there(
    data: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(model: Model, *given: Any) -> None:
        begin_from(model, *given)
        seen.append(model.inputs.item_table.weight.detach().clone())

    monkeypatch.setattr(of_run, "begin_from", watched)
    config = TRAIN.model_copy(update={"learning_rate": 1e-12, "weight_decay": 0.0})
    train(data, MODEL, config, tmp_path / "new", start=run)
    assert len(seen) == 1
    torch.testing.assert_close(load_model(tmp_path / "new").inputs.item_table.weight, seen[0])


def test_a_new_row_without_known_items_of_its_features_takes_those_of_fewer() -> None:
    weight = torch.tensor([[0.0]] * 3 + [[1.0], [3.0], [8.0], [0.5], [0.5], [0.5]])
    known = torch.tensor([True] * 6 + [False] * 3)
    # (category, brand), 0 where it is not known
    alike = np.array([[0, 0]] * 3 + [[4, 4], [4, 5], [5, 4], [4, 5], [4, 9], [0, 4]])
    begin_new_rows(weight, known, alike)
    assert weight[3:6].squeeze(1).tolist() == [1, 3, 8]
    assert weight[6:].squeeze(1).tolist() == [3, 2, 4]  # both, the category, none


def test_raw_values_are_matched_also_where_a_log_gives_numbers_as_text() -> None:
    numbers = Vocabulary(type="int64", values=pa.array([7, 5]))
    texts = Vocabulary(type="string", values=pa.array(["5", "6", "7"]))
    assert matched_rows(numbers, texts).tolist() == [0, 1, 2, 4, -1, 3]


def other_features(folder: Path) -> Path:
    return write_data(folder, [*range(10, 20)], RECIPE.model_copy(update={"features": ()}))


@pytest.mark.parametrize(
    ("config", "make", "told"),
    [
        (MODEL.model_copy(update={"n_layer": 2}), None, "`model.n_layer: 1`, the recipe 2"),
        (MODEL.model_copy(update={"item_dim": 4}), None, "`model.item_dim: None`, the recipe 4"),
        (ModelConfig(architecture="gru", d_model=8, n_layer=1), None, "`model.architecture"),
        (MODEL, other_features, "has features"),
        (MODEL, lambda folder: write_data(folder, [*range(90, 99)]), "knows none"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_in_a_line(
    data: Path,
    run: Path,
    tmp_path: Path,
    config: ModelConfig,
    make: Callable[[Path], Path] | None,
    told: str,
) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        begun(run, data if make is None else make(tmp_path / "log"), config)
    assert "\n" not in str(error.value)


def test_dropout_may_differ(data: Path, run: Path) -> None:
    begun(run, data, MODEL.model_copy(update={"dropout": 0.0}))

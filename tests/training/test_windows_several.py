"""Windows of features with several values an interaction and with hash buckets."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.torch import load_file

from pipeline.core.columns import bucket_of
from pipeline.data.directory import Data
from pipeline.data.fitted import Fitted
from pipeline.preprocessing.run import preprocess
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.train import TrainConfig
from pipeline.training.incremental.growing_vocabulary import GrowingVocabulary, map_sessions
from pipeline.training.incremental.incremental_trainer import IncrementalTrainer
from pipeline.training.incremental.run import train_windows
from pipeline.training.run import train
from tests.training.test_windows import first_sessions

MODEL = ModelConfig(d_model=8, n_head=2, n_layer=1)
TRAIN = TrainConfig(epochs=1, batch_size=8, seed=5, new_items="features")
DAY = 86_400
TAGS = {"name": "tags", "kind": "categorical", "separator": "|", "values_per_interaction": 3}
BRAND = {"name": "brand", "kind": "categorical", "of": "item", "hash_buckets": 4}
RECIPE = Preprocess.from_dict(
    {
        "session": "session",
        "item": "item",
        "timestamp": {"column": "time", "unit": "s"},
        "features": [{**TAGS, "hash_buckets": 2, "min_count": 2}, BRAND],
    },
    "test",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three days, each with items, brands and tags of its own; a tag may stand in any place."""
    folder = tmp_path_factory.mktemp("several")
    random = np.random.default_rng(0)
    lines = ["session,item,time,brand,tags"]
    for day in range(3):
        for session in range(20):
            for click, item in enumerate(random.integers(5 * day, 5 * day + 10, size=4)):
                tags = "|".join(f"t{t}" for t in random.integers(4 * day, 4 * day + 8, size=2))
                moment = DAY * day + 1000 * session + click
                lines.append(f"{day}-{session},{item},{moment},b{item // 2},{tags}")
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    preprocess(RECIPE, [folder / "log.csv"], [], folder / "data")
    return folder / "data"


def test_single_window_trains_the_weights_of_an_ordinary_training(
    data: Path, tmp_path: Path
) -> None:
    train(data, MODEL, TRAIN, tmp_path / "plain")
    train_windows(data, MODEL, TRAIN, tmp_path / "windows", seconds=10 * DAY)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "windows"))
    assert set(one) == set(other)
    for name, weight in one.items():
        assert weight.equal(other[name]), name


def test_value_maps_to_its_bucket_before_it_occurs_in_any_column(data: Path) -> None:
    vocabularies = IncrementalTrainer(Data.open(data), MODEL, TRAIN).vocabularies
    fitted = Fitted.read(data)
    brands, tags = (fitted.vocabularies[name] for name in ("brand", "tags"))
    assert vocabularies["tags"].columns == ("tags_1", "tags_2", "tags_3")
    first, second = tags.values[:2].to_pylist()
    vocabularies["tags"] = vocabularies["tags"].extended(np.array([tags.first]))
    lists = {"tags_1": [[tags.first, 0]], "tags_2": [[tags.first + 1, 1]], "tags_3": [[2, 3]],
             "brand": [[brands.first, brands.first + 1]], "item_id": [[3, 4]]}  # fmt: skip
    mapped = map_sessions(pa.table(lists), vocabularies).to_pylist()[0]
    assert mapped["tags_1"] == [tags.first, 0]  # the first tag has a row, and padding stays
    assert mapped["tags_2"] == [bucket_of(second, 2), 1]
    assert mapped["tags_3"] == [2, 3]
    assert mapped["brand"] == [bucket_of(name, 4) for name in brands.values[:2].to_pylist()]
    assert mapped["item_id"] == [2, 2]  # out of vocabulary
    assert first != second


def test_value_that_occurred_in_one_column_has_a_row_in_all() -> None:
    vocabulary = GrowingVocabulary(("a", "b"), np.array([0, 1, 2, 1, 1]), np.arange(3))
    vocabularies = {"x": vocabulary.extended(np.array([4]))}
    mapped = map_sessions(pa.table({"a": [[4, 3]], "b": [[3, 4]]}), vocabularies)
    assert mapped.to_pylist() == [{"a": [3, 1], "b": [1, 3]}]


def test_window_evaluation_does_not_depend_on_later_windows(data: Path, tmp_path: Path) -> None:
    facts = train_windows(data, MODEL, TRAIN, tmp_path / "run", seconds=DAY)
    begin = first_sessions(data, tmp_path / "begin", 2 * DAY)
    shorter = train_windows(begin, MODEL, TRAIN, tmp_path / "short", seconds=DAY)
    (_, one, _), (_, other) = facts["windows"]["windows"], shorter["windows"]["windows"]
    assert one["evaluation"] == other["evaluation"] is not None

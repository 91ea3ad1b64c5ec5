"""What training has read is what an answer reads, and one feature is not taken for another."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.data.fitted import Fitted
from pipeline.in_process import open_run
from pipeline.model.model_files import write_tensors
from pipeline.preprocessing.run import preprocess
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.recipe import Recipe
from pipeline.serve.client.client import SyncClient
from pipeline.serve.client.logs import sessions_of_frame
from pipeline.training.incremental.warm_start import feature_descriptions
from pipeline.training.run import train

HOUR = 3600


def recipe(*features: dict[str, Any], **more: Any) -> Preprocess:
    return Preprocess.from_dict({"session": "s", "item": "i", "features": features, **more}, "test")


def run_of(folder: Path, log: pd.DataFrame, chosen: Preprocess) -> Path:
    log.to_parquet(folder / "log.parquet")
    preprocess(chosen, [folder / "log.parquet"], [], folder / "data")
    settings = Recipe.from_dict(
        {"model": {"d_model": 8, "n_head": 1, "n_layer": 1}, "train": {"epochs": 1}}, "test"
    )
    train(folder / "data", settings.model, settings.train, folder / "run")
    return folder / "run"


def users() -> pd.DataFrame:
    """Each with a session on a phone, and another one later on a tablet."""
    rows = [
        (user, user % 7 + step, (step >= 3) * 5 * HOUR + user * 60 + step, device)
        for user in range(30)
        for step, device in enumerate(["phone"] * 3 + ["tablet"] * 3)
    ]
    return pd.DataFrame(rows, columns=["s", "i", "t", "device"])


@pytest.fixture(scope="module")
def asker(tmp_path_factory: pytest.TempPathFactory) -> SyncClient:
    folder = tmp_path_factory.mktemp("cut")
    pd.DataFrame({"s": range(30), "country": [f"c{n % 2}" for n in range(30)]}).to_csv(
        folder / "users.csv", index=False
    )
    chosen = recipe(
        {"name": "device", "kind": "categorical", "of": "session"},
        timestamp={"column": "t", "unit": "s"},
        session_gap="1h",
    )
    return open_run(run_of(folder, users(), chosen))


def test_session_features_come_from_the_oldest_interaction(asker: SyncClient) -> None:
    shuffled = users().sample(frac=1, random_state=1)
    sessions = dict(sessions_of_frame(asker.served, shuffled))
    assert {tuple(columns["device"]) for columns in sessions.values()} == {("tablet",)}


def test_flat_interactions_keep_multi_valued_lists(asker: SyncClient) -> None:
    log = users()[lambda frame: frame["s"] < 2].sample(frac=1, random_state=2)
    tensors = {
        "item_id": log["i"].to_numpy()[np.newaxis],
        "session_id": log["s"].to_numpy(str).astype(object)[np.newaxis],
        "timestamp": log["t"].to_numpy()[np.newaxis],
        "device": log["device"].to_numpy(object)[np.newaxis],
    }
    flat = asker.infer(tensors)
    newest = {"item_id": [3, 4, 5], "timestamp": [5 * HOUR + n for n in (3, 4, 5)]}
    first = int(tensors["session_id"][0, 0])
    newest["item_id"] = [first % 7 + step for step in (3, 4, 5)]
    alone = asker.recommend([{**newest, "device": ["tablet"]}])
    other = asker.recommend([{**newest, "device": ["phone"]}])
    scores = np.asarray(flat.scores).reshape(2, -1)[0]
    assert scores == pytest.approx(alone.scores[0], abs=1e-5)
    assert alone.scores[0] != pytest.approx(other.scores[0], abs=1e-5)


def test_log_with_the_columns_of_a_table_is_read(tmp_path: Path) -> None:
    log = users()
    table = log.groupby("s", as_index=False)["device"].first()
    table.to_csv(tmp_path / "users.csv", index=False)
    chosen = recipe(
        {"name": "device", "kind": "categorical", "of": "session", "table": True},
        session_table={"file": str(tmp_path / "users.csv")},
    )
    run = run_of(tmp_path, log.drop(columns="device"), chosen)
    with open_run(run) as client:
        assert "device" in dict(sessions_of_frame(client.served, log))[3]
        assert "device" not in dict(sessions_of_frame(client.served, log[["s", "i"]]))[3]
        asked = client.recommend([{"item_id": [4, 5], "device": ["phone"]}], 3)
        path = tmp_path / "asked.csv"
        path.write_text("s,i,device\n1,4,phone\n1,5,phone\n")
        [record] = client.recommend_log([path], 3)
        scores = [entry["score"] for entry in record["recommendations"]]
        assert scores == pytest.approx(asked.scores[0].tolist(), abs=1e-5)


def test_texts_where_integers_were_learned_are_not_taken_for_each_other(tmp_path: Path) -> None:
    log, test = tmp_path / "log.csv", tmp_path / "test.csv"
    log.write_text("s,i,t\n1,1,1\n1,2,2\n1,3,3\n")
    test.write_text("s,i,t\n7,abc,1\n7,xyz,1\n7,new,1\n7,1,2\n7,1,3\n8,1,5\n8,1,5\n8,2,6\n")
    timed = {"timestamp": {"column": "t", "unit": "s"}}
    for chosen, dropped in (
        (recipe(drop_repeats=True, **timed), {"rows with the item of the one before": 2}),
        (recipe(duplicates="drop", **timed), {"duplicated rows, dropped": 1}),
    ):
        facts = preprocess(
            chosen, [log], [test], tmp_path / f"data{len(dropped)}{chosen.duplicates}"
        )
        assert facts["rows"]["test"]["dropped"] == dropped


@pytest.mark.parametrize("name", ["../../outside", "/outside", "other"])
def test_names_in_an_artifact_do_not_become_paths(tmp_path: Path, name: str) -> None:
    log = tmp_path / "log.csv"
    log.write_text("s,i\n1,1\n1,2\n")
    preprocess(recipe(), [log], [], tmp_path / "data")
    path = tmp_path / "data" / "fitted" / "fitted.json"
    state = json.loads(path.read_text())
    state["categorical"][name] = "int64"
    path.write_text(json.dumps(state))
    with pytest.raises(ArtifactError, match="categories of no feature"):
        Fitted.read(tmp_path / "data")


PRICE = {"name": "price", "kind": "categorical", "column": "x", "buckets": [1, 2]}
MEAN = {"name": "mean", "kind": "continuous", "column": "i", "mean_of": "x"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (PRICE, {**PRICE, "buckets": [1, 3]}),
        (MEAN, {**MEAN, "mean_of": "t"}),
        (MEAN, {**MEAN, "smoothing": 3}),
        (MEAN, {**MEAN, "folds": 3}),
        (
            {"name": "x", "kind": "categorical"},
            {"name": "x", "kind": "categorical", "hash_buckets": 2},
        ),
    ],
)
def test_warm_start_distinguishes_multi_valued_features(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any]
) -> None:
    log = tmp_path / "log.csv"
    log.write_text("s,i,x,t\n1,1,1,5\n1,2,3,6\n")
    features = []
    for name, feature in (("one", one), ("other", other)):
        preprocess(recipe(feature), [log], [], tmp_path / name)
        features.append(feature_descriptions(Fitted.read(tmp_path / name)))
    assert features[0] != features[1]


def test_folder_of_logs_may_contain_data_directories(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "log.csv"
    log.parent.mkdir()
    log.write_text("s,i\n1,1\n1,2\n")
    for _ in range(2):
        facts = preprocess(recipe(), [tmp_path / "logs"], [], tmp_path / "logs" / "data")
        assert facts["rows"]["input"]["read"] == 2


def test_empty_split_in_yaml_is_no_split() -> None:
    assert Preprocess.from_dict({"split": None}, "test") == Preprocess()


def test_invalid_address_reports_one_line(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("s,i\n1,1\n1,2\n")
    with pytest.raises(ConfigError, match="expected local, local-cuda, or the address"):
        preprocess(recipe(), [log], [], tmp_path / "data", cluster="locl")


def test_weights_that_the_disk_does_not_take_name_their_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none/model\.safetensors"):
        write_tensors({"a": torch.zeros(3)}, tmp_path / "none" / "model.safetensors")

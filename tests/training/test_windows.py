"""Windows of time: each evaluated by what came before it, then trained on."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from pipeline.cli.main import main
from pipeline.core.artifact import new_artifact
from pipeline.core.errors import ConfigError
from pipeline.preprocessing.run import preprocess
from pipeline.recipe.durations import duration_seconds
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.train import TrainConfig
from pipeline.training.incremental import incremental_trainer
from pipeline.training.incremental.run import mean_evaluation, train_windows
from pipeline.training.incremental.warm_start import SourceCheckpoint, copy_weights
from pipeline.training.incremental.windows import cut_windows, trainable_sessions
from pipeline.training.run import train

MODEL = ModelConfig(d_model=8, n_head=2, n_layer=1, dropout=0.1)
TRAIN = TrainConfig(epochs=1, batch_size=8, seed=5, new_items="features")
DAY = 86_400.0
RECIPE = Preprocess.from_dict(
    {
        "session": "session",
        "item": "item",
        "timestamp": {"column": "time", "unit": "s"},
        "features": [{"name": "kind", "kind": "categorical", "of": "item"}],
    },
    "test",
)


def write_log(path: Path, days: int = 4) -> None:
    """Each day 20 sessions among 10 items; five of them are new each day, of two kinds."""
    random = np.random.default_rng(0)
    lines = ["session,item,kind,time"]
    for day in range(days):
        for session in range(20):
            for click, item in enumerate(random.integers(5 * day, 5 * day + 10, size=5)):
                moment = day * int(DAY) + 1_000 * session + click
                lines.append(f"{day}-{session},i{item},k{item % 2},{moment}")
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("days")
    write_log(folder / "clicks.csv")
    preprocess(RECIPE, [folder / "clicks.csv"], [], folder / "data")
    return folder / "data"


def first_sessions(data: Path, out: Path, last: float) -> Path:
    """A copy of a data directory with the sessions alone that begin before `last` seconds."""
    with new_artifact(out, "data", {}) as directory:
        shutil.copytree(data, directory, dirs_exist_ok=True)
        (directory / "manifest.json").unlink()
        file = directory / "sessions" / "train" / "part-0.parquet"
        table = pq.read_table(file)
        begins = [times[0] / 1e6 for times in table["timestamp"].to_pylist()]
        pq.write_table(table.take([i for i, begin in enumerate(begins) if begin < last]), file)
    return out


def figures(run: Path) -> list[dict[str, Any]]:
    """windows.json without what a clock says."""
    windows = json.loads((run / "windows.json").read_text())["windows"]
    return [{k: v for k, v in w.items() if not k.endswith("_seconds")} for w in windows]


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("windows") / "run"
    train_windows(data, MODEL, TRAIN, out, seconds=DAY)
    return out


@pytest.mark.parametrize(
    ("model_changes", "train_changes"),
    [({}, {}), ({"item_vectors": "co-visitation"}, {"half_life": "1d"})],
)
def test_single_window_trains_the_weights_of_an_ordinary_training(
    data: Path, tmp_path: Path, model_changes: dict[str, Any], train_changes: dict[str, Any]
) -> None:
    model, settings = MODEL.model_copy(update=model_changes), TRAIN.model_copy(update=train_changes)
    train(data, model, settings, tmp_path / "plain")
    facts = train_windows(data, model, settings, tmp_path / "one", seconds=10 * DAY)
    assert facts["windows"]["mean"] is None
    plain, one = (load_file(tmp_path / n / "model.safetensors") for n in ("plain", "one"))
    assert plain.keys() == one.keys()
    for name, weight in plain.items():
        assert weight.equal(one[name]), name


def test_window_figures_do_not_depend_on_later_windows(
    data: Path, run: Path, tmp_path: Path
) -> None:
    shorter = first_sessions(data, tmp_path / "data", 2 * DAY)
    train_windows(shorter, MODEL, TRAIN, tmp_path / "run", seconds=DAY)
    windows, expected = figures(tmp_path / "run"), figures(run)
    assert len(windows) == 2
    assert len(expected) == 4
    assert windows[0] == expected[0]
    assert windows[1]["evaluation"] == expected[1]["evaluation"] is not None


def test_item_is_unknown_until_a_window_with_it_was_trained_on(data: Path, run: Path) -> None:
    windows = figures(run)
    table = pq.read_table(data / "sessions" / "train" / "part-0.parquet")
    seen: set[int] = set()
    for window, day in zip(windows, range(4), strict=True):
        sessions = [
            items
            for items, times in zip(
                table["item_id"].to_pylist(), table["timestamp"].to_pylist(), strict=True
            )
            if times[-1] // 1e6 // DAY == day
        ]
        assert window["sessions"] == len(sessions)
        if day == 0:
            assert window["evaluation"] is None
        else:
            targets = [item for items in sessions for item in items[1:]]
            evaluation = window["evaluation"]
            assert evaluation["targets"] == len(targets)
            assert evaluation["unknown_targets"] == sum(item not in seen for item in targets) > 0
        new = {item for items in sessions for item in items} - seen
        assert window["new_items"] == len(new)
        seen |= new
        assert window["catalogue_items"] == len(seen)


def test_old_rows_stay_and_new_rows_start_at_the_mean_of_their_kind(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = []

    def spy(model: Any, config: Any, source: SourceCheckpoint, **keywords: Any) -> None:
        copy_weights(model, config, source, **keywords)
        rows = source.rows["item_id"]
        before = source.weights["heads.0.body.inputs._tables.of_item_id.weight"]
        moments.append((before.clone(), rows, model.inputs.item_table.weight.detach().clone()))
        kinds.append(keywords.get("item_features"))

    kinds: list[Any] = []
    monkeypatch.setattr(incremental_trainer, "copy_weights", spy)
    train_windows(data, MODEL, TRAIN, tmp_path / "run", seconds=DAY)
    *grown, final = zip(moments, kinds, strict=True)
    assert len(grown) == 3
    for (before, rows, after), features in grown:
        # old rows keep their index: the catalogue grows at its end
        assert (rows[: len(before)] == np.arange(len(before))).all()
        assert (rows[len(before) :] < 0).all()
        assert after[: len(before)].equal(before)
        for row in range(len(before), len(after)):
            same = [r for r in range(3, len(before)) if features[r, 0] == features[row, 0]]
            mean = before[same].double().mean(0).float()
            np.testing.assert_allclose(after[row], mean, rtol=1e-6, atol=1e-8)
    assert (final[0][1] >= 0).all()


def test_negatives_are_drawn_from_items_so_far_by_their_counts(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def spy(model: Any, config: Any, source: SourceCheckpoint, **keywords: Any) -> None:
        copy_weights(model, config, source, **keywords)
        sampler = model.head.next_item_task().sampler
        drawn.append((sampler.num_items, int(sampler.weights.sum())))

    monkeypatch.setattr(incremental_trainer, "copy_weights", spy)
    model = ModelConfig(architecture="gru", d_model=8, n_layer=1, weight_tying=False)
    config = TRAIN.model_copy(update={"loss": "sampled-softmax", "negatives": "popularity"})
    facts = train_windows(data, model, config, tmp_path / "run", seconds=DAY)
    sizes = [window["catalogue_items"] for window in facts["windows"]["windows"]]
    # 20 sessions of 5 interactions a day; the last is the model of the run
    assert drawn[:3] == [(size, 100 * day) for day, size in enumerate(sizes[1:], start=2)]
    assert len(set(sizes)) == 4


def test_windows_can_start_from_an_earlier_run(data: Path, run: Path, tmp_path: Path) -> None:
    train_windows(data, MODEL, TRAIN, tmp_path / "run", seconds=2 * DAY, start=run)
    windows = figures(tmp_path / "run")
    assert [window["new_items"] for window in windows] == [0, 0]
    assert windows[1]["evaluation"]["unknown_targets"] == 0


def test_run_has_the_catalogue_of_its_data_and_a_log_of_all_windows(data: Path, run: Path) -> None:
    from pipeline.data.directory import Data
    from pipeline.model.run import Run

    assert Run.open(run).index_mapping(Data.open(data)) == {}
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == sorted(line["step"] for line in log)
    assert {line["window"] for line in log} == {1, 2, 3, 4}


def test_sessions_of_all_parts_are_cut_like_training_sessions() -> None:
    lists = [[3, 4, 5, 6], [7], [8, 9]]
    table = pa.table({"item_id": lists, "kind": lists, "device": [1, 2, 3]})
    cut = trainable_sessions(table, max_length=3, min_length=2)
    assert cut["item_id"].to_pylist() == cut["kind"].to_pylist() == [[4, 5, 6], [8, 9]]
    assert cut["device"].to_pylist() == [1, 3]


def test_windows_start_at_midnight_and_skip_spans_without_a_trainable_session() -> None:
    hours = np.array([5.0, 23.9, 24.0, 49.0, 80.0])
    is_trainable = np.array([True, True, True, False, True])
    windows = cut_windows((hours * 3.6e9).astype(np.int64), DAY, is_trainable)
    assert [window.sessions.tolist() for window in windows] == [[0, 1], [2], [4]]
    assert [window.begin / 3.6e9 for window in windows] == [0, 24, 72]
    assert [window.end / 3.6e9 for window in windows] == [24, 48, 96]


def test_mean_over_windows_weighs_each_window_equally() -> None:
    def evaluation(value: float, margin: float | None) -> dict[str, Any]:
        results, margins = {"m": {"r": value}}, {"m": {"r": margin}}
        return {"targets": 9, "unknown_targets": 0, "results": results, "margins": margins}

    mean = mean_evaluation([None, evaluation(0.2, 0.03), evaluation(0.4, 0.04)])
    assert mean is not None
    assert mean["results"]["m"]["r"] == pytest.approx(0.3)
    assert mean["margins"]["m"]["r"] == pytest.approx(0.025)
    undefined = mean_evaluation([evaluation(0.2, 0.03), evaluation(0.4, None)])
    assert undefined is not None
    assert undefined["margins"]["m"]["r"] is None


@pytest.mark.parametrize("width", ["0.5", "2w", "0d", "-1d", ""])
def test_invalid_window_width_is_refused(width: str) -> None:
    with pytest.raises(ConfigError, match="expected days"):
        duration_seconds(width)


def test_windows_without_timestamps_are_refused(tmp_path: Path) -> None:
    write_log(tmp_path / "clicks.csv", days=1)
    recipe = RECIPE.model_copy(update={"timestamp": None})
    preprocess(recipe, [tmp_path / "clicks.csv"], [], tmp_path / "data")
    with pytest.raises(ConfigError, match="no `timestamp`"):
        train_windows(tmp_path / "data", MODEL, TRAIN, tmp_path / "run", seconds=DAY)


def test_command_distinguishes_windows_from_an_ordinary_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.yaml").write_text(
        json.dumps({"model": {"d_model": 8, "n_head": 2, "n_layer": 1}, "train": {"epochs": 1}})
    )

    def command(*words: str) -> str:
        words_before = ["pipeline", "train", str(data), "--recipe", str(tmp_path / "recipe.yaml")]
        monkeypatch.setattr(sys, "argv", [*words_before, "--out", str(tmp_path / "run"), *words])
        with pytest.raises(SystemExit):
            main()
        return capsys.readouterr().out

    first = command("--windows", "2d")
    assert "mean of the windows" in first
    assert "1970-01-03T00:00:00Z" in first
    assert "up to date" in command("--windows", "48h", "--if-needed")
    assert "up to date" not in command("--if-needed")
    assert not (tmp_path / "run" / "windows.json").exists()

"""A run on data that are later than it: new values are to it what they would be in a request."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core.columns import OUT_OF_VOCABULARY
from pipeline.core.errors import ArtifactError
from pipeline.data.directory import Data
from pipeline.data.fitted import Fitted
from pipeline.data.sessions import read_sessions
from pipeline.evaluation.recommender import Recommender
from pipeline.evaluation.run import evaluate
from pipeline.model.run import Run
from pipeline.preprocessing.run import preprocess
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.train import TrainConfig
from pipeline.training.report.run import write_report
from pipeline.training.run import train

RECIPE = Preprocess.from_dict(
    {
        "session": "session",
        "item": "item",
        "timestamp": {"column": "time", "unit": "s"},
        "features": [
            {"name": "brand", "kind": "categorical", "of": "item", "hash_buckets": 3},
            {
                "name": "tags",
                "kind": "categorical",
                "separator": "|",
                "values_per_interaction": 2,
            },
            {"name": "country", "kind": "categorical", "of": "session"},
            {"name": "price", "kind": "continuous"},
            {"name": "worth", "kind": "continuous", "mean_of": "price", "column": "brand"},
        ],
    },
    "test",
)
MODEL = ModelConfig.from_dict({"architecture": "gru", "d_model": 8, "n_layer": 1}, "test")
TRAIN = TrainConfig.from_dict({"epochs": 1, "batch_size": 16}, "test")


def write_log(path: Path, seed: int, *, new: bool) -> Path:
    """Sessions of items 0 to 11, or up to 15 if `new`, with brands, tags and countries to match."""
    random = np.random.default_rng(seed)
    most = 16 if new else 12
    lines = ["session,item,time,brand,tags,country,price"]
    for session in range(60):
        country = f"c{random.integers(most // 4)}"
        for click in range(random.integers(2, 6)):
            item = random.integers(most)
            tags = "|".join(f"t{tag}" for tag in random.integers(most, size=random.integers(3)))
            lines.append(
                f"{seed}-{session},{item},{86_400 * seed + 100 * session + click},b{item // 2},"
                f"{tags},{country},{item + random.integers(3)}"
            )
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`week` with the day as its test part, `day` going on from the week, and a run of the week."""
    folder = tmp_path_factory.mktemp("later")
    logs = [write_log(folder / f"{new}.csv", int(new), new=new) for new in (False, True)]
    preprocess(RECIPE, logs[:1], logs[1:], folder / "week")
    base = folder / "week"
    preprocess(RECIPE, logs[1:], [], folder / "day", base=base)
    preprocess(RECIPE, logs[:1], logs[1:], folder / "later", base=folder / "day")
    preprocess(RECIPE, logs[:1], logs[:1], folder / "week-whole")
    quiet = write_log(folder / "quiet.csv", 2, new=False)
    preprocess(RECIPE, [quiet], [], folder / "quiet", base=base)
    train(base, MODEL, TRAIN, folder / "run")
    return folder


def test_new_values_are_out_of_vocabulary_or_in_their_hash_bucket_as_in_a_request(
    folder: Path,
) -> None:
    week, day = Fitted.read(folder / "week"), Fitted.read(folder / "day")
    assert len(day.item.values) > len(week.item.values)
    rows = Run.open(folder / "run").index_mapping(Data.open(folder / "day"))
    assert set(rows) == {"item_id", "brand", "tags_1", "tags_2", "country"}
    for name, indices in rows.items():
        earlier, later = week.of_columns[name], day.of_columns[name]
        assert indices[: earlier.num_rows].tolist() == list(range(earlier.num_rows))
        assert len(indices) == later.num_rows
        assert (indices[earlier.num_rows :] < earlier.first).all()
        assert (indices[earlier.num_rows :] >= OUT_OF_VOCABULARY).all()
    assert len(set(rows["brand"][week.vocabularies["brand"].num_rows :])) > 1
    assert Run.open(folder / "run").index_mapping(Data.open(folder / "week")) == {}


def test_extended_data_get_the_metrics_of_a_test_part_of_the_runs_own_data(folder: Path) -> None:
    """The features that come from the log, the buckets and the standardized ones included."""
    own = evaluate(folder / "run", folder / "week", part="test", baselines=False)
    assert not own.other_data
    assert own.new_items == 0
    for data, part in (("later", "test"), ("day", "train")):
        evaluation = evaluate(folder / "run", folder / data, part=part, baselines=False)
        assert evaluation.other_data
        assert evaluation.new_items == 4
        for name in ("targets", "unknown_targets", "catalogue_items"):
            assert getattr(evaluation, name) == getattr(own, name), name
        assert own.unknown_targets > 20
        for metric, value in own.results["run"].items():
            if part == "test" or "popularity" not in metric:  # which is that in the train part
                assert evaluation.results["run"][metric] == pytest.approx(value), metric


def test_new_sessions_read_target_encodings_as_a_request_does(folder: Path) -> None:
    """Those of the day the whole means; those of the week, read again, those of the other folds."""

    def worth(data: str, part: str) -> dict[str, list[float]]:
        table = read_sessions(folder / data, part, ["session_id", "worth"])
        return dict(zip(*table.to_pydict().values(), strict=True))

    assert worth("day", "train") == worth("week", "test")
    assert worth("later", "train") == worth("week", "train")
    assert worth("week", "train") != worth("week-whole", "test")


def test_baselines_have_the_runs_catalogue_and_never_the_sessions_that_are_ranked(
    folder: Path,
) -> None:
    own = evaluate(folder / "run", folder / "week", part="test")
    evaluation = evaluate(folder / "run", folder / "later", part="test")
    for name, results in own.results.items():
        assert evaluation.results[name] == pytest.approx(results), name
    assert evaluate(folder / "run", folder / "week", part="train").results.keys() > {"run"}
    assert Run.open(folder / "run").index_mapping(Data.open(folder / "quiet")) == {}
    for data in ("day", "quiet"):  # with and without a value that the run does not know
        alone = evaluate(folder / "run", folder / data, part="train")
        assert list(alone.results) == ["run"]
        assert alone.other_data


def test_recommendations_are_those_of_the_same_sessions_in_the_runs_own_data(folder: Path) -> None:
    own = [*Recommender.open(folder / "run").recommend(folder / "week", "test", 5)]
    recommendations = [*Recommender.open(folder / "run").recommend(folder / "later", "test", 5)]
    for one, other in zip(own, recommendations, strict=True):
        assert one.items.tolist() == other.items.tolist()
        assert np.allclose(one.scores, other.scores)


def test_page_shows_what_is_new_as_unknown(folder: Path, tmp_path: Path) -> None:
    facts = write_report(folder / "run", folder / "later", tmp_path / "page.html")
    assert facts["evaluation"]["new_items"] == 4
    examples = json.loads((tmp_path / "page.json").read_text())["examples"]
    items = set(Fitted.read(folder / "week").item.values.to_pylist())
    shown = [item for example in examples for item in [*example["clicked"], example["next"]]]
    assert None in shown
    assert set(shown) <= {*items, None}


def test_data_without_items_of_the_run_are_refused(folder: Path) -> None:
    train(folder / "day", MODEL, TRAIN, folder / "day-run")
    with pytest.raises(ArtifactError, match="another catalogue"):
        Run.open(folder / "day-run").index_mapping(Data.open(folder / "week"))


def test_target_encodings_of_another_log_are_refused(folder: Path, tmp_path: Path) -> None:
    log = (folder / "False.csv").read_text().splitlines()
    other = [*log[:-1], log[-1].rsplit(",", 1)[0] + ",12345"]
    (tmp_path / "log.csv").write_text("\n".join(other) + "\n")
    recipe = RECIPE.model_dump(mode="json")
    recipe["features"] = [f for f in recipe["features"] if f["name"] != "price"]
    recipe = Preprocess.from_dict(recipe, "test")
    for name, path in (("one", folder / "False.csv"), ("two", tmp_path / "log.csv")):
        preprocess(recipe, [path], [], tmp_path / name)
    train(tmp_path / "one", MODEL, TRAIN, tmp_path / "run")
    with pytest.raises(ArtifactError, match="other features"):
        Run.open(tmp_path / "run").index_mapping(Data.open(tmp_path / "two"))


OTHERS = "The run was trained on other sessions than the data have"
NEW = f"{OTHERS}, and does not know 4 of their items."
NO_BASELINES = "Baselines could learn from these same sessions alone, so they are left out."


def run_command(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


@pytest.mark.parametrize(
    ("data", "part", "expected"),
    [("later", "test", f"{NEW}\nThe baselines have learned from the train part of the data, the run"
      " has not."),
     ("day", "train", f"{NEW}\n{NO_BASELINES}"),
     ("quiet", "train", f"{OTHERS}.\n{NO_BASELINES}")],
)  # fmt: skip
def test_command_says_what_is_new(folder: Path, data: str, part: str, expected: str) -> None:
    result = run_command("evaluate", folder / "run", "--data", folder / data, "--part", part)
    assert expected in result.output
    assert "Note" not in result.output


def test_unknown_part_error_lists_the_parts(folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"it has: train\. Use --part train, or set"):
        run_command("evaluate", folder / "run", "--data", folder / "day")


def changed(**settings: Any) -> Preprocess:
    return Preprocess.from_dict(RECIPE.model_dump(mode="json") | settings, "test")


def test_settings_that_change_no_index_and_no_number_may_differ(
    folder: Path, tmp_path: Path
) -> None:
    """What `preprocess --from` takes, an evaluation takes."""
    features = RECIPE.model_dump(mode="json")["features"]
    for feature in features:
        feature["column"] = feature["column"] or feature["name"]
    features[0]["min_count"] = 2
    later = {"column": "time", "unit": "s", "earliest": "1970-01-01"}
    recipe = changed(features=features[::-1], timestamp=later, max_sequence_length=30)
    preprocess(recipe, [folder / "True.csv"], [], tmp_path / "day", base=folder / "week")
    own = evaluate(folder / "run", folder / "day", part="train")
    evaluation = evaluate(folder / "run", tmp_path / "day", part="train")
    assert evaluation.results == own.results


def test_data_with_shorter_sessions_than_the_run_reads_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    recipe = changed(max_sequence_length=3)
    preprocess(recipe, [folder / "True.csv"], [], tmp_path / "day", base=folder / "week")
    with pytest.raises(ArtifactError, match=r"newest 3 interactions .* reads 20"):
        Run.open(folder / "run").index_mapping(Data.open(tmp_path / "day"))


def test_other_session_settings_add_a_warning(folder: Path, tmp_path: Path) -> None:
    recipe = changed(session_gap="1m", drop_repeats=True)
    day = tmp_path / "day"
    facts = preprocess(recipe, [folder / "True.csv"], [], day, base=folder / "week")
    keys = "`session_gap`, `drop_repeats`"
    note = f"The earlier data were made with other {keys}: their sessions are others."
    assert facts["notes"][1:] == [note]  # the first one is on the times
    warning = (
        f"was made with other {keys} than the data of {folder / 'run'}, so its sessions are not"
    )
    arguments = (folder / "run", "--data", day, "--part", "train", "--out")
    for command in (
        ("evaluate", *arguments[:-1]),
        ("report", *arguments, tmp_path / "page.html"),
        ("predict", *arguments, tmp_path / "lists.parquet", "--k", "3"),
    ):
        result = run_command(*command)
        assert result.exit_code == 0
        assert warning in result.stderr

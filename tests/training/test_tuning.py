"""Tuning: what a search tries, what it writes, and how it continues."""

import json
import re
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.data.loader import SessionLoader
from pipeline.evaluation.run import evaluate
from pipeline.preprocessing.run import preprocess
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.search_space import Range, read_space
from pipeline.recipe.split import Split
from pipeline.training import tune as tuning
from pipeline.training.tune import suggest, tune
from tests.conftest import ROOT

RECIPE: dict[str, Any] = {
    "preprocess": {"format": "sequences", "split": "leave-one-out", "max_sequence_length": 5},
    "model": {"architecture": "gru", "d_model": 4, "n_layer": 1},
    "train": {"epochs": 2, "batch_size": 16, "metric": "ndcg@10"},
}
SPACE = {
    "train.learning_rate": Range("log", (1e-3, 1e-1)),
    "model.d_model": Range("choice", (4, 8)),
    "model.dropout": Range("uniform", (0.0, 0.5)),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sessions that count upwards."""
    directory = tmp_path_factory.mktemp("tuning")
    lines = [f"{n} " + " ".join(str((n + i) % 20) for i in range(6)) for n in range(60)]
    (directory / "log.txt").write_text("\n".join(lines))
    recipe = Preprocess.from_dict(RECIPE["preprocess"], "recipe")
    preprocess(recipe, [directory / "log.txt"], [], directory / "data")
    return directory / "data"


def of_trials(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Trials without their seconds."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in facts["trials"]]


@pytest.fixture(scope="module")
def searched(data: Path) -> tuple[Path, dict[str, Any]]:
    """Three trials in one go."""
    out = data.parent / "tuning"
    return out, tune(data, RECIPE, SPACE, out, num_trials=3, seed=5)


def test_best_trial_is_a_recipe_and_a_run(searched: tuple, data: Path) -> None:
    out, facts = searched
    values = [row["value"] for row in facts["trials"] if row["state"] == "complete"]
    best = facts["best"]
    assert best["value"] == max(values)
    recipe = Recipe.load(out / "best.yaml")
    assert recipe.train.learning_rate == best["settings"]["train.learning_rate"]
    assert recipe.model.d_model == best["settings"]["model.d_model"]
    assert recipe.preprocess == Recipe.from_dict(RECIPE, "recipe").preprocess
    run = out / "runs" / str(best["trial"])
    results = evaluate(run, data, part="valid", baselines=False).results[run.name]
    assert results["ndcg@10"] == pytest.approx(best["value"])
    assert json.loads((out / "trials.json").read_text()) == facts


def test_seed_determines_the_trials(searched: tuple, data: Path, tmp_path: Path) -> None:
    _, facts = searched
    again = tune(data, RECIPE, SPACE, tmp_path / "again", num_trials=1, seed=5)
    assert of_trials(again)[0] == of_trials(facts)[0]
    other = tune(data, RECIPE, SPACE, tmp_path / "other", num_trials=1, seed=6)
    assert other["trials"][0]["settings"] != facts["trials"][0]["settings"]


def test_killed_search_ends_like_an_uninterrupted_one(
    searched: tuple, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, begun = tuning.train, []

    def dies(*arguments: Any, **keywords: Any) -> dict[str, Any]:
        begun.append(1)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **keywords)

    monkeypatch.setattr(tuning, "train", dies)
    with pytest.raises(KeyboardInterrupt):
        tune(data, RECIPE, SPACE, tmp_path, num_trials=3, seed=5)
    facts = tune(data, RECIPE, SPACE, tmp_path, num_trials=3, seed=5)
    assert len(begun) == 4  # the first trial is not run again
    assert of_trials(facts) == of_trials(searched[1])


def test_killed_trial_is_run_again(
    searched: tuple, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = tuning.optuna.trial.Trial.should_prune, []

    def dies(trial: optuna.Trial) -> bool:
        asked.append(trial.number)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(trial)

    monkeypatch.setattr(tuning.optuna.trial.Trial, "should_prune", dies)
    with pytest.raises(KeyboardInterrupt):
        tune(data, RECIPE, SPACE, tmp_path, num_trials=1, seed=5)
    assert (tmp_path / "runs" / ".0.checkpoints").is_dir()
    facts = tune(data, RECIPE, SPACE, tmp_path, num_trials=1, seed=5)
    assert of_trials(facts) == of_trials(searched[1])[:1]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["0"]


def test_completed_trials_are_not_run_again(
    searched: tuple, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "train", None)
    assert tune(data, RECIPE, SPACE, searched[0], num_trials=3, seed=5) == searched[1]


def test_search_writes_a_study_of_optuna(searched: tuple) -> None:
    study = optuna.load_study(study_name="tuning", storage=f"sqlite:///{searched[0] / 'study.db'}")
    assert len(study.trials) == 3
    names = {path.name for path in searched[0].iterdir()}
    assert names - {".lock"} == {"study.db", "trials.json", "best.yaml", "runs"}


def test_two_searches_do_not_share_a_directory(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tune_again(*_arguments: Any, **_keywords: Any) -> dict[str, Any]:
        return tune(data, RECIPE, SPACE, tmp_path, num_trials=1)

    monkeypatch.setattr(tuning, "train", tune_again)
    with pytest.raises(ArtifactError, match="is being used by another search"):
        tune(data, RECIPE, SPACE, tmp_path, num_trials=1)


def test_command_prints_a_table_or_json(searched: tuple, data: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    ranges = {key: {each.kind: list(each.ends)} for key, each in SPACE.items()}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(ranges))
    words = [str(data), "--recipe", str(tmp_path / "recipe.yaml"), "--trials", "3", "--seed", "5"]
    words += ["--space", str(tmp_path / "space.yaml"), "--out", str(searched[0])]
    output = CliRunner().invoke(app, ["tune", *words, "--json"], catch_exceptions=False)
    assert json.loads(output.stdout) == searched[1]
    table = CliRunner().invoke(app, ["tune", *words], catch_exceptions=False).stdout
    best = searched[1]["best"]
    rows = [line.split() for line in table.splitlines()]
    assert rows[1][:3] == [str(best["trial"]), "complete", f"{best['value']:.4f}"]
    assert f"Best: trial {best['trial']}" in table
    wrong = CliRunner().invoke(app, ["tune", *words, "--set", "train.epoch=3"])
    assert isinstance(wrong.exception, ConfigError)


def test_directory_of_another_search_is_refused(searched: tuple, data: Path) -> None:
    with pytest.raises(ConfigError, match="holds a search over other data"):
        tune(data, RECIPE, SPACE, searched[0], num_trials=4, seed=6)
    with pytest.raises(ArtifactError, match="did not write"):
        tune(data, RECIPE, SPACE, data, num_trials=1)


def test_search_does_not_read_the_test_part(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    init = SessionLoader.__init__

    def spy(self: SessionLoader, data: Path, part: str, **more: Any) -> None:
        read.append(part)
        init(self, data, part, **more)

    monkeypatch.setattr(SessionLoader, "__init__", spy)
    recipe = {**RECIPE, "train": {**RECIPE["train"], "epochs": 1}}
    tune(data, recipe, SPACE, tmp_path / "out", num_trials=1)
    assert set(read) == {"train", "valid"}


@pytest.mark.parametrize("epoch", [1, 2])
def test_pruned_trial_leaves_no_run_and_no_checkpoint(
    epoch: int,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def at_epoch(trial: optuna.Trial) -> bool:
        asked.append(trial.number)
        return trial.number == 1 and asked.count(1) == epoch

    monkeypatch.setattr(tuning.optuna.trial.Trial, "should_prune", at_epoch)
    facts = tune(data, RECIPE, SPACE, tmp_path, num_trials=2)
    assert [row["state"] for row in facts["trials"]] == ["complete", "pruned"]
    assert facts["trials"][1]["epochs"] == epoch
    assert facts["best"]["trial"] == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["0"]
    assert "Interrupted" not in capfd.readouterr().err


def test_pruner_receives_the_metric_of_each_epoch(data: Path, tmp_path: Path) -> None:
    facts = tune(data, RECIPE, SPACE, tmp_path, num_trials=1)
    log = (tmp_path / "runs" / "0" / "metrics.jsonl").read_text().splitlines()
    values = [line["eval_ndcg@10"] for line in map(json.loads, log) if "eval_ndcg@10" in line]
    assert facts["trials"][0]["epochs"] == len(values) == 2
    assert facts["best"]["value"] == pytest.approx(max(values))


def test_lowest_loss_is_the_best(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("\n".join(f"{n} {n % 7} {n % 5} {n % 3}" for n in range(60)))
    chosen = Preprocess.from_dict({"format": "sequences"}, "recipe")
    files = [tmp_path / "log.txt"]
    preprocess(chosen.model_copy(update={"split": Split(valid=0.2)}), files, [], tmp_path / "data")
    recipe = {**RECIPE, "preprocess": {}, "train": {**RECIPE["train"], "metric": "loss"}}
    recipe["preprocess"] = {"format": "sequences", "split": {"valid": 0.2}}
    facts = tune(tmp_path / "data", recipe, SPACE, tmp_path / "out", num_trials=2)
    values = [row["value"] for row in facts["trials"] if row["state"] == "complete"]
    assert facts["best"]["value"] == min(values)
    assert len(set(values)) == 2


def test_loss_is_refused_for_leave_one_out(data: Path, tmp_path: Path) -> None:
    recipe = {**RECIPE, "train": {**RECIPE["train"], "metric": "loss"}}
    facts = tune(data, recipe, SPACE, tmp_path, num_trials=1)
    assert "keeps the last alone" in facts["trials"][0]["reason"]


def test_contradicting_settings_are_a_trial_with_a_reason(data: Path, tmp_path: Path) -> None:
    recipe = {**RECIPE, "model": {"architecture": "sasrec", "d_model": 4, "n_layer": 1}}
    space = {"model.n_head": Range("choice", (3,))}
    facts = tune(data, recipe, space, tmp_path, num_trials=1)
    assert facts["best"] is None
    assert facts["trials"][0]["state"] == "impossible"
    assert "does not divide" in facts["trials"][0]["reason"]


def test_data_without_validation_sessions_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("1 5 6 7\n2 5 6\n")
    chosen = Preprocess.from_dict({"format": "sequences"}, "recipe")
    preprocess(chosen, [tmp_path / "log.txt"], [], tmp_path / "data")
    with pytest.raises(ConfigError, match="no validation sessions"):
        tune(tmp_path / "data", RECIPE, SPACE, tmp_path / "out", num_trials=1)


def test_suggestions_follow_their_ranges() -> None:
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    space = {
        "a.u": Range("uniform", (0.25, 0.5)),
        "a.l": Range("log", (1e-4, 1e-2)),
        "a.i": Range("int", (1, 3)),
        "a.c": Range("choice", ("x", [1, 2], None)),
    }
    values = [suggest(study.ask(), space) for _ in range(40)]
    assert all(0.25 <= one["a.u"] <= 0.5 for one in values)
    assert sum(one["a.l"] < 1e-3 for one in values) > 8  # a tenth of the range, half of its orders
    assert {one["a.i"] for one in values} == {1, 2, 3}
    assert {str(one["a.c"]) for one in values} == {"x", "[1, 2]", "None"}


def test_space_of_the_documentation_is_valid(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "tune.md").read_text(encoding="utf-8")
    text = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)[0]
    (tmp_path / "space.yaml").write_text(text)
    assert read_space(tmp_path / "space.yaml") == {
        "train.learning_rate": Range("log", (1e-4, 1e-2)),
        "model.dropout": Range("uniform", (0.1, 0.6)),
        "model.d_model": Range("choice", (32, 64)),
    }


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ({"train.learning_rat": {"log": [1, 2]}}, "did you mean `learning_rate`?"),
        ({"trian.epochs": {"int": [1, 2]}}, "did you mean `train`?"),
        ({"preprocess.item": {"choice": ["a"]}}, "known here: model, train"),
        ({"train.seed": {"int": [1, 2]}}, "cannot be searched"),
        ({"model.dropout": 0.5}, "expected one range"),
        ({"model.dropout": {"unifrom": [0, 0.5]}}, "did you mean `uniform`?"),
        ({"model.dropout": {"uniform": [0.5, 0.1]}}, "the lower one first"),
        ({"model.dropout": {"uniform": [0.5]}}, "two numbers"),
        ({"model.dropout": {"uniform": [0.5, 1.5]}}, "less than 1"),
        ({"model.d_model": {"uniform": [1, 4]}}, "integer"),
        ({"model.n_layer": {"int": [1, 2.5]}}, "whole numbers"),
        ({"train.learning_rate": {"log": [0, 1]}}, "above 0"),
        ({"model.masking": {"choice": ["clm", "xlm"]}}, "'clm', 'mlm'"),
        ({"model.dropout": {"choice": []}}, "expected a list"),
        ({}, "is empty"),
    ],
)
def test_space_of_impossible_settings_is_refused(
    tmp_path: Path, space: dict[str, Any], expected: str
) -> None:
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(space))
    with pytest.raises(ConfigError) as caught:
        read_space(tmp_path / "space.yaml")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)

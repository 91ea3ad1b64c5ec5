"""Benchmarks beside Transformers4Rec: settings, data, environment, and the table of results."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from benchmarks import environment, weights
from benchmarks.__main__ import app
from benchmarks.accuracy import _gains
from benchmarks.data import padded_batch, write_sessions
from benchmarks.environment import original_program
from benchmarks.processes import choose_core
from benchmarks.settings import FORMS, SETTINGS, Form, choose, choose_forms
from benchmarks.training import training_text
from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ConfigError, PipelineError
from pipeline.data.batch import SessionBatch
from pipeline.data.schema import Schema
from pipeline.evaluation.metrics import ranking_metrics
from pipeline.model.build import build_model
from tests.conftest import ROOT

COMMANDS = ("train", "accuracy", "evaluate")
MACHINE = {"processor": "P", "cores": 2, "load": 0.1, "system": "Linux", "python": "3.11"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert f"Example: python -m benchmarks {command}" in shown.output
    assert "--environment" in shown.output


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from benchmarks.__main__ import app\n"
        "assert not CliRunner().invoke(app, ['train', '--help']).exit_code\n"
        "assert not {'numpy', 'torch', 'transformers', 'merlin', 'pyarrow'} & {*sys.modules}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "gpt3-clm"], "no model 'gpt3-clm', expected one of bert-mlm"),
        (["--items", "5"], "No setting has 5 items, expected one of 10000, 200000"),
        (["--items", "many"], "--items holds 'many'"),
        (["--models", "bert-mlm", "--items", "200000"], "No setting has these models and items"),
        (["--forms", "fast"], "no form 'fast', expected one of exact"),
        (["--core", "4096"], "--core is 4096"),
    ],
)
def test_unknown_choices_are_refused_with_the_valid_ones(
    arguments: list[str], message: str
) -> None:
    shown = CliRunner().invoke(app, ["train", *arguments])
    assert isinstance(shown.exception, ConfigError)
    assert message in str(shown.exception)


def test_default_core_is_the_last_usable_one() -> None:
    assert choose_core(None) == max(os.sched_getaffinity(0))


def test_settings_and_forms_are_valid_configs_of_both_sides() -> None:
    for setting in SETTINGS:
        forms = choose_forms(setting, ())
        assert forms[0].name == "exact"
        for form in forms:
            assert setting.model_config(form).d_model == setting.original()["d_model"]
            assert setting.train_config(form).batch_size == setting.original()["batch_size"]
    assert {form.name for form in FORMS} == {name for s in SETTINGS for name in s.forms}


def test_forms_with_unknown_settings_are_unsupported() -> None:
    assert not Form(name="future", train={"no_such_setting": 1}).is_supported
    assert Form(name="sampled", train={"loss": "sampled-softmax"}).is_supported


def test_choose_filters_settings_by_model_and_catalogue() -> None:
    assert [s.name for s in choose(("gpt2-clm",), (200_000,))] == ["gpt2-clm"]
    assert len(choose((), ())) == len(SETTINGS)


def test_synthetic_sessions_have_the_documented_lengths_and_popularity(tmp_path: Path) -> None:
    write_sessions(tmp_path, items=500, longest=20, parts={"train": 20_000, "valid": 10})
    table = pq.read_table(tmp_path / "sessions" / "train")
    lengths = np.diff(table["item_id"].combine_chunks().offsets.to_numpy())
    assert lengths.min() == 2
    assert lengths.max() == 20
    assert 4.8 < lengths.mean() < 5.2
    counts = np.bincount(table["item_id"].combine_chunks().flatten().to_numpy())
    assert counts[:FIRST_ITEM].sum() == 0
    assert len(counts) == 500 + FIRST_ITEM
    # by the law, index 0 is drawn 10 ** 0.8 times as often as index 9
    assert 5 < counts[FIRST_ITEM] / counts[FIRST_ITEM + 9] < 8
    column = Schema.from_json(tmp_path / "schema.pbtxt").item_id
    assert (column.num_rows, column.is_list) == (500 + FIRST_ITEM, True)
    assert pq.read_metadata(tmp_path / "sessions/valid/part-0.parquet").num_rows == 10


def test_batch_of_full_sessions_has_no_padding() -> None:
    random = np.random.default_rng(0)
    assert (padded_batch(random, 8, 100, 20, full=True) > 0).all()
    ragged = padded_batch(random, 8, 100, 20, full=False)
    assert ((ragged > 0).sum(1) >= 2).all()
    assert (ragged[:, 1:][ragged[:, :-1] == 0] == 0).all()


def original_names(name: str) -> str:
    """Return the original's name of a parameter of ours."""
    if name.endswith("item_id.weight"):
        return "heads.0.body.0.to_merge.categorical_module.embedding_tables.item_id.weight"
    if name.endswith("hidden_item"):
        return "heads.0.body.0._masking.masked_item_embedding"
    return "heads.0.body.1.transformer." + name.rpartition(".transformer.")[2]


def test_copied_weights_give_equal_gradients_and_a_change_is_reported(tmp_path: Path) -> None:
    write_sessions(tmp_path, items=30, longest=20, parts={"train": 10})
    schema = Schema.from_json(tmp_path / "schema.pbtxt")
    setting = choose(("gpt2-clm",), ())[0].with_width(8)
    config = setting.model_config(dropout=0.0)
    theirs, ours = (build_model(schema, config, 20).train() for _ in range(2))
    items = torch.from_numpy(padded_batch(np.random.default_rng(0), 4, 30, 20, full=False))
    batch = SessionBatch.from_features({"item_id": items}, "item_id")
    loss = theirs.loss(batch)
    loss.backward()
    original = {"loss": np.float64(loss.item())}
    for name, parameter in theirs.named_parameters():
        other = original_names(name)
        value = parameter.detach().numpy()
        if other.endswith("wpe.weight"):  # more positions than ours
            value = np.concatenate([value, value[:2]])
        original[f"weight/{other}"] = value
        if parameter.grad is not None:
            original[f"gradient/{other}"] = parameter.grad.numpy()
    names = weights.copy_from(original, ours)
    our_loss = ours.loss(batch)
    our_loss.backward()
    comparison = weights.compare(our_loss.item(), ours, original, names)
    assert comparison["loss_difference"] < 1e-6
    assert comparison["gradient_difference"] < 1e-5
    assert comparison["parameters"] == sum(p.requires_grad for p in ours.parameters())
    changed = next(name for name in names if name.endswith("ln_f.weight"))
    original[f"gradient/{names[changed]}"] = 2 * original[f"gradient/{names[changed]}"]
    comparison = weights.compare(our_loss.item(), ours, original, names)
    assert comparison["parameter"] == changed
    assert comparison["gradient_difference"] == pytest.approx(0.5)
    del original[f"weight/{names[changed]}"]
    with pytest.raises(KeyError, match="ln_f"):
        weights.copy_from(original, ours)


def test_mean_gains_equal_the_metrics_of_an_evaluation() -> None:
    ranks = np.array([1, 3, 10, 11, 500])
    metrics = ranking_metrics(ranks, (10,))
    for name in ("recall@10", "mrr@10", "ndcg@10"):
        assert _gains(name, ranks).mean() == pytest.approx(metrics[name])
    assert _gains("ndcg@10", ranks)[1] == 1 / math.log2(4)


def fake_uv(folder: Path, install: str) -> None:
    """A `uv` whose environments are empty folders."""
    folder.mkdir()
    file = folder / "uv"
    file.write_text(
        '#!/bin/sh\necho "uv $1 in $PWD"\nfor last; do :; done\n'
        f'if [ "$1" = venv ]; then mkdir -p "$last/bin"; else {install}; fi\n',
        encoding="utf-8",
    )
    file.chmod(0o755)


def test_environment_is_created_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fake_uv(tmp_path / "tools", "true")
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}{os.pathsep}{os.environ['PATH']}")
    path = tmp_path / "cache" / "original"
    program = original_program(path)
    assert program.command[0] == str(path / "bin" / "python")
    assert Path(program.command[1]).is_file()
    shown = capfd.readouterr()
    assert shown.out == ""
    # not in the project's folder, whose pyproject.toml overrides a version
    assert f"uv venv in {path.parent}/." in shown.err
    assert f"uv pip in {path.parent}/." in shown.err
    original_program(path)
    assert capfd.readouterr().err == ""
    assert [p.name for p in path.parent.iterdir()] == ["original"]


def test_failed_installation_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_uv(tmp_path / "tools", "exit 7")
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}{os.pathsep}{os.environ['PATH']}")
    path = tmp_path / "cache" / "original"
    with pytest.raises(PipelineError, match="status 7"):
        original_program(path)
    assert list(path.parent.iterdir()) == []


def test_missing_uv_is_reported_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment.shutil, "which", lambda _name: None)
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(PipelineError, match="pip install uv"):
        original_program(tmp_path / "original")


def test_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(PipelineError, match="it is left alone"):
        original_program(tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_requirements_are_pinned_and_name_no_index() -> None:
    text = (ROOT / "benchmarks" / "transformers4rec" / "requirements.txt").read_text()
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    assert all(re.match(r"[a-z0-9-]+==\S+", line) for line in lines if line)
    pins = dict(line.split(";")[0].strip().split("==") for line in lines if line)
    assert pins["transformers4rec"] == "23.12.0"
    assert pins["torch"] == torch.__version__.partition("+")[0]
    assert "://" not in text


def test_training_table_shows_rates_memory_and_ratios() -> None:
    cost = {"sessions_per_second": 1000.0, "sessions_per_cpu_second": 1100.0, "cpu_seconds": 2.0}
    result = {
        "machine": MACHINE,
        "versions": {"pipeline": {"torch": "2"}, "Transformers4Rec": {"torch": "2"}},
        "batch_size": 128,
        "longest": 20,
        "settings": [
            {
                "model": "gpt2-clm",
                "items": 10_000,
                "d_model": 64,
                "left_out": ["bf16"],
                "comparison": {
                    "exact": {
                        "loss": 9.2,
                        "original_loss": 9.2,
                        "loss_difference": 1e-7,
                        "gradient_difference": 2e-6,
                        "parameters": 28,
                    }
                },
                "speed": {
                    "kept": {
                        "ours": {"exact": cost | {"peak_bytes": 204e6}},
                        "original": {"shipped": cost | {"peak_bytes": 397e6}},
                        "ratios": {
                            "exact": {"shipped": {"speed": 2.72, "cpu_speed": 2.76, "memory": 0.51}}
                        },
                    }
                },
            }
        ],
    }
    text = training_text(result)
    for part in ("kept heap", "2.72, 2.76 times, 0.51", "1,000", "204", "2.0e-06", "bf16"):
        assert part in text
    assert max(map(len, text.splitlines())) < 130


@pytest.mark.slow
def test_original_trains_in_an_environment_of_its_own() -> None:
    # needs the network for packages at the first time, and minutes
    shown = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", "train", "--json"),
            *("--models", "gpt2-clm", "--items", "10000", "--allocator", "default", "--turns", "2"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=3600,
    )
    assert shown.returncode == 0, shown.stderr[-2000:]
    (setting,) = json.loads(shown.stdout)["settings"]
    assert setting["comparison"]["exact"]["loss_difference"] < 1e-5
    assert setting["comparison"]["exact"]["gradient_difference"] < 1e-3
    assert setting["speed"]["default"]["ratios"]["exact"]["shipped"]["cpu_speed"] > 1

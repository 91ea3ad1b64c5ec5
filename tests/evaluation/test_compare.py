"""Several runs on the same targets: paired differences, tests, tables and pages."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from typer.testing import CliRunner

import pipeline
from pipeline import Data, compare
from pipeline import model as tr
from pipeline.cli.main import app
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.evaluation.comparison.figures import write_figures
from pipeline.evaluation.comparison.files import check_file, write
from pipeline.evaluation.comparison.page import page
from pipeline.evaluation.comparison.paired_tests import holm
from pipeline.evaluation.comparison.result import Comparison, PairedTest, p_text, verdicts
from pipeline.evaluation.comparison.tables import latex, markdown
from pipeline.evaluation.metrics import p_value
from pipeline.evaluation.run import evaluate
from pipeline.preprocessing.run import preprocess
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.recipe import Recipe
from pipeline.training.run import train
from pipeline.training.seeds import train_seeds


def recipe(architecture: str) -> Recipe:
    return Recipe.from_dict(
        {
            "model": {"architecture": architecture, "d_model": 16, "n_head": 1, "n_layer": 1},
            "train": {"epochs": 1, "batch_size": 32},
        },
        "test",
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, three seeds of one model and two of another."""
    folder = tmp_path_factory.mktemp("compare")
    chance = np.random.default_rng(0)
    start = chance.integers(0, 40, 300)
    frame = pd.DataFrame(
        [
            (session, (first + step) % 40 if chance.random() < 0.7 else chance.integers(40))
            for session, first in enumerate(start)
            for step in range(chance.integers(2, 7))
        ],
        columns=["session_id", "item_id"],
    )
    frame.to_csv(folder / "log.csv", index=False)
    settings = Preprocess.from_dict({"split": {"test": 0.3}, "max_sequence_length": 5}, "test")
    preprocess(settings, [folder / "log.csv"], [], folder / "data")
    train_seeds(folder / "data", recipe("gru"), folder / "gru", 3)
    train_seeds(folder / "data", recipe("sasrec"), folder / "sasrec", 2)
    return folder


@pytest.fixture(scope="module")
def comparison(shop: Path) -> Comparison:
    return compare([shop / "gru", shop / "sasrec" / "seed-0"], shop / "data", cutoffs=(3, 10))


def test_rows_are_what_evaluate_measures(shop: Path, comparison: Comparison) -> None:
    assert list(comparison.rows)[:2] == ["gru", "sasrec/seed-0"]
    assert comparison.rows["gru"].runs == ["seed-0", "seed-1", "seed-2"]
    single = evaluate(shop / "sasrec" / "seed-0", shop / "data", cutoffs=(3, 10))
    row = comparison.rows["sasrec/seed-0"]
    assert row.results == pytest.approx(dict(single.results["seed-0"]))
    assert row.margins == pytest.approx(dict(single.margins["seed-0"]))
    assert row.deviations == {}
    for baseline in ("popularity", "session-knn"):
        assert comparison.rows[baseline].results == pytest.approx(dict(single.results[baseline]))
    seeds = [evaluate(shop / "gru" / f"seed-{n}", shop / "data", cutoffs=(3, 10)) for n in range(3)]
    recalls = [each.results[f"seed-{n}"]["recall@3"] for n, each in enumerate(seeds)]
    assert comparison.rows["gru"].results["recall@3"] == pytest.approx(np.mean(recalls))
    assert comparison.rows["gru"].deviations["recall@3"] == pytest.approx(np.std(recalls, ddof=1))
    assert len(set(recalls)) > 1, "seeds make different models"


def test_differences_are_from_the_best_row(comparison: Comparison) -> None:
    for metric, tests in comparison.tests.items():
        values = {name: row.results[metric] or 0 for name, row in comparison.rows.items()}
        best = max(values, key=lambda name: values[name])
        assert set(tests) == set(values) - {best}
        assert comparison.is_best(metric, best)
        for name, test in tests.items():
            assert test.best == best
            assert test.difference == pytest.approx(values[name] - values[best])
            assert comparison.is_best(metric, name) == (
                test.difference == 0 or (test.p is not None and test.p >= 0.05)
            )


def test_verdicts_say_in_what_a_run_is_worse_than_the_best_baseline(
    comparison: Comparison,
) -> None:
    for metric, tests in comparison.against_baseline.items():
        values = {name: row.results[metric] or 0 for name, row in comparison.rows.items()}
        best = max(
            (n for n, row in comparison.rows.items() if not row.runs), key=values.__getitem__
        )
        assert set(tests) == {"gru", "sasrec/seed-0"}
        for name, test in tests.items():
            assert test.best == best
            assert test.difference == pytest.approx(values[name] - values[best])
    tests = {
        "recall@10": {"gru": PairedTest("knn", 0.1, 0.01, 0.001)},
        "ndcg@10": {"gru": PairedTest("knn", -0.1, 0.01, 0.001)},
        "mrr@10": {"gru": PairedTest("knn", -0.1, 0.2, 0.4)},
    }
    row = comparison.rows["gru"]
    judged = Comparison(**{**comparison.__dict__, "rows": {"gru": row}, "against_baseline": tests})
    line = (
        "gru is better than the best baseline in recall@10; worse than the best baseline in "
        "ndcg@10; no different from the best baseline in mrr@10."
    )
    assert verdicts(judged) == [line]
    assert line in str(judged)
    text = page(comparison)
    for sentence in verdicts(comparison):
        kind = "callout bad" if "worse than" in sentence else "callout"
        assert f'<p class="{kind}"><strong>{sentence}</strong></p>' in text
    assert ">items of the list</text>" in text
    assert ">share of the targets, with 95 % interval</text>" in text
    assert Comparison.from_dict(comparison.to_dict()) == comparison


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, -1.0]), min_size=10, max_size=40))
def test_one_target_a_session_is_the_paired_t_test(differences: list[float]) -> None:
    values = np.array(differences)
    p = p_value(values, np.arange(len(values)))
    if len(set(differences)) == 1:
        assert p is None
    else:
        assert p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


@given(st.lists(st.none() | st.floats(0, 1), max_size=6))
def test_holm_rejects_as_its_steps_do(p_values: list[float | None]) -> None:
    corrected = holm({str(number): p for number, p in enumerate(p_values)})
    tested = sorted((p, str(number)) for number, p in enumerate(p_values) if p is not None)
    rejected = set()
    for position, (p, name) in enumerate(tested):
        if p > 0.05 / (len(tested) - position):
            break
        rejected.add(name)
    assert {name for name, p in corrected.items() if p is not None and p <= 0.05} == rejected
    assert [corrected[str(n)] is None for n in range(len(p_values))] == [
        p is None for p in p_values
    ]


def test_same_run_twice_is_one_row_and_equal_rows_share_the_best(shop: Path) -> None:
    run = shop / "gru" / "seed-0"
    twice = compare([run, run], shop / "data", baselines=False)
    assert list(twice.rows) == ["gru/seed-0"]
    assert twice.tests["recall@5"] == {}
    assert "±" in str(twice)


def test_runs_that_differ_in_more_than_the_seed_are_rows(shop: Path, tmp_path: Path) -> None:
    first, second = shop / "gru" / "seed-0", recipe("gru").train.model_copy(update={"seed": 1})
    shutil.copytree(first, tmp_path / "again")
    train(shop / "data", recipe("gru").model, second, tmp_path / "warm", start=first)
    runs = [shop / "gru", tmp_path / "again", tmp_path / "warm"]
    rows = compare(runs, shop / "data", baselines=False).rows
    assert {name: len(row.runs) for name, row in rows.items()} == {"gru": 3, "again": 1, "warm": 1}
    train(shop / "data", recipe("gru").model, recipe("gru").train, tmp_path / "warm-0", start=first)
    rows = compare([tmp_path / "warm", tmp_path / "warm-0"], shop / "data", baselines=False).rows
    assert {name: len(row.runs) for name, row in rows.items()} == {"warm": 2}


def test_few_sessions_are_not_tested() -> None:
    assert p_text(PairedTest("a", -0.25, None, None)) == "not tested"
    assert p_text(PairedTest("a", 0.0, None, None)) == "no difference"
    assert p_text(PairedTest("a", -0.25, 0.1, 0.013)) == "p = .013"


def test_forms_hold_the_numbers(comparison: Comparison, tmp_path: Path) -> None:
    value = f"{comparison.rows['gru'].results['ndcg@10']:.4f}"
    for ending in (".html", ".md", ".tex", ".csv", ".json", ".txt"):
        write(comparison, tmp_path / f"table{ending}")
        text = (tmp_path / f"table{ending}").read_text()
        assert value in text or ending in (".csv", ".json")
        with pytest.raises(ConfigError, match="exists"):
            check_file(tmp_path / f"table{ending}")
        check_file(tmp_path / f"table{ending}", overwrite=True)
    frame = pd.read_csv(tmp_path / "table.csv")
    line = frame[(frame.model == "gru") & (frame.metric == "ndcg@10")].iloc[0]
    assert line.value == pytest.approx(comparison.rows["gru"].results["ndcg@10"])
    assert line.runs == 3
    assert json.loads((tmp_path / "table.json").read_text()) == comparison.to_dict()
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="whose manifest lists all of its files"):
        check_file(tmp_path / "other.md")
    with pytest.raises(ConfigError, match=r"ends in \.txt"):
        check_file(tmp_path / "table.docx")


def test_metrics_on_request_are_columns(shop: Path, comparison: Comparison) -> None:
    runs = [shop / "gru", shop / "sasrec" / "seed-0"]
    more = compare(runs, shop / "data", cutoffs=(3, 10), metrics=("novelty", "miscalibration"))
    for name, row in comparison.rows.items():
        own = more.rows[name].results
        assert {metric: own[metric] for metric in row.results} == row.results
    single = evaluate(
        runs[1], shop / "data", cutoffs=(3, 10), metrics=("novelty",), baselines=False
    )
    expected = single.results["seed-0"]["novelty@10"]
    assert more.rows["sasrec/seed-0"].results["novelty@10"] == pytest.approx(expected)
    values = {name: row.results["miscalibration@10"] or 0 for name, row in more.rows.items()}
    best = next(iter(more.tests["miscalibration@10"].values())).best
    assert best == min(values, key=lambda name: values[name]), "less is better"
    assert "novelty@10" in str(more)
    assert "novelty@10" in markdown(more)
    assert "novelty@10" not in str(comparison)


def test_names_are_escaped(comparison: Comparison) -> None:
    names = {"gru": "a_b & <i>|*", **{name: name for name in comparison.rows if name != "gru"}}
    rows = {names[name]: row for name, row in comparison.rows.items()}
    tests = {
        metric: {names[name]: test for name, test in each.items()}
        for metric, each in comparison.tests.items()
    }
    fields: dict[str, Any] = {
        **comparison.__dict__, "rows": rows, "tests": tests, "against_baseline": {},
    }  # fmt: skip
    renamed = Comparison(**fields)
    assert r"a\_b \& <i>|*" in latex(renamed)
    assert r"a_b & <i>\|\*" in markdown(renamed)
    assert r"\textbf" not in latex(renamed)
    assert len(re.findall(r"\\mathbf", latex(renamed))) >= 6
    assert "a_b &amp; &lt;i&gt;|*" in page(renamed)
    assert "<i>" not in page(renamed)


def test_names_in_figures_are_no_formulas(comparison: Comparison, tmp_path: Path) -> None:
    name = r"a $\nosuch$ <i>"
    renamed = Comparison(**{**comparison.__dict__, "rows": {name: comparison.rows["gru"]}})
    write_figures(renamed, tmp_path)
    assert r"<!-- a $\nosuch$ &lt;i&gt; (3 seeds) -->" in (tmp_path / "ndcg-10.svg").read_text()


def test_command_line(shop: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    runs = [str(shop / "gru"), str(shop / "sasrec")]
    page, table = tmp_path / "page.html", tmp_path / "table.md"
    done = runner.invoke(
        app,
        ["compare", *runs, "--data", str(shop / "data"), "--out", str(page), "--out", str(table),
         "--figures", str(tmp_path / "figures"), "--metrics", "novelty,debiased", "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert list(facts["rows"])[:2] == ["gru", "sasrec"]
    assert {"novelty@20", "debiased_ndcg@20"} <= set(facts["tests"])
    assert "<svg" in page.read_text()
    assert "**" in table.read_text()
    made = {file.name for file in (tmp_path / "figures").iterdir()}
    assert made == {f"{m}-20.{e}" for m in ("recall", "ndcg", "mrr") for e in ("svg", "png")}


def test_a_folder_without_runs_and_a_missing_one(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        compare([tmp_path], shop / "data")
    with pytest.raises(ConfigError, match="no run"):
        compare([], shop / "data")


def test_folder_of_seed_folders_stands_for_all_runs(shop: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    shutil.copytree(shop / "gru", runs / "gru")
    shutil.copytree(shop / "sasrec" / "seed-0", runs / "alone")
    rows = compare([runs], shop / "data", cutoffs=(3,), baselines=False).rows
    assert {name: len(row.runs) for name, row in rows.items()} == {"alone": 1, "gru": 3}


def test_evaluate_of_a_folder_of_seeds_names_one(shop: Path) -> None:
    with pytest.raises(ArtifactError, match=r"gru is a folder of directories such as .*gru/seed-0"):
        evaluate(shop / "gru", shop / "data")


def test_models_built_in_python_share_a_row_by_their_folder_alone(
    shop: Path, tmp_path: Path
) -> None:
    """Their settings have neither widths nor the loss, so that two of them may look the same."""
    data = Data.open(shop / "data")
    for name, width in (("narrow", 8), ("wide", 16)):
        for seed in (0, 1):
            inputs = tr.TabularSequenceFeatures.from_schema(
                data.schema, max_sequence_length=5, d_output=width, masking="causal"
            )
            body = tr.SequentialBlock(inputs, torch.nn.GRU(width, width, batch_first=True))
            model = tr.Model(tr.Head(body, tr.NextItemPredictionTask()))
            settings = Recipe.from_dict({"train": {"epochs": 1, "seed": seed}}, "test")
            pipeline.train(settings, data, model=model, out=tmp_path / name / f"seed-{seed}")
    folders = [tmp_path / "narrow", tmp_path / "wide"]
    rows = compare(folders, data, cutoffs=(3,), baselines=False).rows
    assert {name: len(row.runs) for name, row in rows.items()} == {"narrow": 2, "wide": 2}
    mixed = [tmp_path / "narrow" / "seed-0", tmp_path / "wide" / "seed-1"]
    assert len(compare(mixed, data, cutoffs=(3,), baselines=False).rows) == 2


def test_ranks_of_evaluate(shop: Path, tmp_path: Path) -> None:
    run, data, file = shop / "gru" / "seed-0", shop / "data", tmp_path / "ranks.parquet"
    done = CliRunner().invoke(
        app, ["evaluate", str(run), "--data", str(data), "--ranks", str(file), "--json"]
    )
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    table = pq.read_table(file).to_pandas()
    assert len(table) == facts["targets"]
    for model, metrics in facts["results"].items():
        assert (table[model] <= 5).mean() == pytest.approx(metrics["recall@5"])
    log = pd.read_csv(shop / "log.csv")
    position = log.groupby("session_id").cumcount()
    truth = {(s, p): i for s, p, i in zip(log.session_id, position, log.item_id, strict=True)}
    for row in table.itertuples():
        assert truth[row.session_id, row.position] == row.item_id


def test_seeds_that_are_up_to_date_are_kept(shop: Path) -> None:
    weights = shop / "gru" / "seed-1" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    facts = train_seeds(shop / "data", recipe("gru"), shop / "gru", 3)
    assert list(facts["runs"]) == ["seed-0", "seed-1", "seed-2"]
    assert weights.stat().st_mtime_ns == before
    losses = [run["train_loss"] for run in facts["runs"].values()]
    assert facts["mean"]["train_loss"] == pytest.approx(np.mean(losses))
    assert facts["deviation"]["train_loss"] == pytest.approx(np.std(losses, ddof=1))

"""The report of a run: its page and its numbers."""

import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.artifact import read_manifest
from pipeline.core.errors import ArtifactError, ConfigError
from pipeline.data.directory import Data
from pipeline.data.fitted import Fitted
from pipeline.data.schema import Schema
from pipeline.model.model_files import load_model
from pipeline.model.run import Run
from pipeline.reports.charts import WIDTH, format_number, interval_chart, line_chart, ticks
from pipeline.training.report.page import render
from pipeline.training.report.run import write_report, write_training_report
from tests.conftest import Shop

VOID = {"meta", "line", "polyline", "circle", "br"}


class Page(HTMLParser):
    """Words and tags of a page; fails where a tag is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


@pytest.fixture(scope="module")
def written(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("report") / "new" / "shop.html"
    facts = write_report(shop.run, shop.data, out, cutoffs=(5, 20))
    assert facts["page"] == str(out)
    numbers = json.loads(Path(facts["json"]).read_text(encoding="utf-8"))
    return out.read_text(encoding="utf-8"), numbers


def test_page_shows_the_numbers_of_the_json(written: tuple[str, dict[str, Any]]) -> None:
    text, numbers = written
    words = " ".join(Page(text).words)
    evaluation = numbers["evaluation"]
    for model, metrics in evaluation["results"].items():
        for metric in ("recall@5", "recall@20", "ndcg@20", "mrr@20"):
            value, margin = metrics[metric], evaluation["margins"][model][metric]
            assert f"{value:.4f} ±{margin:.4f}" in words, (model, metric)
    for groups in evaluation["breakdowns"].values():
        for group in groups:
            assert group["group"] in words
            assert f"{group['results']['run']['recall@20']:.4f}" in words
    lines = numbers["training"]["log"]
    assert sum("loss" in line for line in lines) == 2
    assert "architecture: sasrec" in words
    assert f"{numbers['training']['facts']['parameters']:,} parameters" in words


def test_examples_agree_with_the_ranks_of_evaluation(
    written: tuple[str, dict[str, Any]],
) -> None:
    text, numbers = written
    assert len(numbers["examples"]) == 8
    for example in numbers["examples"]:
        items = [entry["item_id"] for entry in example["recommended"]]
        assert len(set(items)) == 10
        assert all(re.fullmatch(r"sku-\d{5}", item) for item in items)
        assert all(
            entry["hit"] == (entry["item_id"] == example["next"])
            for entry in example["recommended"]
        )
        assert example["clicked"]
        # evaluation and prediction agree
        if example["rank"] is not None:
            place = items.index(example["next"]) + 1 if example["next"] in items else None
            assert place == (example["rank"] if example["rank"] <= 10 else None)
    assert text.count("✓") == sum(e["hit"] for x in numbers["examples"] for e in x["recommended"])


def test_page_has_no_script_and_no_external_resource(
    written: tuple[str, dict[str, Any]],
) -> None:
    text, _ = written
    assert not re.search(r"https?:|//|url\(|@import|src=|href=", text)
    assert not {"script", "link", "img", "iframe", "object"} & set(Page(text).tags)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


@pytest.mark.parametrize("opened", [False, True], ids=["paths", "open objects"])
def test_report_opens_each_directory_once(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: bool
) -> None:
    run = Run.open(shop.run) if opened else shop.run
    data = Data.open(shop.data) if opened else shop.data
    paths = dict.fromkeys(("read_manifest", "load_model", "Fitted.read", "Schema.from_json"), ())
    for name, function in (("read_manifest", read_manifest), ("load_model", load_model)):
        for module in [m for n, m in sys.modules.items() if n.startswith("pipeline.")]:
            if vars(module).get(name) is function:
                monkeypatch.setattr(module, name, counted(paths, name, function))
    for owner, method in ((Fitted, "read"), (Schema, "from_json")):
        name = f"{owner.__name__}.{method}"
        spy = counted(paths, name, getattr(owner, method))
        monkeypatch.setattr(owner, method, staticmethod(spy))
    write_report(run, data, tmp_path / "page.html", baselines=False)
    assert sorted(paths["read_manifest"]) == ([] if opened else sorted([shop.data, shop.run]))
    assert paths["load_model"] == (shop.run,)
    assert sorted(paths["Fitted.read"]) == sorted([shop.data, shop.run])
    assert len(set(paths["Schema.from_json"])) == len(paths["Schema.from_json"])


def counted(
    paths: dict[str, tuple[Path, ...]], name: str, function: Callable[..., Any]
) -> Callable[..., Any]:
    """`function`, with its first argument added to `paths`."""

    def spy(path: Path, *arguments: Any, **keywords: Any) -> Any:
        paths[name] += (path,)
        return function(path, *arguments, **keywords)

    return spy


def test_page_is_reproducible_from_its_json(written: tuple[str, dict[str, Any]]) -> None:
    text, numbers = written
    assert render(numbers) == text


def test_ids_and_names_are_escaped(written: tuple[str, dict[str, Any]]) -> None:
    _, numbers = written
    evil = '<script>alert("1")</script>'
    example = {
        "session": evil,
        "clicked": [evil, None],
        "next": evil,
        "rank": 1,
        "recommended": [{"item_id": evil, "score": 1.0, "hit": True}],
    }
    config = {**numbers["config"], "preprocess": {"item": f"</pre>{evil}"}}
    page = Page(render({**numbers, "run": evil, "examples": [example], "config": config}))
    assert "script" not in page.tags
    assert page.words.count(evil) == 4  # heading, clicked, next, recommended
    assert "unknown" in page.words


def test_training_writes_a_page_without_test_data(shop: Shop, tmp_path: Path) -> None:
    facts = read_manifest(shop.run, "run")
    for name in ("metrics.jsonl", "fitted"):
        (tmp_path / name).symlink_to(shop.run / name)
    write_training_report(tmp_path, facts, "shop", shop.recipe.preprocess)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert {"How it learned", "What it cost", "Settings", "shop"} <= set(page.words)
    assert not {"How good", "Examples"} & set(page.words)
    numbers = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert numbers["evaluation"] is None
    assert numbers["config"]["train"]["epochs"] == 2


@pytest.mark.parametrize(
    "log",
    [
        [],
        [{"step": 1, "loss": None}],
        [{"step": 1, "loss": 3.0}],
        [{"step": 5, "epoch": 1.0, "eval_ndcg@7": 0.1}, {"step": 9, "loss": 2.0}],
        [{"step": 5, "epoch": 1.0, "eval_loss": 0.0, "learning_rate": 0.0, "note": "<b>"}],
    ],
)
def test_page_renders_with_missing_log_fields(
    written: tuple[str, dict[str, Any]], log: list[dict[str, Any]]
) -> None:
    _, numbers = written
    Page(render({**numbers, "training": {"facts": {}, "log": log}}))


def test_page_is_not_written_into_a_run_or_over_other_files(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a name that ends in \.html"):
        write_report(shop.run, shop.data, tmp_path / "page")
    with pytest.raises(ConfigError, match="would be inside run, whose manifest"):
        write_report(shop.run, shop.data, shop.run / "report.html")
    (tmp_path / "page.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"page\.json holds something else"):
        write_report(shop.run, shop.data, tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["page.json"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (3, 3, [2.6, 2.8, 3.0, 3.2, 3.4]),
        (0, 0, [-1, -0.5, 0, 0.5, 1]),
        (1, 10, [0, 2, 4, 6, 8, 10]),
    ],
)
def test_ticks_are_round_and_cover_the_values(
    low: float, high: float, expected: list[float]
) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_numbers_are_short() -> None:
    shown = [format_number(value) for value in (0, 0.125, 3e-5, 1234.5, 12.0, 507_936.0)]
    assert shown == ["0", "0.125", "3e-05", "1,234", "12", "507,936"]


def test_points_of_a_chart_are_inside_it_with_larger_values_above() -> None:
    chart = line_chart("loss", "epoch", "nats", {"a": [(1, 5.0), (2, 3.0)], "b": []})
    assert chart is not None
    [line] = chart.lines
    assert line.points[0].y < line.points[1].y  # downwards
    for point in line.points:
        assert chart.left <= point.x <= chart.right
        assert 0 <= point.y <= chart.bottom
    assert line_chart("loss", "epoch", "nats", {"a": []}) is None
    rows = interval_chart("mrr", "mean", {"run": (0.5, 0.1), "none": (0.0, None)}).rows
    assert rows[0].low < rows[0].x < rows[0].high <= WIDTH  # type: ignore[operator]
    assert rows[1].low is None


def test_axis_from_zero_begins_at_the_corner() -> None:
    chart = line_chart("a", "b", "c", {"d": [(4, 5.0), (8, 3.0)]}, from_zero=True, x_from_zero=True)
    assert chart is not None
    assert (chart.x_ticks[0].at, chart.x_ticks[0].text) == (chart.left, "0")
    assert (chart.y_ticks[0].at, chart.y_ticks[0].text) == (chart.bottom, "0")


def test_axes_of_the_page_are_named(written: tuple[str, dict[str, Any]]) -> None:
    text, _ = written
    for label in (
        *("share of the targets, with 95 % interval", "epoch", "mean loss of a target", "MiB"),
        *("mean of 1 / rank, 0 to 1, with 95 % interval", "sessions per second"),
    ):
        assert f">{label}</text>" in text
    # each chart has a label of x, and each with a scale of y one of y
    assert text.count('class="axis middle"') == text.count("<figure>")
    assert text.count('class="axis"') == text.count("<figure>") - text.count("with 95 % intervals")


def test_cost_table_shows_short_values(written: tuple[str, dict[str, Any]]) -> None:
    text, numbers = written
    fingerprint = "0123456789abcdef" * 4
    facts = {"seconds": 12.5, "device": "cpu", "trained_on": fingerprint, "parameters": 1234}
    page = Page(render({**numbers, "training": {"facts": facts, "log": []}}))
    place = page.words.index("time, seconds")
    cells = [word for word in page.words[place:] if word][:8]
    assert cells == [
        *("time, seconds", "12.5", "device", "cpu", "fingerprint of the data", "0123456789ab…"),
        *("parameters", "1,234"),
    ]
    assert all(len(word) < 60 for word in re.findall(r"<td>([^<]*)</td>", text))


def with_differences(
    numbers: dict[str, Any], values: dict[str, tuple[float, float | None]]
) -> dict[str, Any]:
    """A report whose run differs so from the best baseline."""
    differences = {
        metric: {"baseline": "session-knn", "difference": value, "margin": margin}
        for metric, (value, margin) in values.items()
    }
    return {**numbers, "evaluation": {**numbers["evaluation"], "differences": differences}}


def test_verdict_says_where_the_run_is_worse(written: tuple[str, dict[str, Any]]) -> None:
    _, numbers = written
    values = {"recall@20": (0.02, 0.01), "ndcg@20": (-0.02, 0.01), "mrr@20": (-0.01, 0.02)}
    text = render(with_differences(numbers, values))
    assert (
        "The run is better than the best baseline in recall@20; worse than the best baseline in "
        "ndcg@20; no different from the best baseline in mrr@20."
    ) in " ".join(Page(text).words)
    assert text.count('<span class="worse">-0.0200 from session-knn</span>') == 1
    assert text.index("The run is better") < text.index("How good")
    none = render(with_differences(numbers, dict.fromkeys(values, (0.0, None))))
    assert "The run is no different from the best baseline in recall@20, ndcg@20, mrr@20." in none
    assert 'class="worse">-' not in none


def test_groups_in_which_a_baseline_is_better_are_named_and_marked(
    written: tuple[str, dict[str, Any]],
) -> None:
    _, numbers = written
    evaluation = json.loads(json.dumps(numbers["evaluation"]))
    groups = [group for by in evaluation["breakdowns"].values() for group in by]
    for group in groups:
        assert group["differences"]["recall@20"]["baseline"] in group["results"]
        group["differences"]["recall@20"] |= {"difference": 0.1, "margin": 0.01}
        group["results"] = dict.fromkeys(
            group["results"], dict.fromkeys(group["results"]["run"], 0.5)
        )
    assert "Worse than the best baseline" not in render({**numbers, "evaluation": evaluation})
    worse = groups[1]
    worse["differences"]["recall@20"] = {
        "baseline": "popularity", "difference": -0.25, "margin": 0.01,
    }  # fmt: skip
    worse["results"]["popularity"] = dict.fromkeys(worse["results"]["run"], 0.75)
    text = render({**numbers, "evaluation": evaluation})
    words = " ".join(Page(text).words)
    assert f"“{worse['group']}” -0.2500 ±0.0100 (popularity)" in words
    assert text.count('<strong class="worse">0.750</strong>') == 1

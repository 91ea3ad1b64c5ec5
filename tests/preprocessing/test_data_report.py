"""The page about data, and the numbers beside it."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cli.preprocess import data_text
from pipeline.preprocessing.report.counts import CategoryTotals, count_categories
from pipeline.preprocessing.report.drift import (
    Drift,
    category_bins,
    jensen_shannon,
    measure_drift,
    number_bins,
    per_exposure,
    psi,
)
from pipeline.preprocessing.report.histogram import Histogram
from pipeline.preprocessing.report.page import percent, render
from pipeline.preprocessing.report.periods import exposures
from pipeline.preprocessing.report.values import popularity
from pipeline.preprocessing.run import preprocess
from pipeline.preprocessing.synthetic import clicks
from pipeline.recipe.preprocess import Preprocess
from pipeline.reports.charts import bar_chart

DAY = 86_400
EVIL = '<script>alert("1")</script>'


def test_psi_equals_a_hand_computed_value() -> None:
    p, q = np.array([0.5, 0.5]), np.array([0.25, 0.75])
    # -.25 ln .5 + .25 ln 1.5 = .25 ln 3
    assert psi(p, q) == pytest.approx(0.25 * math.log(3))
    assert psi(q, p) == pytest.approx(psi(p, q))
    assert psi(p, p) == 0


def test_jensen_shannon_goes_from_0_to_1() -> None:
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.5, 0.5])
    # each is half in common: divergence .5, and its root
    assert jensen_shannon(p, q) == pytest.approx(math.sqrt(0.5))
    assert jensen_shannon(p, p) == 0
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(1)


def test_expected_psi_of_small_samples_is_subtracted() -> None:
    near = measure_drift((np.array([500, 500]), np.array([60, 40])), 1000, 100)
    assert isinstance(near, Drift)
    assert near.expected == pytest.approx(1 / 1000 + 1 / 100)
    assert near.excess == pytest.approx(near.psi - near.expected)
    assert near.drift == "little"
    far = measure_drift((np.array([500, 500]), np.array([90, 10])), 1000, 100)
    assert far is not None
    assert far.drift == "much"
    few = measure_drift((np.array([500, 500]), np.array([18, 1])), 1000, 19)
    assert few is not None
    assert few.drift is None
    assert measure_drift((np.array([5, 0]), np.array([3, 0])), 5, 3) is None


numbers = st.lists(
    st.one_of(st.just(math.nan), st.floats(-3e38, 3e38), st.integers(-2000, 2000).map(float)),
    max_size=60,
)


@given(numbers, st.lists(st.integers(0, 60), max_size=4), st.sampled_from([0.0, 17.5, -1e6]))
@settings(deadline=None, max_examples=60)
def test_merged_histograms_equal_one_histogram(
    values: list[float], cuts: list[int], centre: float
) -> None:
    numbers = np.array(values, float)
    whole = Histogram.of(numbers, centre)
    merged = Histogram.of(np.empty(0), centre)
    for part in np.split(numbers, sorted(cuts)):
        merged = merged.merge(Histogram.of(part, centre))
    np.testing.assert_array_equal(whole.bins, merged.bins)
    np.testing.assert_array_equal(whole.counts, merged.counts)
    np.testing.assert_allclose(whole.sums, merged.sums, rtol=1e-12)
    assert (whole.low, whole.high) == (merged.low, merged.high)
    assert whole.missing == merged.missing == np.isnan(numbers).sum()


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1), st.booleans())
@settings(deadline=None, max_examples=60)
def test_category_totals_equal_one_count(sessions: list[list[int]], sparse: bool) -> None:
    size = 100_000 if sparse else 10
    whole, parts = CategoryTotals(size), CategoryTotals(size)
    owner = np.repeat(np.arange(len(sessions)), [len(s) for s in sessions])
    whole.add(count_categories(np.concatenate(sessions), owner, size))
    for session in sessions:
        parts.add(count_categories(np.array(session), np.zeros(len(session), int), size))
    np.testing.assert_array_equal(whole.counts, parts.counts)
    np.testing.assert_array_equal(whole.sessions, parts.sessions)
    inside = [sum(index in session for session in sessions) for index in range(10)]
    assert whole.sessions[:10].tolist() == [min(2, count) for count in inside]


@given(st.lists(st.integers(-500, 500), min_size=2))
def test_statistics_of_small_whole_numbers_are_exact(values: list[int]) -> None:
    summary = Histogram.of(np.array(values, float)).summary((0.25, 0.5, 0.99))
    assert summary["mean"] == pytest.approx(np.mean(values), rel=1e-5, abs=1e-6)
    assert summary["deviation"] == pytest.approx(np.std(values, ddof=1), rel=1e-5, abs=1e-6)
    for share in (0.25, 0.5, 0.99):
        expected = np.quantile(values, share, method="inverted_cdf")
        assert summary[f"{100 * share:g} %"] == expected
    assert (summary["least"], summary["greatest"]) == (min(values), max(values))


def test_quantiles_are_within_bin_width_and_means_exact() -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([random.lognormal(3, 2, 5000), -random.lognormal(0, 3, 3000), [3e9]])
    summary = Histogram.of(values, 20).summary((0.05, 0.5, 0.95))
    assert summary["mean"] == pytest.approx(values.mean(), rel=1e-5)
    assert summary["deviation"] == pytest.approx(values.std(ddof=1), rel=1e-4)
    for share in (0.05, 0.5, 0.95):
        expected = np.quantile(values, share)
        assert abs(summary[f"{100 * share:g} %"] - expected) <= 0.01 * abs(expected - 20) + 0.1


def test_shifted_constant_drifts() -> None:
    constant = Histogram.of(np.full(100, 5.0), 5.0)
    for value, word in ((5.0, None), (4.9, "much"), (5.1, "much")):
        other = Histogram.of(np.full(100, value), 5.0)
        measured = measure_drift(number_bins(constant, other, 100), 100, 100)
        assert (measured and measured.drift) == word


def test_expected_unknown_values_are_those_of_one_training_session() -> None:
    train, other = CategoryTotals(7), CategoryTotals(7)
    # item 0 stands in two sessions, item 1 twice in one, item 2 in none; one value is missing
    train.add(count_categories(np.array([3, 3, 4, 4, 1]), np.array([0, 1, 1, 1, 2]), 7))
    other.add(count_categories(np.array([3, 5, 2, 4]), np.array([0, 1, 2, 3]), 7))
    one, two = category_bins(train, other, 20)
    # top, rest, unknown, missing
    assert one.tolist() == [2, 0, 2, 1]
    assert two.tolist() == [1, 1, 2, 0]


def test_hours_are_weighted_by_exposure() -> None:
    hour = 3_600 * 10**6
    hours, weekdays = exposures(0, 36 * hour - 1)
    assert hours == pytest.approx([2] * 12 + [1] * 12)
    assert weekdays == pytest.approx([0, 0, 0, 1, 0.5, 0, 0])  # 1970 began on a Thursday
    steady = per_exposure((np.full(24, 10), hours * 10), (np.ones(24), hours))
    assert steady is not None
    assert psi(steady[0] / steady[0].sum(), steady[1] / steady[1].sum()) == pytest.approx(0)
    assert per_exposure((np.ones(7), np.ones(7)), (np.ones(7), weekdays)) is None


def test_gini_is_0_for_equal_items_and_near_1_for_one_dominant_item() -> None:
    equal, one = popularity(np.full(200, 7)), popularity(np.append(10**9, np.ones(999, int)))
    assert equal["gini"] == pytest.approx(0)
    assert (equal["top_1_percent"], equal["top_10_percent"]) == (0.01, 0.1)
    assert one["gini"] == pytest.approx(1, abs=0.002)
    assert one["curve"][0] == [0.001, pytest.approx(1, abs=1e-5)]
    assert one["curve"][-1] == [1, 1]
    assert popularity(np.array([3, 1, 0]))["gini"] == pytest.approx(0.25)  # 1, 3: half of a half
    assert popularity(np.zeros(4, int))["gini"] is None


@pytest.mark.parametrize("values", [3, 40, 3_000])
def test_samples_of_one_population_do_not_drift(values: int) -> None:
    wrong = {"some": 0, "much": 0, "little": 0}
    for seed in range(150):
        random = np.random.default_rng(seed)
        weights = 1 / np.arange(1, values + 1)
        weights /= weights.sum()
        n, m = int(random.integers(100, 2000)), int(random.integers(20, 300))
        counted = []
        for sessions in (n, m):
            # an item is seen several times in a session
            items = random.choice(values, sessions, p=weights)
            lengths = random.geometric(0.3, sessions)
            size = int(sessions / (1 + (lengths.std() / lengths.mean()) ** 2))
            owner = np.repeat(np.arange(sessions), lengths)
            counts = count_categories(3 + np.repeat(items, lengths), owner, 3 + values)
            totals = CategoryTotals(3 + values)
            totals.add(counts)
            counted.append((totals, size))
        (train, n), (test, m) = counted
        measured = measure_drift(category_bins(train, test, min(n, m)), n, m)
        if measured is not None and measured.drift is not None:
            wrong[measured.drift] += 1
    assert wrong["little"] >= 100
    assert wrong["some"] + wrong["much"] <= 2


def recipe(**more: object) -> Preprocess:
    values: dict = {
        "session": "session",
        "item": "product",
        "timestamp": {"column": "time", "features": ["hour", "elapsed"]},
        "features": [
            {"name": "category", "kind": "categorical", "of": "item"},
            {"name": "action", "kind": "categorical"},
            {"name": "price", "kind": "continuous", "of": "item", "log": True},
            {"name": "device", "kind": "categorical", "of": "session"},
            {
                "name": "band",
                "column": "price",
                "kind": "categorical",
                "of": "item",
                "buckets": [10, 50],
            },
        ],
        "max_sequence_length": 6,
        "split": {"valid": "2d", "test": "2d"},
    }
    return Preprocess.from_dict(values | more, "recipe")


def shop(seed: int = 0, sessions: int = 4000) -> pd.DataFrame:
    return clicks(np.random.default_rng(seed), sessions, 300, 16).to_pandas()


def written(directory: Path, log: pd.DataFrame, chosen: Preprocess) -> tuple[dict, dict, str]:
    """Facts, the JSON and the page."""
    directory.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pandas(log, preserve_index=False), directory / "log.parquet")
    facts = preprocess(chosen, [directory / "log.parquet"], [], directory / "data")
    text = (directory / "data" / "report.json").read_text(encoding="utf-8")
    page = (directory / "data" / "report.html").read_text(encoding="utf-8")
    return facts, json.loads(text), page


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, dict, dict, str]:
    log = shop()
    log.loc[log.index % 7 == 0, "price"] = np.nan
    log.loc[log.index % 11 == 0, "action"] = None
    return log, *written(tmp_path_factory.mktemp("report") / "usual", log, recipe())


def split(log: pd.DataFrame) -> dict[str, pd.DataFrame]:
    times = pd.to_datetime(log["time"], utc=True)
    log = log.assign(at=times).sort_values(["session", "at"], kind="stable")
    ends = log.groupby("session")["at"].max()
    first = ends.max() - pd.Timedelta("2d")
    second = ends[ends <= first].max() - pd.Timedelta("2d")
    end = log["session"].map(ends)
    parts = {"valid": log[(end > second) & (end <= first)], "test": log[end > first]}
    train = log[end <= second]
    lengths = train.groupby("session")["at"].transform("size")
    return {"train": train[lengths > 1], **parts}


def test_counts_are_those_of_pandas_on_the_raw_log(
    usual: tuple[pd.DataFrame, dict, dict, str],
) -> None:
    log, _, report, _ = usual
    parts = split(log)
    trained = set(parts["train"]["product"])
    in_parts = 0
    for name, frame in parts.items():
        part = report["parts"][name]
        in_parts += len(frame)
        lengths = frame.groupby("session").size()
        assert (part["sessions"], part["interactions"]) == (len(lengths), len(frame))
        assert part["lengths"]["longer"] == (lengths > 6).sum()
        for row in part["lengths"]["histogram"]:
            assert row["sessions"] == lengths.between(row["from"], row["to"]).sum()
        columns = part["columns"]
        unknown = ~frame["product"].isin(trained)
        assert columns["item_id"]["unknown"] == unknown.sum()
        assert part["sessions_with_unknown_item"] == frame[unknown]["session"].nunique()
        assert columns["item_id"]["seen"] == frame["product"].nunique() - len(
            set(frame["product"]) - trained
        )
        assert columns["action"]["missing"] == frame["action"].isna().sum()
        assert columns["price"]["missing"] == frame["price"].isna().sum()
        assert columns["price"]["mean"] == pytest.approx(frame["price"].mean(), rel=1e-5)
        assert columns["price"]["deviation"] == pytest.approx(frame["price"].std(), rel=1e-4)
        assert columns["price"]["50 %"] == pytest.approx(frame["price"].median(), rel=0.01)
        expected = frame["product"].value_counts()
        assert [row["count"] for row in columns["item_id"]["top"]] == expected.tolist()[:10]
        assert all(expected[r["value"]] == r["count"] for r in columns["item_id"]["top"])
        devices = frame.groupby("session")["device"].first().value_counts()
        assert {r["value"]: r["count"] for r in columns["device"]["top"]} == devices.to_dict()
        bands = {r["value"]: r["count"] for r in columns["band"]["top"]}
        assert bands["10 to 50"] == ((frame["price"] >= 10) & (frame["price"] < 50)).sum()
        steps = frame.groupby("session")["at"].diff().dropna().dt.total_seconds()
        assert columns["elapsed"]["mean"] == pytest.approx(steps.mean(), rel=1e-5)
        hours = frame["at"].dt.hour.value_counts().reindex(range(24), fill_value=0)
        assert part["hours"] == hours.tolist()
        weekdays = frame["at"].dt.weekday.value_counts().reindex(range(7), fill_value=0)
        assert part["weekdays"] == weekdays.tolist()
        days = frame["at"].dt.strftime("%Y-%m-%d").value_counts()
        counts = dict(zip(report["time"]["starts"], report["time"]["parts"][name], strict=True))
        assert {day: count for day, count in counts.items() if count} == days.to_dict()
    assert report["left_out"]["interactions"] == len(log) - in_parts


def test_the_page_shows_the_numbers_of_the_json_and_needs_nothing_from_outside(
    usual: tuple[pd.DataFrame, dict, dict, str],
) -> None:
    _, _, report, page = usual
    for part in report["parts"].values():
        assert f"<td>{part['interactions']:,}</td>" in page
    for rows in report["drift"].values():
        for row in rows:
            shown = f"{row['psi']:.3f}" if "psi" in row else row["why"]
            assert shown in page
    assert not re.search(r"https?:|//|url\(|@import|src=|href=|<script", page)
    assert "prefers-color-scheme: dark" in page
    assert render(report) == page


def test_stable_log_reports_no_drift(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        facts, report, page = written(tmp_path / str(seed), shop(seed, 1500), recipe())
        assert facts["drift"] == {"valid": [], "test": []}
        words = [row["drift"] for rows in report["drift"].values() for row in rows]
        assert set(words) <= {"little", None}
        assert "Much drift" not in page
        assert " drift  " not in data_text(facts, tmp_path)


def test_drifting_log_reports_its_columns(tmp_path: Path) -> None:
    log = shop()
    late = pd.to_datetime(log["time"], utc=True) > pd.Timestamp("2026-01-18", tz="UTC")
    log.loc[late, "price"] *= 3
    log.loc[late & (log.index % 2 == 0), "action"] = "share"
    facts, report, page = written(tmp_path, log, recipe())
    assert set(facts["drift"]["test"]) >= {"price", "band", "action"}
    assert not {"device", "session length", "category"} & set(facts["drift"]["test"])
    assert "<strong>Much drift</strong> between train and test: " in page
    text = data_text(facts, tmp_path / "data")
    assert "drift  much between train and test: " in text
    assert str(tmp_path / "data" / "report.html") in text
    rows = {row["column"]: row for row in report["drift"]["test"]}
    assert rows["action"]["lost"][0]["value"] == "view"
    assert report["drift"]["test"][0]["drift"] == "much"  # sorted


def test_values_of_the_log_are_escaped_and_shortened(tmp_path: Path) -> None:
    log = shop(sessions=300)
    log["product"] = EVIL + log["product"]
    log["action"] = "x" * 20_000
    _, report, page = written(tmp_path, log, recipe())
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert len(page) < 200_000
    assert report["parts"]["train"]["columns"]["action"]["top"][0]["value"] == "x" * 80 + "…"


def test_report_handles_constant_and_missing_columns_and_small_parts(tmp_path: Path) -> None:
    log = shop(sessions=60)
    log["price"], log["action"], log["device"] = 5.0, None, "phone"
    log["category"] = np.nan
    facts, report, _ = written(tmp_path, log, recipe())
    columns = report["parts"]["train"]["columns"]
    assert (columns["price"]["mean"], columns["price"]["deviation"]) == (5, 0)
    assert columns["action"]["missing"] == columns["action"]["counted"]
    assert columns["action"]["top"] == []
    assert {row["why"] for row in report["drift"]["test"] if row["drift"] is None} >= {
        "too few sessions"
    }
    log["price"] = np.nan
    _, report, page = written(tmp_path, log, recipe())
    assert report["parts"]["test"]["columns"]["price"]["mean"] is None
    assert "–" in page
    assert facts["drift"]["test"] == []


def test_held_out_targets_alone_are_compared(tmp_path: Path) -> None:
    log = shop(sessions=500)
    last = log.sort_values(["session", "time"]).groupby("session").tail(1)
    _, report, page = written(tmp_path, log, recipe(split="leave-last-out"))
    lengths = log.groupby("session").size()
    test = report["parts"]["test"]
    last = last[last["session"].map(lengths) > 1]
    assert test["counted"] == "targets"
    assert test["values"] == len(last) == test["sessions"]
    expected = last["product"].value_counts()
    assert test["columns"]["item_id"]["top"][0]["count"] == expected.iloc[0]
    rows = {row["column"]: row for row in report["drift"]["test"]}
    assert rows["session length"]["why"] == "the same sessions"
    assert "the target" in page


def test_a_log_without_times_and_parts_has_a_page(tmp_path: Path) -> None:
    chosen = recipe(timestamp=None, split={}, features=[])
    facts, report, page = written(tmp_path, shop(sessions=200), chosen)
    assert report["time"] is None
    assert (facts["drift"], report["drift"]) == ({}, {})
    assert "Drift" not in page
    split_by_share = recipe(timestamp=None, split={"test": 0.2})
    _, report, _ = written(tmp_path, shop(sessions=200), split_by_share)
    assert "elapsed" not in report["parts"]["test"]["columns"]


def test_sessions_cut_at_gaps_are_counted_by_their_own_interactions(tmp_path: Path) -> None:
    """Session 10-0 comes before 9-0, and user 9 before user 10."""
    seconds = {9: (1000, 1010), 10: (2000, 2020, 2040)}
    rows = [(user, f"a{n}", at) for user, times in seconds.items() for n, at in enumerate(times)]
    pd.DataFrame(rows, columns=["user", "sku", "at"]).to_csv(tmp_path / "log.csv", index=False)
    chosen = Preprocess(
        session="user", item="sku", timestamp={"column": "at", "unit": "s"}, session_gap="30m"
    )
    preprocess(chosen, [tmp_path / "log.csv"], [], tmp_path / "data")
    report = json.loads((tmp_path / "data" / "report.json").read_text(encoding="utf-8"))
    elapsed = report["parts"]["train"]["columns"]["elapsed"]
    assert (elapsed["least"], elapsed["greatest"]) == (10, 20)
    assert elapsed["mean"] == pytest.approx(50 / 3, rel=1e-5)


def test_times_far_apart_take_no_memory(tmp_path: Path) -> None:
    log = shop(sessions=200)
    log.loc[5, "time"] = "1700-01-01 00:00:00 UTC"
    log["time"] = log["time"].astype(str)
    _, report, page = written(tmp_path, log, recipe())
    assert report["time"]["unit"] == "day"
    assert len(report["time"]["starts"]) < 60
    assert report["time"]["outside"] == 1
    assert "Interactions by day, 1 far from the others left out" in page


def test_log_of_many_years_is_drawn_by_year(tmp_path: Path) -> None:
    log = shop(sessions=200)
    years = np.random.default_rng(0).integers(1985, 2020, len(log))
    log["time"] = [f"{year}-06-01 00:00:00 UTC" for year in years]
    _, report, page = written(tmp_path, log, recipe(split={"test": 0.2}))
    assert report["time"]["unit"] == "year"
    assert report["time"]["outside"] == 0
    assert report["time"]["starts"][:2] == ["1985", "1986"]
    assert "interactions of a year</text>" in page


def test_times_that_count_steps_are_no_dates(tmp_path: Path) -> None:
    log = shop(sessions=300)
    log["time"] = np.arange(len(log)) * 60
    settings = recipe(timestamp={"column": "time", "unit": "s"}, split={"test": 0.2})
    _, report, page = written(tmp_path, log, settings)
    assert report["time"]["unit"] == "hour"
    assert report["time"]["starts"][:3] == ["0", "1", "2"]
    assert "hours since the first interaction</text>" in page
    assert f"<td>{(len(log) - 1) * 60:,} s</td>" in page  # the last moment, as in the log
    assert report["parts"]["train"]["hours"] is None
    assert not {"hour of the day", "day of the week"} & {
        r["column"] for r in report["drift"]["test"]
    }
    assert "Hour of the day" not in page
    charts = page[page.index("<figure>") : page.index("<h2>Columns")]
    assert "1970" not in charts


def test_charts_name_their_axes_and_the_last_bin(tmp_path: Path) -> None:
    log = shop(sessions=300)
    long = log[log["session"] == log["session"].iloc[0]].iloc[[0] * 200]
    _, report, page = written(tmp_path, pd.concat([log, long]), recipe())
    for label in (
        *("interactions of a session", "% of sessions", "% of interactions", "hour, UTC"),
        *("% of the items, the most popular first", "interactions of a day", "day, UTC"),
    ):
        assert f">{label}</text>" in page
    longest = report["parts"]["train"]["lengths"]["histogram"]
    assert len(longest) > 12
    assert f">{longest[11]['from']}+</text>" in page
    for every in (5, 23, 24, 25):
        chart = bar_chart("a", "b", "c", [f"{n:04}" for n in range(every)], {"d": [1.0] * every})
        assert chart is not None
        assert chart.x_ticks[-1].text == f"{every - 1:04}"
        places = [tick.at for tick in chart.x_ticks]
        assert min(np.diff(places)) > 4 * 7, "labels do not overlap"


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1, "100 %"), (0.123, "12 %"), (0.0123, "1.2 %"), (1e-9, "under 0.01 %"),
     (0.99999, "over 99.9 %"), (0.099999, "10 %")],
)  # fmt: skip
def test_percent_has_two_digits(share: float, text: str) -> None:
    assert percent(share) == text
    assert percent(share, 0) == "–"


def test_report_does_not_depend_on_shard_size(
    usual: tuple[pd.DataFrame, dict, dict, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, _, _, page = usual
    monkeypatch.setattr("pipeline.preprocessing.sorting.spill.SHARD_ROWS", 2_000)
    outputs: Any = written(tmp_path, log, recipe())
    assert outputs[2] == page


def test_report_counts_multi_valued_hashed_and_target_encoded_features(tmp_path: Path) -> None:
    features = [
        {"name": "tags", "kind": "categorical", "values_per_interaction": 3},
        {"name": "maker", "kind": "categorical", "min_count": 2, "hash_buckets": 1},
        {"name": "rate", "column": "maker", "kind": "continuous", "mean_of": "n", "smoothing": 0},
    ]
    log = tmp_path / "log.parquet"
    columns = {
        "s": [1, 1, 2, 2],
        "i": list("uvuv"),
        "tags": ["a|b", "a", None, "c|a|b"],
        "maker": ["x", "x", "rare", None],
        "n": [1, 3, 8, 99],
    }
    pq.write_table(pa.table(columns), log)
    recipe = Preprocess.from_dict({"session": "s", "item": "i", "features": features}, "test")
    preprocess(recipe, [log], [], tmp_path / "data")
    report = json.loads((tmp_path / "data" / "report.json").read_text())
    columns = report["parts"]["train"]["columns"]
    assert {v["value"]: v["count"] for v in columns["tags"]["top"]} == {"a": 3, "b": 2, "c": 1}
    assert columns["tags"]["missing"] == 1
    assert {v["value"]: v["count"] for v in columns["maker"]["top"]} == {"x": 2, "hash bucket 1": 1}
    assert (columns["maker"]["cardinality"], columns["maker"]["unknown"]) == (1, 0)
    # 2 of x, 8 of rare, and the mean of those three, 4, where none is known
    assert (columns["rate"]["least"], columns["rate"]["greatest"]) == (2, 8)
    assert columns["rate"]["mean"] == (2 + 2 + 8 + 4) / 4

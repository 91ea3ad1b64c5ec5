"""Logged requests against training and later clicks, checked with numbers worked out by hand."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, ttest_ind
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core.errors import ConfigError, DataError
from pipeline.data.directory import Data
from pipeline.data.sessions import read_sessions
from pipeline.monitoring.arms import ArmResult, compare_estimates, experiment_results, sample_ratio
from pipeline.monitoring.groups import describe_lists
from pipeline.monitoring.outcomes import NO_RANK, Outcomes, estimate, read_outcomes
from pipeline.monitoring.page import page
from pipeline.monitoring.requests import NO_SESSION, Requests, read_requests
from pipeline.monitoring.run import monitor
from pipeline.recipe.preprocess import Preprocess
from pipeline.serve.proxy.experiment import Arm, Experiment
from pipeline.serve.request_log.exchange import Row
from pipeline.serve.request_log.files import to_batch, write_file
from pipeline.serve.request_log.options import EXPERIMENT_KEY
from tests.conftest import Shop

SECOND = 10**6
DAY = 86_400 * SECOND
START = 20_000 * DAY
RECIPE = Preprocess.from_dict(
    {"session": "who", "item": "what", "timestamp": {"column": "at", "unit": "us"}}, "test"
)


def row(session: str | None, at: int, items: str, shown: str, **facts: Any) -> Row:
    """A request `at` seconds after the start; an item is a letter."""
    values = {"model": "shop", "version": 1, "experiment": None, "arm": None, **facts}
    return Row(
        START + at * SECOND, session, values["model"], values["version"], values["experiment"],
        values["arm"], len(shown), list(items), list(shown),
    )  # fmt: skip


def write_log(directory: Path, rows: list[Row], experiment: Experiment | None = None) -> Path:
    directory.mkdir(exist_ok=True)
    metadata = {} if experiment is None else {EXPERIMENT_KEY: json.dumps(experiment.to_dict())}
    write_file(directory, [to_batch(rows)], metadata)
    return directory


def write_clicks(file: Path, clicks: Iterable[tuple[str, str, int]]) -> Path:
    lines = [f"{who},{what},{START + at * SECOND}" for who, what, at in clicks]
    file.write_text("\n".join(["who,what,at", *lines]) + "\n")
    return file


def outcomes_of(
    directory: Path, rows: list[Row], clicks: list[tuple[str, str, int]], window: int
) -> tuple[Requests, Outcomes]:
    requests = read_requests([write_log(directory / "log", rows)], pa.array(list("abc")))
    file = write_clicks(directory / "clicks.csv", clicks)
    return requests, read_outcomes(requests, [file], RECIPE, window * SECOND)


def test_outcome_is_the_next_interaction_of_the_session_within_the_window(tmp_path: Path) -> None:
    rows = [
        row("ann", 10, "a", "bcx"),  # ann's next one is c at 15
        row("ann", 15, "ac", "xyz"),  # x at 20: at the same time there is c, which is no next one
        row("ann", 21, "ac", "abc"),  # nothing follows within 30 seconds
        row("bob", 10, "a", "ab"),  # b at 40: the window includes its end
        row(None, 10, "a", "abc"),
        row("eve", 10, "a", "abc"),  # has no interaction
        row("bob", 41, "a", "ab"),  # no later one
    ]
    clicks = [
        ("ann", "c", 15), ("ann", "a", 9), ("ann", "x", 20), ("ann", "b", 60), ("bob", "b", 40),
        ("unknown", "a", 11),
    ]  # fmt: skip
    requests, outcomes = outcomes_of(tmp_path, rows, clicks, 30)
    # in the order of the times: bob, None, eve and ann at 10
    by_request = {
        (session, time // SECOND - START // SECOND): (followed, rank)
        for session, time, followed, rank in zip(
            [None if s == NO_SESSION else requests.session_names[s] for s in requests.sessions],
            requests.times.tolist(),
            outcomes.has_outcome.tolist(),
            outcomes.ranks.tolist(),
            strict=True,
        )
    }
    assert by_request == {
        ("ann", 10): (True, 2),
        ("ann", 15): (True, 1),
        ("ann", 21): (False, NO_RANK),
        ("bob", 10): (True, 2),
        (None, 10): (False, NO_RANK),
        ("eve", 10): (False, NO_RANK),
        ("bob", 41): (False, NO_RANK),
    }
    assert (outcomes.clicks, outcomes.matched_sessions) == (6, 2)
    online = outcomes.metrics(requests, np.arange(len(rows)), (1, 2))
    assert online.requests == 6
    assert online.followed is not None
    assert online.followed.value == 3 / 6
    values = {name: value.value for name, value in online.metrics.items()}
    assert values == pytest.approx(
        {"hit_rate@1": 1 / 3, "mrr@1": 1 / 3, "hit_rate@2": 1.0, "mrr@2": (1 + 0.5 + 0.5) / 3}
    )


_EVENTS = st.lists(st.tuples(st.sampled_from("pq"), st.integers(0, 12)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(asked=_EVENTS, clicked=_EVENTS, window=st.integers(1, 12))
def test_outcomes_equal_a_search_in_all_pairs(
    tmp_path_factory: pytest.TempPathFactory,
    asked: list[tuple[str, int]],
    clicked: list[tuple[str, int]],
    window: int,
) -> None:
    directory = tmp_path_factory.mktemp("pairs")
    letters = [*"abcdefgh"]
    clicks = [(who, letters[i], at) for i, (who, at) in enumerate(clicked)]
    rows = [row(who, at, "a", "abcdefgh") for who, at in asked]
    if not {who for who, _ in asked} & {who for who, _ in clicked}:
        with pytest.raises(DataError, match="none of the sessions"):
            outcomes_of(directory, rows, clicks, window)
        return
    requests, outcomes = outcomes_of(directory, rows, clicks, window)
    for index in range(len(rows)):
        who = requests.session_names[requests.sessions[index]]
        at = (requests.times[index] - START) // SECOND
        later = [(t, i) for i, (name, t) in enumerate(clicked) if name == who and t > at]
        expected = min(later)[1] + 1 if later and min(later)[0] - at <= window else NO_RANK
        assert outcomes.ranks[index] == expected
        assert outcomes.has_outcome[index] == (expected != NO_RANK)


def test_interval_is_that_of_the_means_of_sessions_where_these_are_equally_long() -> None:
    means = np.random.default_rng(0).random(40)
    value = estimate(np.repeat(means, 3), np.repeat(np.arange(40), 3))
    assert value.error == pytest.approx(means.std(ddof=1) / 40**0.5)
    assert (value.value, value.sessions) == (pytest.approx(means.mean()), 40)


def test_difference_is_welchs_test_for_one_request_a_session() -> None:
    generator = np.random.default_rng(1)
    one, other = generator.random(50), generator.random(30) + 0.1
    difference = compare_estimates(
        "v2", "mrr@10", estimate(one, np.arange(50)), estimate(other, np.arange(30))
    )
    test = ttest_ind(one, other, equal_var=False)
    interval = test.confidence_interval()
    assert difference is not None
    assert difference.difference == pytest.approx(one.mean() - other.mean())
    assert difference.p == pytest.approx(test.pvalue)
    assert (difference.low, difference.high) == pytest.approx((interval.low, interval.high))
    assert (
        compare_estimates(
            "v2", "m", estimate(one[:5], np.arange(5)), estimate(other, np.arange(30))
        )
        is None
    )


def test_intervals_hold_the_difference_in_19_of_20_tests_without_one() -> None:
    """Sessions have a rate of their own, so that their requests depend on each other."""
    generator = np.random.default_rng(2)
    num_inside = 0
    for _ in range(400):
        estimates = []
        for num_sessions in (150, 60):
            sessions = np.repeat(np.arange(num_sessions), generator.integers(1, 8, num_sessions))
            rates = generator.beta(1, 3, num_sessions)[sessions]
            estimates.append(estimate((generator.random(len(rates)) < rates) * 1.0, sessions))
        difference = compare_estimates("v2", "hit_rate@10", *estimates)
        assert difference is not None
        num_inside += difference.low <= 0 <= difference.high
    assert 0.92 < num_inside / 400 < 0.98


def test_sample_ratio_is_the_chi_squared_test() -> None:
    arms = [ArmResult("control", 0.7, 720, 0, None), ArmResult("v2", 0.3, 280, 0, None)]
    assert sample_ratio(arms) == pytest.approx(chisquare([720, 280], [700, 300]).pvalue)
    assert sample_ratio([*arms, ArmResult("v3", None, 1, 0, None)]) is None


def test_concentration_by_hand() -> None:
    exposure = describe_lists(np.array([2, 3, 3, 3, 9]), 4)
    assert exposure.coverage == 0.5
    assert exposure.gini == pytest.approx(0.625)
    assert exposure.top_1_percent == 0.75
    assert exposure.outside == pytest.approx(0.2)
    assert describe_lists(np.arange(1000), 1000).gini == pytest.approx(0)
    assert describe_lists(np.zeros(5, int), 1000).gini == pytest.approx(1 - 1 / 1000)
    assert describe_lists(np.array([], int), 4).gini is None


def experiment_rows(sizes: dict[str, int]) -> list[Row]:
    return [
        row(f"{arm}-{i}", i, "a", "abc", experiment="spring", arm=arm)
        for arm, size in sizes.items()
        for i in range(size)
    ]


SPRING = Experiment(
    name="spring", control="shop", arms=(Arm(name="v1", model="shop_v1", share=0.3),)
)


def test_experiment_whose_sessions_do_not_fit_the_shares_is_named(tmp_path: Path) -> None:
    rows = [
        *experiment_rows({"control": 70, "v1": 32}),
        row("x", 1, "a", "b"),
        row(None, 1, "a", ""),
    ]
    fitting = read_requests([write_log(tmp_path / "a", rows, SPRING)], pa.array(list("abc")))
    [result] = experiment_results(fitting, None, (10,))
    assert result.fits_shares
    assert [(arm.name, arm.sessions, arm.share) for arm in result.arms] == [
        ("control", 70, 0.7), ("v1", 32, 0.3)
    ]  # fmt: skip
    rows = experiment_rows({"control": 60, "v1": 60})
    other = read_requests([write_log(tmp_path / "b", rows, SPRING)], pa.array(list("abc")))
    [result] = experiment_results(other, None, (10,))
    assert not result.fits_shares
    assert result.sample_ratio_p == pytest.approx(chisquare([60, 60], [84, 36]).pvalue)


def test_sessions_of_two_arms_are_left_out(tmp_path: Path) -> None:
    rows = experiment_rows({"control": 5, "v1": 5})
    rows.append(row("v1-0", 99, "a", "abc", experiment="spring", arm="control"))
    requests = read_requests([write_log(tmp_path / "a", rows, SPRING)], pa.array(list("abc")))
    [result] = experiment_results(requests, None, (10,))
    assert (result.moved_sessions, result.sample_ratio_p) == (1, None)
    assert {arm.name: arm.sessions for arm in result.arms} == {"control": 5, "v1": 4}


def served_log(shop: Shop, directory: Path, part: str = "test", version: int = 2) -> Path:
    """Requests of the sessions of a part, a prefix each, on two days."""
    data = Data.open(shop.data)
    ids = ["", "", "?", *data.fitted.item.values.to_pylist()]
    rows = []
    for number, session in enumerate(read_sessions(shop.data, part, ["item_id"])["item_id"]):
        items = [ids[index] for index in session.as_py()]
        time = START + (number % 2) * DAY + number * SECOND
        rows += [
            Row(time + n, f"s{number}", "shop", version, None, None, 3, items[:n], ids[3:6])
            for n in range(1, len(items) + 1)
        ]
    return write_log(directory, rows)


def test_requests_like_training_show_no_drift_and_others_do(shop: Shop, tmp_path: Path) -> None:
    log = served_log(shop, tmp_path / "log", "train")
    result = monitor([log], shop.data)
    [version] = result.versions
    assert version.version == "shop v2"
    assert sum(day.requests for day in version.days.values()) == version.all.requests
    assert list(version.days) == [f"{datetime.fromtimestamp(s, UTC):%F}" for s in
                                  (START // SECOND, (START + DAY) // SECOND)]  # fmt: skip
    assert version.all.items is not None
    assert version.all.lengths is not None
    assert (version.all.items.drift, version.all.lengths.drift) == ("little", "little")
    assert version.all.exposure.coverage == 3 / result.catalogue_items
    assert result.notes() == []
    # ten sessions of one item each, half of them unknown, by version 10
    rows = [
        row(f"new-{i}", i, items, "abc", version=10) for i in range(40) for items in ("?", "?!")
    ]
    write_log(log, rows)
    result = monitor([log], shop.data)
    assert [version.version for version in result.versions] == ["shop v2", "shop v10"]
    odd = result.versions[1].all
    assert (odd.requests, odd.sessions, odd.interactions) == (80, 40, 80)
    assert (odd.unknown_items, odd.without_known, odd.exposure.outside) == (1.0, 1.0, 1.0)
    assert odd.items is not None
    assert odd.items.drift == "much"
    assert any("items of shop v10 differ from training's" in note for note in result.notes())


def test_command_prints_and_writes_what_the_function_returns(shop: Shop, tmp_path: Path) -> None:
    log = served_log(shop, tmp_path / "log")
    frame = pd.DataFrame(
        {
            "session": [f"s{n}" for n in range(40)],
            "product": "sku-00001",
            "time": [
                str(datetime.fromtimestamp((START + (n % 2) * DAY) / SECOND + n + 60, UTC))
                for n in range(40)
            ],
        }
    )
    frame.to_csv(tmp_path / "later.csv", index=False)
    out = tmp_path / "page" / "monitor.html"
    command = [
        "monitor", log, "--data", shop.data, "--clicks", tmp_path / "later.csv", "--out", out,
        "--cutoffs", "1,3", "--window", "5m",
    ]  # fmt: skip
    outcome = CliRunner().invoke(app, [str(word) for word in [*command, "--json"]])
    assert outcome.exit_code == 0, outcome.output
    result = monitor([log], shop.data, clicks=[tmp_path / "later.csv"], window="5m", cutoffs=(1, 3))
    assert json.loads(outcome.stdout) == json.loads(json.dumps(result.to_dict()))
    text = CliRunner().invoke(app, [str(word) for word in command]).stdout
    assert text.strip() == result.to_text().strip()
    assert out.read_text() == page(result)
    assert result.versions[0].online is not None
    assert set(result.versions[0].online.metrics) == {"hit_rate@1", "mrr@1", "hit_rate@3", "mrr@3"}


@pytest.mark.parametrize(("delay", "has_note"), [(-3600, True), (3600, True), (60, False)])
def test_clicks_of_another_clock_add_a_note(
    shop: Shop, tmp_path: Path, delay: int, has_note: bool
) -> None:
    log = served_log(shop, tmp_path / "log")
    at = datetime.fromtimestamp(START / SECOND + delay, UTC)
    (tmp_path / "later.csv").write_text(f"session,product,time\ns0,sku-00001,{at}\n")
    result = monitor([log], shop.data, clicks=[tmp_path / "later.csv"], window="5m")
    note = "No request has an outcome within 5m. If the clicks are later, the clocks differ"
    assert any(text.startswith(note) for text in result.notes()) == has_note


def test_page_escapes_what_a_log_holds(shop: Shop, tmp_path: Path) -> None:
    rows = [row("s", n, "a", "b", model="<script>x", experiment="<b>", arm="<i>") for n in range(3)]
    text = page(monitor([write_log(tmp_path / "log", rows)], shop.data))
    assert "&lt;script&gt;x v1" in text
    assert "<script" not in text
    assert "<b>" not in text


def test_wrong_files_are_named(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no requests-\*.parquet"):
        monitor([tmp_path / "empty"], shop.data)
    half = tmp_path / "empty" / "requests-half.parquet"
    half.write_bytes(b"PAR1half")
    with pytest.raises(DataError, match=r"requests-half.parquet is no file of a request log"):
        monitor([tmp_path / "empty"], shop.data)
    other = tmp_path / "lists.parquet"
    pq.write_table(pa.table({"session": ["s"], "k": [3]}), other)
    with pytest.raises(DataError, match="no file of a request log: it has no column 'time'"):
        monitor([other], shop.data)
    log = write_log(tmp_path / "log", [row("s", 1, "a", "b")])
    with pytest.raises(ConfigError, match="--window is 'soon', expected minutes"):
        monitor([log], shop.data, window="soon")
    requests = read_requests([log], pa.array(["a"]))
    timeless = RECIPE.model_copy(update={"timestamp": None})
    with pytest.raises(ConfigError, match="needs to know when interactions were"):
        read_outcomes(requests, [log], timeless, 1)

"""A/B tests: who is in which arm, and who answers."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import ModelInferRequest

from pipeline.core.artifact import new_artifact
from pipeline.core.errors import ConfigError
from pipeline.exporting.options import ExportOptions
from pipeline.exporting.run import export
from pipeline.serve.client.client import Client
from pipeline.serve.proxy import experiment as module
from pipeline.serve.proxy.experiment import CONTROL, Arm, Experiment, Route, Router, read_experiment
from pipeline.serve.proxy.ranking_models import RankingModels
from pipeline.serve.proxy.request_checks import check_message, for_model
from pipeline.serve.proxy.session_names import session_fraction
from pipeline.serve.request_log.files import FILE_PATTERN
from pipeline.serve.request_log.options import EXPERIMENT_KEY, RequestLogOptions
from pipeline.serve.run import running_server
from pipeline.serve.triton.ports import free_ports
from tests.conftest import ROOT, Shop

NUM_SESSIONS = 100_000
FRACTION = 0.03772309986336353
"""Of the session `ann` in the experiment `spring`."""


def experiment(name: str = "spring", **shares: float) -> Experiment:
    arms = tuple(Arm(name=a, model=f"shop_{a}", share=share) for a, share in shares.items())
    return Experiment(name=name, control="shop", arms=arms)


def arm_name(test: Experiment, session: str) -> str:
    arm = test.arm_of(session)
    return CONTROL if arm is None else arm.name


@pytest.mark.parametrize("form", ["{}", "session-{:08}", "1f0c{:x}-ÄÖ"])
def test_shares_of_100_000_sessions_are_within_binomial_bounds(form: str) -> None:
    shares = {"v4": 0.3, "v2": 0.05}
    counts = Counter(arm_name(experiment(**shares), form.format(i)) for i in range(NUM_SESSIONS))
    for name, share in {**shares, CONTROL: 0.65}.items():
        deviation = (NUM_SESSIONS * share * (1 - share)) ** 0.5
        assert abs(counts[name] - NUM_SESSIONS * share) < 4 * deviation, (name, counts)


def test_experiments_are_independent_of_each_other() -> None:
    one, other = experiment("one", v2=0.5), experiment("other", v2=0.5)
    both = sum(
        one.arm_of(str(i)) is not None and other.arm_of(str(i)) is not None
        for i in range(NUM_SESSIONS)
    )
    assert abs(both - NUM_SESSIONS / 4) < 4 * (NUM_SESSIONS * 3 / 16) ** 0.5


@given(session=st.text(st.characters(), min_size=1), share=st.floats(0.01, 0.98))
def test_a_larger_share_keeps_the_sessions_of_an_arm(session: str, share: float) -> None:
    if arm_name(experiment(v2=share), session) == "v2":
        assert arm_name(experiment(v2=min(0.99, share * 1.1)), session) == "v2"
    assert 0 <= session_fraction("spring", session) < 1


def test_arm_does_not_depend_on_the_process() -> None:
    """Fractions are written down: another hash would move sessions at the next upgrade."""
    assert session_fraction("spring", "ann") == FRACTION
    code = (
        "from pipeline.serve.proxy.session_names import session_fraction as f;"
        "print([f('spring', f'session-{i}') for i in range(50)])"
    )
    outputs = {
        subprocess.check_output(
            [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def write_model(repository: Path, name: str, *tensors: str) -> None:
    (repository / name).mkdir(parents=True)
    lines = [
        f'input {{ name: "{tensor}" data_type: TYPE_INT64 dims: [ -1 ] }}' for tensor in tensors
    ]
    lines += [
        f'output {{ name: "{output}" data_type: TYPE_INT64 dims: [ -1 ] }}'
        for output in ("item_ids", "scores", "num_known")
    ]
    (repository / name / "config.pbtxt").write_text("\n".join(lines))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A shop of the versions 2 and 3, a challenger, and a model of other columns."""
    facts = {"name": "challenger", "other_models": {"shop": {}, "wide": {}}}
    with new_artifact(tmp_path / "repository", "repository", facts) as directory:
        for name in ("shop", "shop_v2", "shop_v3", "challenger"):
            write_model(directory, name, "item_id", "price")
        write_model(directory, "wide", "item_id")
    return tmp_path / "repository"


def test_experiment_is_read_from_one_line(repository: Path) -> None:
    test = read_experiment("spring,control=shop,v2=0.3,challenger=0.1", repository)
    assert test == Experiment(
        name="spring",
        control="shop",
        arms=(
            Arm(name="v2", model="shop_v2", share=0.3),
            Arm(name="challenger", model="challenger", share=0.1),
        ),
    )
    assert test.shares() == {CONTROL: pytest.approx(0.6), "v2": 0.3, "challenger": 0.1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("spring", "expected NAME,ARM=SHARE"),
        ("spring,control=shop", "expected NAME,ARM=SHARE"),
        ("a b,control=shop,v2=0.3", "expected NAME,ARM=SHARE"),
        ("spring,control=shop,v2", "expected NAME,ARM=SHARE"),
        ("spring,control=shop,v2=0.1,v2=0.2", "expected NAME,ARM=SHARE"),
        ("spring,v2=0.3", "the models that are no arm are challenger, shop, wide. Name the"),
        ("spring,control=other,v2=0.3", "no model other, expected challenger, shop, wide"),
        ("spring,control=shop,v9=0.3", r"none of its versions \(v2, v3\)"),
        ("spring,control=shop,shop=0.3", "shop is no other model of the repository than shop"),
        ("spring,control=shop,v2=30", "the share of v2 is '30', expected a number in"),
        ("spring,control=shop,v2=nan", "the share of v2 is 'nan'"),
        ("spring,control=shop,v2=0.5,v3=0.5", "add up to 1 or more"),
        ("spring,control=shop,wide=0.3", "wide has no tensor price as shop has it"),
    ],
)
def test_experiment_that_does_not_fit_is_named(repository: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_experiment(text, repository)


def test_requests_are_routed_by_their_session_alone(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(module.logger, "warning", lambda text, *a: lines.append(text % a))
    test = read_experiment("spring,control=shop,v2=0.3,challenger=0.3", repository)
    router = Router(RankingModels(repository), test)
    expected = {
        "v2": Route("shop_v2", "spring", "v2", "shop"),
        "challenger": Route("challenger", "spring", "challenger", None),
        CONTROL: Route(None, "spring", CONTROL, None),
    }
    sessions = [str(i) for i in range(50)]
    for session in sessions:
        assert router.route("shop", "", session) == expected[arm_name(test, session)]
    for request in (("shop", "", None), ("shop", "2", "1"), ("challenger", "", "1")):
        assert router.route(*request) == Route()
    assert Router(RankingModels(repository), None).route("shop", "", "1") == Route()
    (repository / "shop_v2" / "config.pbtxt").unlink()
    (repository / "manifest.json").touch()  # another export has removed the version
    lost = [router.route("shop", "", s) for s in sessions if arm_name(test, s) == "v2"]
    assert set(lost) == {Route()}
    assert lines == [
        "Warning: the repository has no shop_v2 any more, the arm v2 of spring; shop answers its "
        "sessions."
    ]


def test_message_asks_the_model_that_was_added_last() -> None:
    request = ModelInferRequest(model_name="shop")
    request.inputs.add(name="item_id")
    request.parameters["session"].string_param = "ann"
    message = request.SerializeToString()
    changed = ModelInferRequest.FromString(for_model(message, "shop_v2"))
    assert changed.model_name == "shop_v2"
    changed.model_name = "shop"
    assert changed == request
    checked = check_message(message)
    assert (checked.model, checked.version, checked.session) == ("shop", "", "ann")


def answers(server: Any, sessions: list[str]) -> dict[str, list[int | None]]:
    """Version that answers each session, over HTTP and gRPC in turn."""
    versions: dict[str, list[int | None]] = {session: [] for session in sessions}
    for url in (f"http://{server.http_url}", f"grpc://{server.grpc_url}"):
        with Client(url) as client:
            for session in sessions:
                answer = client.recommend([{"item_id": ["sku-00001"]}], 5, session=session)
                versions[session].append(answer.version)
    return versions


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_session_stays_in_its_arm_over_restarts_protocols_and_new_versions(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arm is the older of two versions; then it is removed, and no request fails."""
    monkeypatch.setattr("pipeline.exporting.versions.MIN_KEPT_SECONDS", 0)
    repository, log = tmp_path / "repository", tmp_path / "log"
    for k in (5, 6):  # two exports that differ
        export(shop.run, repository, ExportOptions(default_k=k))
    test = read_experiment("spring,v1=0.4", repository)
    sessions = [f"session-{i}" for i in range(60)]
    arms = {session: arm_name(test, session) for session in sessions}
    assert set(Counter(arms.values())) == {"v1", CONTROL}

    def expected(control: int, arm: int = 1) -> dict[str, list[int | None]]:
        return {s: [arm if name == "v1" else control] * 2 for s, name in arms.items()}

    options: dict[str, Any] = {"ports": free_ports(), "experiment": test, "reload_seconds": 1}
    options["request_log"] = RequestLogOptions(directory=log)
    for _ in range(2):
        with running_server(repository, **options) as server:
            assert answers(server, sessions) == expected(2)
            with Client(f"http://{server.http_url}") as client:
                assert client.recommend([{"item_id": ["sku-00001"]}]).version == 2
    rows = [row for file in log.glob(FILE_PATTERN) for row in pq.read_table(file).to_pylist()]
    assert len(rows) == 2 * (2 * len(sessions) + 1)
    for row in rows:
        arm = None if row["session"] is None else arms[row["session"]]
        assert (row["arm"], row["version"]) == (arm, 1 if arm == "v1" else 2)
        assert row["model"] == "recommender"
        assert row["experiment"] == (None if arm is None else "spring")
    [file, *_] = log.glob(FILE_PATTERN)
    metadata = json.loads(pq.read_schema(file).metadata[EXPERIMENT_KEY])
    assert metadata == {
        "name": "spring", "control": "recommender",
        "arms": [{"name": "v1", "model": "recommender_v1", "share": 0.4}],
    }  # fmt: skip
    with running_server(repository, **options) as server:
        export(shop.run, repository, ExportOptions(default_k=7), keep=3)
        control = next(s for s, name in arms.items() if name == CONTROL)
        wait_until(lambda: answers(server, [control])[control] == [3, 3])
        assert answers(server, sessions) == expected(3)
        export(shop.run, repository, ExportOptions(default_k=8), keep=2)  # without version 1
        assert not (repository / "recommender_v1").exists()
        wait_until(lambda: answers(server, [control])[control] == [4, 4])
        assert answers(server, sessions) == expected(4, 4)


@pytest.mark.slow
def test_command_serves_an_experiment_of_two_models(shop: Shop, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    export(shop.run, repository)
    export(shop.run, repository, ExportOptions(name="challenger"))
    command = ["serve", str(repository), "--ab", "spring,challenger=0.5", "--json"]
    ports = [f"--{kind}-port=0" for kind in ("http", "grpc", "metrics")]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *command, *ports], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["grpc"]
        test = read_experiment("spring,challenger=0.5", repository)
        sessions = [f"session-{i}" for i in range(20)]
        with Client(url) as client:
            versions = {
                session: client.recommend([{"item_id": ["sku-00001"]}], session=session).version
                for session in sessions
            }
        assert versions == {s: 2 if arm_name(test, s) == "challenger" else 1 for s in sessions}
        assert set(versions.values()) == {1, 2}
    finally:
        process.terminate()
        process.wait(60)

"""The in-process client of a run answers as a real Triton on its export."""

import json
import tempfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core.errors import ConfigError, PipelineError
from pipeline.exporting.run import export, load_served
from pipeline.in_process import open_run
from pipeline.model.run import Run
from pipeline.preprocessing.run import preprocess
from pipeline.preprocessing.synthetic import synthesize
from pipeline.recipe.recipe import Recipe
from pipeline.serve.client.client import Client
from pipeline.serve.run import running_server
from pipeline.serve.triton.ports import free_ports
from pipeline.serve.triton.server import TritonServer
from pipeline.training.run import train
from tests.conftest import SESSION, Shop
from tests.serve.test_filters import sessions


def assert_same(actual: Any, expected: Any) -> None:
    """Ids in their order, scores and vectors to 1e-4; items where a list has ended mean nothing."""
    finite = ~np.isneginf(expected.scores)
    assert (np.isneginf(actual.scores) == ~finite).all()
    assert actual.items.shape == expected.items.shape
    assert actual.items[finite].tolist() == expected.items[finite].tolist()
    assert actual.scores[finite] == pytest.approx(expected.scores[finite], abs=1e-4)
    assert actual.embeddings == pytest.approx(expected.embeddings, abs=1e-4)


def recommend(*words: Any) -> Any:
    """What the command prints, as JSON."""
    arguments = ["recommend", *map(str, words), "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["sessions"]


def assert_same_records(actual: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [r["session_id"] for r in actual] == [r["session_id"] for r in expected]
    for a, b in zip(actual, expected, strict=True):
        assert a["num_known"] == b["num_known"]
        pairs = a["recommendations"], b["recommendations"]
        ids, others = ([entry["item_id"] for entry in pair] for pair in pairs)
        assert ids == others
        scores, expected_scores = ([entry["score"] for entry in pair] for pair in pairs)
        assert scores == pytest.approx(expected_scores, abs=1e-4)


def test_in_process_client_equals_the_server(shop: Shop, server: TritonServer) -> None:
    random = np.random.default_rng(8)
    catalogue = [f"sku-{i:05}" for i in range(200)]
    with open_run(shop.run) as local, Client(f"grpc://{server.grpc_url}") as client:
        assert local.served.types == client.served.types
        assert local.served.default_k == client.served.default_k
        for turn in range(30):
            asked = sessions(random, int(random.integers(1, 7)), catalogue)
            k = None if turn % 4 == 0 else int(random.integers(1, 101))
            filters: dict[str, Any] = {}
            if turn % 2:
                filters["exclude"] = random.choice([*catalogue, "unknown"], 20).tolist()
            if turn % 3 == 0:
                filters["candidates"] = [
                    random.choice([*catalogue, "unknown"], 12).tolist() for _ in asked
                ]
            if turn % 5:
                filters["filter_seen"] = bool(turn % 5 % 2)
            assert_same(
                local.recommend(asked, k, embeddings=True, **filters),
                client.recommend(asked, k, embeddings=True, **filters),
            )


def test_sessions_beyond_one_batch_equal_single_requests(shop: Shop) -> None:
    with open_run(shop.run) as local:
        many = [{"item_id": [f"sku-{i % 200:05}"] * (1 + i % 3)} for i in range(300)]
        together = local.recommend(many, 3)
        alone = [local.recommend([many[i]], 3).items[0].tolist() for i in (0, 255, 256, 299)]
    assert [together.items[i].tolist() for i in (0, 255, 256, 299)] == alone


def test_command_prints_the_same_for_run_and_server(
    shop: Shop, server: TritonServer, tmp_path: Path
) -> None:
    url = f"http://{server.http_url}"
    log = tmp_path / "new.csv"
    synthesize(log, sessions=90, items=240, seed=5)
    filters = ["--filter-seen", "--exclude", "sku-00001,sku-00002", "--k", "7"]
    for options in (
        ["--input", log],
        ["--input", log, "--sessions", "3", *filters],
        ["--input", log, "--candidates", "sku-00003,sku-00004,unknown"],
        ["--items", "sku-00005,unknown,sku-00009", "--keep-seen"],
        ["--items", "sku-00005,sku-00009", *filters],
    ):
        records = recommend(shop.run, *options)
        assert records
        assert_same_records(records, recommend(url, *options))
    columns = [
        word
        for name, values in SESSION.items()
        if name != "item_id"
        for word in ("--column", f"{name}={','.join(map(str, values))}")
    ]
    items = ["--items", ",".join(SESSION["item_id"])]
    records = recommend(shop.run, *items, *columns)
    assert_same_records(records, recommend(url, *items, *columns))
    plain = recommend(shop.run, *items)
    assert records[0]["recommendations"] != plain[0]["recommendations"]  # columns are read


def test_command_refuses_candidates_of_which_none_is_known(
    shop: Shop, server: TritonServer
) -> None:
    for target in (shop.run, f"http://{server.http_url}", f"grpc://{server.grpc_url}"):
        command = ["recommend", str(target), "--items", "sku-00001", "--candidates"]
        with pytest.raises(
            ConfigError, match=r"^None of the 2 candidates \('a', 'b'\) is in the catalogue"
        ):
            CliRunner().invoke(app, [*command, "a,b"], catch_exceptions=False)
        result = CliRunner().invoke(app, [*command, "a,sku-00003,b,a"], catch_exceptions=False)
        assert "sku-00003" in result.stdout
        assert result.stderr == "Warning: 2 ids of --candidates are not in the catalogue.\n"
        result = CliRunner().invoke(app, [*command, "sku-00003"], catch_exceptions=False)
        assert (result.exit_code, result.stderr) == (0, "")


def test_input_is_a_glob_standard_input_or_remote(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "session,product,time,category,action,price,device\n{},sku-00001,2026-01-01,,,,\n"
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(text.format(name))
        fsspec.filesystem("memory").pipe_file(f"/recommend/{name}.csv", text.format(name).encode())
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    for words, ids in (
        ([f"{tmp_path}/*.csv"], ["a", "b"]),
        ([f"{tmp_path}/b.csv", "memory://recommend/a.csv"], ["b", "a"]),
        (["memory://recommend/*.csv"], ["a", "b"]),
        (["-"], ["c"]),
    ):
        options = [option for word in words for option in ("--input", word)]
        command = ["recommend", str(shop.run), *options, "--json"]
        result = CliRunner().invoke(app, command, input=text.format("c"), catch_exceptions=False)
        records = json.loads(result.stdout)["sessions"]
        assert [record["session_id"] for record in records] == ids
        assert all(record["num_known"] == 1 for record in records)
    assert list(temporary.iterdir()) == []


def test_command_warns_of_sessions_without_a_known_item(
    shop: Shop, server: TritonServer, tmp_path: Path
) -> None:
    log = tmp_path / "new.csv"
    log.write_text(
        "session,product,time,category,action,price,device\n"
        "one,sku-00001,2026-01-01,,,,\none,nothing,2026-01-02,,,,\ntwo,nothing,2026-01-03,,,,\n"
    )
    whole = "Warning: no item id of {} is in the model's catalogue."
    for target in (shop.run, f"http://{server.http_url}"):
        for words, counts, warning in (
            (["--items", "sku-00001,unknown,sku-00002"], [2], ""),
            (["--items", "unknown,1"], [0], whole.format("the session")),
            (["--input", str(log)], [1, 0], whole.format("1 of 2 sessions, such as two")),
        ):
            command = ["recommend", str(target), *words, "--json"]
            result = CliRunner().invoke(app, command, catch_exceptions=False)
            records = json.loads(result.stdout)["sessions"]
            assert [record["num_known"] for record in records] == counts
            lines = [line for line in result.stderr.splitlines() if "catalogue" in line]
            assert [line[: len(warning)] for line in lines] == [warning] * bool(warning)


def test_integer_ids_and_a_bidirectional_architecture(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    rows = ["visitor,thing,at"]
    for visitor in range(400):
        begin = int(random.integers(0, 900_000))
        for step in range(int(random.integers(2, 8))):
            thing = 9_007_199_254_740_993 + int(random.integers(0, 40)) * 1_000_003
            rows.append(f"{visitor},{thing},{begin + 40 * step}")
    log = tmp_path / "log.csv"
    log.write_text("\n".join(rows))
    recipe = Recipe.from_dict(
        {
            "preprocess": {
                "session": "visitor",
                "item": "thing",
                "timestamp": {"column": "at", "unit": "s", "features": ["hour", "elapsed"]},
                "max_sequence_length": 5,
                "filter_seen": True,
            },
            "model": {"architecture": "xlnet", "masking": "mlm", "d_model": 16, "n_layer": 1},
            "train": {"epochs": 1},
        },
        "test",
    )
    preprocess(recipe.preprocess, [log], [], tmp_path / "data")
    train(tmp_path / "data", recipe.model, recipe.train, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "repository")
    with running_server(tmp_path / "repository", ports=free_ports()) as server:
        options = ["--input", log, "--sessions", "100"]
        records = recommend(tmp_path / "run", *options)
        assert_same_records(records, recommend(f"grpc://{server.grpc_url}", *options))
    ids = {entry["item_id"] for record in records for entry in record["recommendations"]}
    assert len(records) == 100
    assert all((i - 9_007_199_254_740_993) % 1_000_003 == 0 for i in ids)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{}/rum", "--items", "a"], "is no address, expected http://HOST:PORT, grpc"),
        (
            ["{}/repository", "--items", "a"],
            "is a repository directory, expected a run directory. Give one",
        ),
        (
            ["{}/clicks.csv.gz", "--items", "a"],
            "and no directory, expected one that `pipeline train` wrote",
        ),
        (["https://127.0.0.1:9", "--items", "a"], "is no address, expected http://HOST:PORT"),
        (["{}/run", "--items", "a", "--name", "other"], "--name chooses a model of a server"),
        (["{}/run", "--items", "a", "--k", "201"], "k is 201, expected 1 to 200, the items of"),
        (["{}/run", "--items", "a", "--k", "0"], "--k is 0, expected 1 or more"),
        (["{}/run", "--items", "a", "--column", "colour=red"], "has no column 'colour'"),
        (["{}/run", "--items", "a", "--column", "price=dear"], "expected numbers"),
        (["{}/run", "--input", "{}/none.csv"], "none.csv does not exist"),
        (["http://[::1]:9", "--items", "a"], "an address of IPv6"),
        (["{}/run", "--items", "a", "--candidates", ""], "candidates is empty"),
        (["{}/run"], "Give either --items A,B,C or --input LOG"),
    ],
)
def test_wrong_command_is_one_line(shop: Shop, words: list[str], said: str) -> None:
    arguments = [word.format(shop.run.parent) for word in words]
    with pytest.raises(PipelineError) as raised:
        CliRunner().invoke(app, ["recommend", *arguments], catch_exceptions=False)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_diverged_model_is_an_error(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, model = load_served(Run.open(shop.run))
    for scored in (model.items, model.transposed):  # a copy of the table where scores are cosines
        scored.fill_(float("nan"))
    monkeypatch.setattr("pipeline.exporting.run.load_served", lambda _: (fitted, model))
    with open_run(shop.run) as local, pytest.raises(PipelineError, match="its training diverged"):
        local.recommend([SESSION], 3)


def test_refused_request_has_the_message_of_the_server(shop: Shop) -> None:
    with open_run(shop.run) as local:
        with pytest.raises(ConfigError, match="item_id is missing"):
            local.infer({"price": np.ones((1, 2))})
        with pytest.raises(ConfigError, match="not text in UTF-8"):
            local.recommend([{"item_id": ["\ud800"]}])
        assert len(local.recommend([SESSION], 200).items[0]) == 200

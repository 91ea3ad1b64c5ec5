"""`python -m benchmarks proxy` on a small repository, with a real Triton."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.proxy import proxy_text
from tests.conftest import Shop


@pytest.mark.slow
def test_proxy_is_measured_beside_triton_itself(shop: Shop, tmp_path: Path) -> None:
    words = ["proxy", str(shop.repository), "--clients", "1,2", "--seconds", "0.3", "--turns", "1"]
    words += ["--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    facts = json.loads(result.stdout)
    assert json.loads((tmp_path / "out" / "proxy.json").read_text()) == facts
    loads = [(row["protocol"], row["clients"]) for row in facts["rows"]]
    assert loads == [("grpc", 1), ("grpc", 2), ("http", 1), ("http", 2)]
    for row in facts["rows"]:
        assert row["proxy"]["processor_ms"] > row["triton"]["processor_ms"]
        assert all(row[way]["requests_per_second"] > 0 for way in ("proxy", "triton"))
    lines = proxy_text(facts).splitlines()
    assert [line.split()[:2] for line in lines[-4:]] == [
        ["grpc,", "1"], ["grpc,", "2"], ["http,", "1"], ["http,", "2"],
    ]  # fmt: skip

"""Programs of the pages, run in a folder as the pages assume it: a log, data, runs and a server."""

import contextlib
import io
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pipeline.serve.triton.server import TritonServer
from tests.conftest import ROOT, Shop
from tests.test_docs import PAGES, blocks, name_of, text_of

ADDRESSES = ("grpc://127.0.0.1:8001", "http://127.0.0.1:8000")
RUN_PROGRAMS = [
    ("how-to/build-a-model.md", [0, 1]),
    ("how-to/compare.md", [0]),
    ("how-to/predict.md", [0]),
    ("how-to/serve.md", [1]),
    ("tutorials/from-a-log-to-triton.md", [0]),
]
SERVER_PROGRAMS = [
    ("how-to/filters.md", 0),
    ("how-to/serve.md", 0),
    ("tutorials/from-a-log-to-triton.md", 1),
]


@pytest.fixture
def folder(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with `data/shop`, runs and `shop.yaml`, whose trainings take seconds."""
    shutil.copytree(shop.data, tmp_path / "data/shop")
    for name in ("shop", "sasrec/seed-0", "gru/seed-0"):
        shutil.copytree(shop.run, tmp_path / "runs" / name)
    values = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    values["train"] = {"epochs": 1}
    (tmp_path / "shop.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_programs(programs: list[str], namespace: dict[str, object]) -> str:
    """Run programs one after the other, and return what they print."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        for program in programs:
            exec(compile(program, "docs", "exec"), namespace)  # noqa: S102
    return output.getvalue()


@pytest.mark.parametrize(("page", "numbers"), RUN_PROGRAMS, ids=[page for page, _ in RUN_PROGRAMS])
def test_programs_of_a_page_run_on_a_run(folder: Path, page: str, numbers: list[int]) -> None:
    programs = blocks(text_of(page), "python")
    namespace: dict[str, object] = {}
    printed = run_programs([programs[number] for number in numbers], namespace)
    if page == "how-to/predict.md":
        assert len(pd.read_parquet(folder / "lists.parquet")["item_ids"][0]) == 20
    if page == "how-to/compare.md":
        assert {column.mean() > 0 for column in namespace["hits"].values()} == {True}  # type: ignore[attr-defined]
    else:
        assert "sku-" in printed


@pytest.mark.parametrize(("page", "number"), SERVER_PROGRAMS, ids=[p for p, _ in SERVER_PROGRAMS])
def test_program_of_a_page_asks_a_server(
    server: TritonServer, shop: Shop, page: str, number: int
) -> None:
    program = blocks(text_of(page), "python")[number]
    for address in ADDRESSES:
        protocol = address.partition(":")[0]
        own = server.grpc_url if protocol == "grpc" else server.http_url
        program = program.replace(address, f"{protocol}://{own}")
    namespace: dict[str, object] = {"clicks": pd.read_csv(shop.clicks).head(20)}
    printed = run_programs([program], namespace)
    assert "sku-" in (printed or str(namespace["answer"].items))  # type: ignore[attr-defined]


def test_programs_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its recipe, on a log with the columns of the recipe."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    recipe = blocks(readme, "yaml")[0]
    (tmp_path / "shop.yaml").write_text(f"{recipe}train: {{epochs: 1}}\n")
    (tmp_path / "logs").mkdir()
    items = [1004856, 1004767, *range(1005100, 1005128)]
    rows = [
        {
            "user_session": session,
            "product_id": items[(session + step) % 30],
            "event_time": f"2019-10-{1 + session // 40:02} {session % 24:02}:{step:02}:00 UTC",
            "brand": "ab"[(session + step) % 2],
            "price": 10.5 + (session + step) % 30,
        }
        for session in range(400)
        for step in range(4)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "logs/clicks.csv", index=False)
    monkeypatch.chdir(tmp_path)
    printed = run_programs(blocks(readme, "python"), {})
    assert "session-knn" in printed
    assert "1005100" in printed
    assert (tmp_path / "repository/recommender/config.pbtxt").is_file()
    assert (tmp_path / "runs/own/model.safetensors").is_file()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_shell_lines_of_a_page_parse(page: Path) -> None:
    for code in blocks(page.read_text(encoding="utf-8"), "bash"):
        done = subprocess.run(["bash", "-n"], input=code, text=True, capture_output=True)
        assert done.returncode == 0, f"{code}\n{done.stderr}"

"""The command line as a person meets it: help, results, and one line for every mistake."""

import errno
import json
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import yaml
from typer.testing import CliRunner

from pipeline.cli.console import _exit_code
from pipeline.cli.main import app
from pipeline.core.errors import ArtifactError, PipelineError
from pipeline.evaluation.baselines import BASELINES
from tests.conftest import ROOT, Shop

COMMANDS = [
    *("demo", "synthesize", "preprocess", "train", "evaluate", "predict", "export", "serve"),
    *("recommend", "report", "update", "rollback"),
]


def pipeline(*arguments: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
    )


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_an_example_and_imports_no_stage(command: str) -> None:
    code = (
        "import sys; sys.argv = ['pipeline', *sys.argv[1:]]\n"
        "from pipeline.cli.main import main\n"
        "try: main()\n"
        "finally:\n"
        "    heavy = {'torch', 'nvtabular', 'merlin', 'pandas', 'dask', 'transformers', 'numpy'}\n"
        "    loaded = {name for name in heavy if sys.modules.get(name)}\n"
        "    assert not loaded, loaded\n"
    )
    words = [command, "--help"] if command else ["--help"]
    result = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    assert not command or f"Example: pipeline {command}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "Missing argument 'DATA'"),
        (["train", "x", "--recipe", "nope.yaml", "--out", "y"], "nope.yaml does not exist"),
        (["train", "none", "--recipe", "configs/demo.yaml", "--out", "y"], "none does not exist"),
        (["preprocess", "a.csv", "--out", "y"], "Missing option '--recipe'"),
        (
            ["preprocess", "no.csv", "--recipe", "configs/demo.yaml", "--out", "y"],
            "no.csv does not exist",
        ),
        (
            ["preprocess", "README.md", "--recipe", "configs/demo.yaml", "--out", "y"],
            "cannot tell the format from the name",
        ),
        (
            [
                "preprocess",
                "a.csv",
                "--recipe",
                "configs/demo.yaml",
                "--set",
                "preprocess.sesion=x",
                "--out",
                "y",
            ],
            "unknown key `preprocess.sesion`; did you mean `session`?",
        ),
        (["evaluate", "none", "--data", "none"], "none does not exist"),
        (["evaluate", "none", "--data", "x", "--cutoffs", "0"], "expected whole numbers from 1"),
        (["report", "none", "--data", "none", "--out", "y.html"], "none does not exist. Run"),
        (["predict", "none", "--data", "x", "--out", "y.parquet"], "none does not exist. Run"),
        (["predict", "none", "--data", "x"], "Missing option '--out'"),
        (["predict", "x", "--data", "x", "--part", "night", "--out", "y"], "'night' is not one of"),
        (
            ["predict", "x", "--data", "x", "--k", "3", "--embeddings", "items", "--out", "y"],
            "are for lists. Leave them out, or --embeddings",
        ),
        (["export", "none", "--out", "y"], "none does not exist. Run `pipeline train"),
        (["serve", "none"], "none does not exist. Run `pipeline export"),
        (["serve", "none", "--http-port", "99999"], "ports are http 99999"),
        (["serve", "none", "--page-port", "8003"], "--page-port goes with --page."),
        (["serve", "none", "--page", "--page-port", "70000"], "Choose another --page-port"),
        (["recommend", "localhost", "--items", "1"], "is no address, expected http://HOST:PORT"),
        (["recommend", "http://127.0.0.1:9"], "Give either --items A,B,C or --input LOG"),
        (["recommend", "http://127.0.0.1:9", "--items", "1"], "No server answers at"),
        (["synthesize", "--out", "x.txt"], "ends in .csv, .csv.gz or .parquet"),
        (["synthesize", "--out", "x.csv", "--sessions", "-4"], "--sessions is -4"),
        (["synthesize", "--out", "configs/demo.yaml.csv/x.csv", "--seed", "-1"], "seed -1"),
        (["demo", "--out", "configs"], "configs holds something else"),
    ],
)
def test_wrong_arguments_print_one_line_and_exit_with_2(arguments: list[str], words: str) -> None:
    result = pipeline(*arguments)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert words in lines[0]


WRONG = {
    "tune {data} --recipe {recipe} --space x.yaml --trials 1 --out {run}": "did not write",
    "report {run} --data {data} --out page": "ends in .html",
    "export {run} --out out --max-k 0": "expected 1 to --max-k",
    "export {run} --out out --name ../x": "--name is '../x'",
    "predict {run} --data {data} --out lists.parquet --k 0": "--k is 0, expected 1 or more",
    "recommend {run} --items a --k 0": "--k is 0, expected 1 or more",
    "recommend {run} --items a --column price": "NAME=V,V",
    "recommend {run} --input none.csv": "none.csv does not exist",
    "evaluate {run} --data {data} --by ''": "--by is '', expected names",
    "compare {run} --data {data} --metrics ,": "--metrics is ',', expected names",
    "recommend {data} --items a": "is a data directory, expected a run directory",
    "train {data} --recipe {recipe} --out out --set train.metric=foo": "`metric` is 'foo'",
    "train {data} --recipe {recipe} --out out --windows 1d --restart": "Leave out --restart",
}
"""Command lines with the reason why each is refused."""


@pytest.mark.parametrize("line", WRONG)
def test_wrong_arguments_are_refused_before_heavy_imports(shop: Shop, line: str) -> None:
    code = (
        "import sys; sys.argv = ['pipeline', *sys.argv[1:]]\n"
        "from pipeline.cli.main import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'merlin', 'pandas', 'transformers'} & {*sys.modules}\n"
    )
    names = {"data": shop.data, "run": shop.run, "recipe": "configs/demo.yaml"}
    words = shlex.split(line.format(**names))
    command = [sys.executable, "-c", code, *words]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2, result.stderr
    assert WRONG[line] in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_every_stage_prints_its_facts_as_json(shop: Shop, tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text((ROOT / "configs" / "demo.yaml").read_text())
    small = ["--set", "model.d_model=8", "--set", "model.n_layer=1", "--set", "train.epochs=1"]
    data, run, repository = (tmp_path / name for name in ("data", "run", "repository"))
    steps: list[list[str | Path]] = [
        ["preprocess", shop.clicks, "--recipe", config, "--out", data],
        ["train", data, "--recipe", config, "--out", run, *small],
        ["evaluate", run, "--data", data, "--cutoffs", "20"],
        ["export", run, "--out", repository],
    ]
    runner = CliRunner()  # in this process: the imports of each stage take seconds
    for step in steps:
        result = runner.invoke(app, [*map(str, step), "--json"], catch_exceptions=False)
        assert result.exit_code == 0
        assert isinstance(json.loads(result.stdout), dict)
    text = runner.invoke(app, list(map(str, steps[2])), catch_exceptions=False).stdout
    for row in ("run", *BASELINES):
        assert re.search(rf"^{row} +(0\.\d{{4}} ±\.\d{{4}} +){{3}}0", text, re.MULTILINE), text
    assert re.search(r"^ +recall@20 .* coverage@20  popularity@20  bias@20$", text, re.MULTILINE)
    best = r"^recall@20 minus that of [a-z-]+, the best baseline: [+-]0\.\d{4} ±\.\d{4}$"
    assert re.search(best, text, re.MULTILINE), text
    assert "recall@20 by" not in text
    assert max(map(len, text.splitlines())) < 100
    steps[2].append("--breakdown")
    text = runner.invoke(app, list(map(str, steps[2])), catch_exceptions=False).stdout
    assert "recall@20 by interactions before the target" in text
    assert re.search(r"^4 to 5 +\d+  0\.\d{4} ±\.\d{4} +0\.\d{3} .* 0\.\d{3}$", text, re.MULTILINE)
    page = tmp_path / "page.html"
    words = ["report", run, "--data", data, "--cutoffs", "20", "--out", page]
    output = runner.invoke(app, list(map(str, words)), catch_exceptions=False).stdout
    assert output == f"Wrote {page}, and the same numbers to {tmp_path / 'page.json'}.\n"
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_predict_writes_lists_or_vectors(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "excluded").write_text("sku-00001\r\n\n  sku-00002 \nsku-x")
    out = tmp_path / "lists.parquet"
    runner = CliRunner()

    def predict(*options: str | Path) -> str:
        words = ["predict", shop.run, "--data", shop.data, "--out", out, *options]
        result = runner.invoke(app, list(map(str, words)), catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout

    filters = ["--filter-seen", "--exclude", f"@{tmp_path}/excluded"]
    facts = json.loads(predict("--k", "5", *filters, "--json"))
    table = pq.read_table(out)
    assert facts["sessions"] == table.num_rows > 50
    assert facts["unknown_excluded"] == 1
    assert not {"sku-00001", "sku-00002"} & {
        i for row in table["item_ids"].to_pylist() for i in row
    }
    (tmp_path / "candidates").write_text("sku-00001\nsku-00003")
    assert predict("--candidates", f"@{tmp_path}/candidates").splitlines() == [
        f"{table.num_rows} lists are shorter: the filters left no more items.",
        f"Wrote {out}: {table.num_rows} test sessions, lists of 20.",
    ]
    assert set(pq.read_table(out)["item_ids"][0].as_py()) == {"sku-00001", "sku-00003"}
    assert "200 items, vectors of 32 numbers" in predict("--embeddings", "items")
    assert json.loads(predict("--embeddings", "sessions", "--json"))["width"] == 32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--k", "201"], "k is 201, expected 1 to 200."),
        (["--k", "0"], "--k is 0, expected 1 or more."),
        (["--exclude", "@{}/none"], "none cannot be read: No such file or directory."),
        (["--candidates", "@{}"], "cannot be read: Is a directory."),
        (["--candidates", "@{}/empty"], "empty is empty, expected one item id a line."),
        (["--exclude", "@{}/binary"], "binary is not text in UTF-8"),
        (["--candidates", "@{}/others"], "None of the 2 candidates ('a', 'b') is in"),
        (["--out", "{}/lists.csv"], "expected a name that ends in .parquet"),
        (["--out", "{}/log.parquet"], "log.parquet holds something else"),
        (["--data", "{}"], "is incomplete: missing manifest.json"),
    ],
)
def test_failed_predict_leaves_no_file(
    shop: Shop, tmp_path: Path, options: list[str], words: str
) -> None:
    contents = {"empty": b" \n", "binary": b"\xff\xfe", "others": b"a\nb", "log.parquet": b"PAR1"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    arguments = ["predict", shop.run, "--data", shop.data, "--out", tmp_path / "o.parquet"]
    options = [*map(str, arguments), *(option.format(tmp_path) for option in options)]
    with pytest.raises(PipelineError) as raised:
        CliRunner().invoke(app, options, catch_exceptions=False)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert {path.name for path in tmp_path.iterdir()} == set(contents)
    assert (tmp_path / "log.parquet").read_bytes() == b"PAR1"


def test_serve_answers_and_stops_on_sigterm(shop: Shop, tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    ports += ["--page", "--page-port", "0"]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pipeline",
            "serve",
            str(shop.repository),
            *ports,
            "--log",
            str(log),
            "--json",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        facts = json.loads(process.stdout.readline())
        for url in (facts["http"], facts["grpc"]):
            result = pipeline("recommend", url, "--input", shop.clicks, "--k", "3", "--json")
            assert result.returncode == 0, result.stderr
            sessions = json.loads(result.stdout)["sessions"]
            assert len(sessions) == 1_500
            assert all(len(s["recommendations"]) == 3 for s in sessions)
        columns = {
            "timestamp": "2026-01-05 00:00:00,2026-01-05 00:00:05",
            "action": "view,view",
            "category": "category-01,category-01",
            "price": "3.5,4",
            "device": "phone",
        }
        options = [w for n, v in columns.items() for w in ("--column", f"{n}={v}")]
        question = ["recommend", facts["http"], "--items", "sku-00001,sku-00002"]
        result = pipeline(*question, *options, "--k", "4")
        assert result.returncode == 0, result.stderr
        assert len(re.findall(r"^ +\d +sku-\d{5} +-?\d+\.\d{4}$", result.stdout, re.MULTILINE)) == 4
        for extra, words in (
            (["--k", "101"], "k is 101, expected 1 to 100"),
            (["--k", "4", "--column", "price=a,b"], "price is ['a', 'b'], expected numbers"),
            (["--name", "nobody"], "nobody"),
        ):
            result = pipeline(*question, *options, *extra)
            assert result.returncode == 2
            assert words in result.stderr
            assert len(result.stderr.strip().splitlines()) == 1
        few = ["--exclude", "sku-00003", "--candidates", "sku-00003,sku-00004", "--json"]
        result = pipeline(*question, *few)
        [session] = json.loads(result.stdout)["sessions"]
        assert [r["item_id"] for r in session["recommendations"]] == ["sku-00004"]
        assert facts["page"].startswith("http://127.0.0.1:")
        with urllib.request.urlopen(facts["page"] + "api/items?search=17&limit=3") as response:
            assert "sku-00017" in json.load(response)["items"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(facts["page"])
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def start_command(folder: Path, arguments: list[str | Path]) -> subprocess.Popen[str]:
    """A command that writes `folder`/data, in the middle of it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    deadline = time.monotonic() + 60
    while not list(folder.glob(".data.partial-*/fitted")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    return process


def test_killed_stage_leaves_no_usable_output(shop: Shop, tmp_path: Path) -> None:
    data = tmp_path / "data"
    arguments = [
        "preprocess",
        shop.clicks,
        "--recipe",
        ROOT / "configs" / "demo.yaml",
        "--out",
        data,
    ]
    process = start_command(tmp_path, arguments)
    process.kill()
    process.communicate()
    result = pipeline("train", data, "--recipe", "configs/demo.yaml", "--out", tmp_path / "run")
    assert result.returncode == 2
    assert "does not exist. Run `pipeline preprocess" in result.stderr
    assert pipeline(*arguments).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["data"], "the leftover is gone"


def test_if_needed_skips_a_stage_with_current_output(shop: Shop, tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text((ROOT / "configs" / "demo.yaml").read_text())
    small = ["--set", "model.d_model=8", "--set", "model.n_layer=1", "--set", "train.epochs=1"]
    logs, data, run, repository = (tmp_path / n for n in ("logs", "data", "run", "repository"))
    logs.mkdir()
    (logs / "clicks.csv.gz").write_bytes(shop.clicks.read_bytes())
    steps: list[list[str | Path]] = [
        ["preprocess", logs, "--recipe", config, "--out", data],
        ["train", data, "--recipe", config, "--out", run, *small],
        ["export", run, "--out", repository],
    ]
    runner = CliRunner()

    def done() -> list[bool]:
        """Which of the steps did something, asked to do what is needed."""
        worked = []
        for step, out in zip(steps, (data, run, repository), strict=True):
            before = (out / "manifest.json").stat().st_ino if out.exists() else None
            arguments = [*map(str, step), "--if-needed"]
            result = runner.invoke(app, arguments, catch_exceptions=False)
            assert result.exit_code == 0
            worked.append((out / "manifest.json").stat().st_ino != before)
            assert worked[-1] == ("is up to date" not in result.stdout)
        return worked

    assert done() == [True, True, True]
    assert done() == [False, False, False]
    facts = runner.invoke(app, [*map(str, steps[0]), "--if-needed", "--json"]).stdout
    assert json.loads(facts)["catalogue_items"] == 200
    (run / "model.safetensors").write_bytes(b"half of it")
    assert done() == [False, True, True]  # training takes note of its seconds: another run
    steps[2].append("--k=5")
    assert done() == [False, False, True]
    (logs / "more.csv").write_text(
        "session,product,time,category,price,action,device\n"
        "x,sku-00001,2026-01-05 00:00:00,category-01,1,view,phone\n"
        "x,sku-00002,2026-01-05 00:00:01,category-01,1,view,phone\n"
    )
    assert done() == [True, True, True]
    assert done() == [False, False, False]
    # asked for without --if-needed, work is done
    assert runner.invoke(app, [*map(str, steps[2])]).exit_code == 0
    assert json.loads((repository / "manifest.json").read_text())["facts"]["version"] == 5


def test_train_notes_data_made_by_another_recipe(shop: Shop, tmp_path: Path) -> None:
    recipe = shop.recipe.model_dump(mode="json")
    small = recipe["model"] | {"d_model": 8, "n_layer": 1}
    config = tmp_path / "recipe.yaml"

    def note_of(values: dict[str, Any], *more: str) -> str:
        config.write_text(yaml.safe_dump(values | {"model": small}))
        steps = ["train", shop.data, "--recipe", config, "--out", tmp_path / "run", *more]
        one = ["--set", "train.epochs=1"]
        result = CliRunner().invoke(app, [*map(str, steps), *one], catch_exceptions=False)
        assert result.exit_code == 0
        return "".join(line for line in result.stderr.splitlines() if line.startswith("Note: "))

    assert note_of(recipe) == ""
    assert note_of({}) == ""  # it says how to train alone
    changes = ["--set", "preprocess.min_item_count=3", "--set", "preprocess.split="]
    assert note_of(recipe, *changes) == (
        f"Note: {shop.data} was made with other `min_item_count`, `split` than {config} has now. "
        "Preprocess again to train with those."
    )


def test_sigterm_removes_partial_output(shop: Shop, tmp_path: Path) -> None:
    arguments = ["preprocess", shop.clicks, "--recipe", "configs/demo.yaml"]
    process = start_command(tmp_path, [*arguments, "--out", tmp_path / "data"])
    process.terminate()
    _, output = process.communicate(timeout=30)
    assert process.returncode == 143
    assert output.splitlines()[-1].endswith("Stopped.")
    assert list(tmp_path.iterdir()) == []


def damage_for_want_of_memory() -> None:
    try:
        raise pa.ArrowMemoryError("malloc of size 704 failed")
    except pa.ArrowException:
        raise ArtifactError("data does not hold together.") from None


def no_memory_in_torch() -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes")


def no_handles() -> None:
    raise OSError(errno.EMFILE, "Too many open files", "part-0.parquet")


def full_standard_output() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (damage_for_want_of_memory, "out of memory: malloc of size 704 failed."),
        (no_memory_in_torch, "out of memory: DefaultCPUAllocator: can't allocate memory: 8 bytes."),
        (no_handles, "part-0.parquet: Too many open files."),
        (full_standard_output, "Standard output: No space left on device."),
    ],
)
def test_lack_of_memory_handles_or_space_is_one_line(
    command: Any, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = typer.Typer()
    failing.command()(command)
    monkeypatch.setattr(sys, "argv", ["pipeline"])
    assert _exit_code(failing, "pipeline") == 2
    assert capsys.readouterr().err.startswith(f"Error: {line}")


def test_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = typer.Typer()

    @failing.command()
    def bug() -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(sys, "argv", ["pipeline"])
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        _exit_code(failing, "pipeline")

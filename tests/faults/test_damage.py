"""One flipped bit in every file of every directory, and who finds it: docs/reference/faults.md.

Each row of the table is tried with the commands that it names.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import ArtifactError, PipelineError
from pipeline.core.manifest import MANIFEST
from pipeline.exporting.options import ExportOptions
from pipeline.exporting.run import export
from pipeline.serve.load_test import table_values
from pipeline.serve.run import running_server
from pipeline.updating.state import read_state
from tests.conftest import ROOT
from tests.faults.commands import Fault
from tests.faults.stages import RECIPE, STAGES, TRAIN, Bench, contents, update_of

pytestmark = pytest.mark.faults
IF_NEEDED = ["--if-needed"]
ANOTHER = ExportOptions(name="another")
PAGE = (ROOT / "docs" / "reference" / "faults.md").read_text(encoding="utf-8")
COMMANDS = {
    "data/*": {
        "train": ["train", "data", *TRAIN, "--out", "other"],
        "evaluate": ["evaluate", "IN/run", "--data", "data"],
        "predict": ["predict", "IN/run", "--data", "data", "--out", "other.parquet"],
        "compare": ["compare", "IN/run", "--data", "data"],
        "report": ["report", "IN/run", "--data", "data", "--out", "other.html"],
        "tune": [
            *["tune", "data", *TRAIN, "--space", "IN/space.yaml", "--trials", "1"],
            *["--out", "other"],
        ],
        "monitor": ["monitor", "IN/log", "--data", "data"],
        "preprocess --from": [
            *["preprocess", "IN/clicks.csv.gz", "--recipe", RECIPE, "--from", "data"],
            *["--out", "other"],
        ],
    },
    "run/*": {
        "evaluate": ["evaluate", "run", "--data", "IN/data"],
        "predict": ["predict", "run", "--data", "IN/data", "--out", "other.parquet"],
        "compare": ["compare", "run", "--data", "IN/data"],
        "report": ["report", "run", "--data", "IN/data", "--out", "other.html"],
        "recommend": ["recommend", "run", "--items", "sku-00001"],
        "export": ["export", "run", "--out", "other"],
        "train --from": ["train", "IN/data", *TRAIN, "--from", "run", "--out", "other"],
    },
    "repository/*": {"rollback": ["rollback", "repository"]},
    "log/requests-*.parquet": {"monitor": ["monitor", "log", "--data", "IN/data"]},
}
"""Commands of the rows whose damage ends a command, by the name of the row and of the command."""


def table() -> dict[str, str]:
    """Rows of the table: files, and what finds a flipped bit."""
    section = PAGE.partition("## Damaged files")[2]
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", section, flags=re.MULTILINE)
    return {files.strip("`"): commands for files, commands in rows[2:]}


def flipped(file: Path) -> Iterator[str]:
    """Flip a bit at the begin, in the middle and at the end of a file, one after the other."""
    content = file.read_bytes()
    for place in sorted({0, len(content) // 2, len(content) - 1}):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        file.write_bytes(damaged)
        yield f"{file.name}, byte {place} of {len(content)}"
    file.write_bytes(content)


def files_of(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def copied(bench: Bench, source: Path, name: str) -> Path:
    """Return a folder that holds a copy of a directory alone."""
    folder = bench.folder / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copytree(source, folder / name)
    return folder


def source_of(bench: Bench, name: str) -> Path:
    """Return a directory to damage."""
    if name == "repository":
        bench.fresh("rollback")
        return bench.folder / "before rollback" / "out"
    return bench.inputs / name


def test_table_has_the_commands_that_are_tried() -> None:
    for files, commands in COMMANDS.items():
        words = re.findall(r"`([^`]+)`", table()[files])
        tried = {*commands, *(["serve", "load-test", "export"] if "repository" in files else [])}
        assert {*words} == tried, files


@pytest.mark.parametrize("files", ["data/*", "run/*", "repository/*"])
def test_flipped_bit_in_any_file_is_named_by_one_command(bench: Bench, files: str) -> None:
    name = files.partition("/")[0]
    folder = copied(bench, source_of(bench, name), name)
    commands = list(COMMANDS[files].values())
    for number, file in enumerate(files_of(folder / name)):
        for turn, where in enumerate(flipped(file)):
            command = commands[(number + turn) % len(commands)]
            line = bench.run(command, folder).error_line
            assert str(file.relative_to(folder / name)) in line, (command, where, line)
    assert [path.name for path in folder.iterdir()] == [name]


@pytest.mark.parametrize("files", ["data/*", "run/*"])
def test_every_command_of_a_row_finds_a_damaged_file(bench: Bench, files: str) -> None:
    name = files.partition("/")[0]
    folder = copied(bench, source_of(bench, name), name)
    for file in (folder / name / "report.json", folder / name / MANIFEST):
        for where in flipped(file):
            for command in COMMANDS[files].values():
                line = bench.run(command, folder).error_line
                assert file.name in line, (command, where, line)
    assert [path.name for path in folder.iterdir()] == [name]


def test_serve_load_test_and_export_name_the_damaged_file_of_a_repository(bench: Bench) -> None:
    folder = copied(bench, source_of(bench, "repository"), "repository")
    export(bench.inputs / "run", folder / "repository", ANOTHER)
    for file in files_of(folder / "repository"):
        for where in flipped(file):
            name = str(file.relative_to(folder / "repository"))
            with (
                pytest.raises(ArtifactError, match=re.escape(name)),
                running_server(folder / "repository"),
            ):
                raise AssertionError(where)
            with pytest.raises(ArtifactError, match=re.escape(name)):
                table_values(folder / "repository")
        if file.name != MANIFEST:
            content = file.read_bytes()
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            with pytest.raises(ArtifactError, match="It holds other models as well"):
                export(bench.inputs / "run", folder / "repository", ANOTHER)
            file.write_bytes(content)


@pytest.mark.parametrize("name", ["preprocess", "train", "export", "export --format onnx"])
def test_if_needed_writes_a_damaged_output_again(bench: Bench, name: str) -> None:
    new = bench.undisturbed(name)
    folder = bench.fresh(name)
    command = [*STAGES[name].command, *([] if "--if-needed" in STAGES[name].command else IF_NEEDED)]
    bench.prepare(command, folder)
    for file in files_of(folder / "out"):
        next(flipped(file))
        outcome = bench.run(command, folder)
        if name == "export" and outcome.status == 2:  # not its own any more
            assert "damaged" in outcome.stderr or "left alone" in outcome.stderr
        elif file.name == MANIFEST:
            assert "left alone" in outcome.error_line
            shutil.rmtree(folder / "out")
            bench.prepare(command, folder)
        else:
            assert outcome.status == 0, outcome.stderr
            if name != "export":  # which counts its versions
                assert contents(folder) == new, file


def test_damaged_checkpoint_gives_way_to_the_one_before(bench: Bench) -> None:
    new, folder = bench.undisturbed("train"), bench.fresh("train")
    calls = bench.run(STAGES["train"].command, folder, Fault.none(folder)).calls
    folder = bench.fresh("train")
    bench.run(STAGES["train"].command, folder, Fault(folder, first=int(0.9 * calls)))
    last = max((folder / ".out.checkpoints").glob("step-*"))
    whole = folder.with_name("whole")
    shutil.rmtree(whole, ignore_errors=True)
    shutil.copytree(folder, whole)
    for file in files_of(last):
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        next(flipped(file))
        outcome = bench.run(STAGES["train"].command, folder)
        assert outcome.status == 0, outcome.stderr
        [line] = [line for line in outcome.stderr.splitlines() if "The one before it" in line]
        assert file.name in line
        assert contents(folder) == new, file


def test_flipped_bit_in_the_state_of_an_update_is_named(bench: Bench) -> None:
    bench.undisturbed("update, first")
    folder = copied(bench, bench.folder / "after update, first" / "out", "out")
    file = folder / "out" / "update.json"
    for place in range(0, file.stat().st_size, 7):
        content = file.read_bytes()
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        if place % 5 == 0:
            assert "update.json" in bench.run(update_of("clicks"), folder).error_line
        else:
            with pytest.raises(PipelineError, match=r"update\.json"):
                read_state(folder / "out", "recommender")
        file.write_bytes(content)


def test_flipped_bit_in_lists_and_request_logs_gives_no_other_rows(bench: Bench) -> None:
    """Pages have checksums; in the footer a bit may be without a meaning."""
    bench.prepare(["predict", "run", "--data", "data", "--out", "lists.parquet"])
    bench.prepare(["evaluate", "run", "--data", "data", "--ranks", "ranks.parquet"])
    [log] = (bench.inputs / "log").iterdir()
    for file in (bench.inputs / "lists.parquet", bench.inputs / "ranks.parquet", log):
        table, content = pq.read_table(file), file.read_bytes()
        num_refused = 0
        for place in range(0, len(content), max(1, len(content) // 500)):
            damaged = bytearray(content)
            damaged[place] ^= 1 << (place % 8)
            try:
                read = pq.read_table(
                    pa.BufferReader(bytes(damaged)), page_checksum_verification=True
                )
            except (pa.ArrowException, OSError, ValueError):
                num_refused += 1
            else:
                assert read.columns == table.columns, (file.name, place)
        assert num_refused > 200
    folder = copied(bench, bench.inputs / "log", "log")
    [log] = (folder / "log").iterdir()
    content = log.read_bytes()
    log.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    line = bench.run(COMMANDS["log/requests-*.parquet"]["monitor"], folder).error_line
    assert log.name in line

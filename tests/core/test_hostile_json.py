"""Every JSON file that the stages read back, in forms that they never write: one line."""

import json
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.core.artifact import new_artifact, read_manifest
from pipeline.core.errors import PipelineError
from pipeline.core.manifest import MANIFEST, parse_manifest, write_manifest
from pipeline.data.directory import Data
from pipeline.model.run import Run
from pipeline.serve.load_test import table_values
from pipeline.training.checkpoint import read_state, write_state
from pipeline.updating.state import UpdateState
from pipeline.updating.state import read_state as read_update
from pipeline.updating.state import write_state as write_update
from tests.conftest import Shop

NOT_READ = {"report.json"}
"""Files for people and other programs, which no stage reads."""


def _open_data(path: Path) -> None:
    assert Data.open(path).fitted
    assert Data.open(path).recipe


def _open_run(path: Path) -> None:
    run = Run.open(path)
    assert run.fitted
    assert run.model


def _open_checkpoint(path: Path) -> None:
    read_manifest(path, "checkpoint")
    read_state(path)


OPENERS: dict[str, Callable[[Path], object]] = {
    "data": _open_data,
    "run": _open_run,
    "repository": table_values,
    "checkpoint": _open_checkpoint,
    "update": lambda path: read_update(path, "shop"),
}
FORMS: dict[str, Callable[[bytes], bytes]] = {
    "deep lists": lambda _: b"[" * 200_000,
    "deep objects": lambda text: b'{"deep": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    "100 MB of text": lambda text: text.rstrip() + b" " * 100_000_000,
    "a key twice": lambda text: b'{"key": 1, "key": 1, ' + text.lstrip()[1:],
    "a key twice inside": lambda text: b'{"new": [{"key": 1, "key": 2}], ' + text.lstrip()[1:],
    "NaN": lambda text: b'{"new": NaN, ' + text.lstrip()[1:],
    "infinity": lambda text: b'{"new": [-Infinity], ' + text.lstrip()[1:],
    "a number without end": lambda text: b'{"new": [1e999], ' + text.lstrip()[1:],
    "a list": lambda _: b"[1, 2]",
    "a text": lambda _: b'"text"',
    "null": lambda _: b"null",
    "an empty object": lambda _: b"{}",
    "no UTF-8": lambda text: b'{"new": "\xff", ' + text.lstrip()[1:],
    "UTF-16": lambda text: text.decode().encode("utf-16"),
    "cut off": lambda text: text.rstrip()[:-1],
    "empty": lambda _: b"",
}


@pytest.fixture(scope="module")
def artifacts(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory of each kind."""
    folder = tmp_path_factory.mktemp("artifacts")
    with new_artifact(folder / "checkpoint", "checkpoint", {"step": 1}) as path:
        write_state(path, {"best": float("inf"), "numbers": [1, 2]})
    (folder / "update").mkdir()
    write_update(folder / "update", UpdateState(name="shop"))
    own = {name: folder / name for name in ("checkpoint", "update")}
    return {"data": shop.data, "run": shop.run, "repository": shop.repository, **own}


def files_below(path: Path) -> list[str]:
    names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*.json"))
    return [name for name in names if Path(name).name not in NOT_READ]


def replace(path: Path, name: str, content: bytes) -> None:
    """Change a file of an artifact, whose manifest fits again."""
    (path / name).write_bytes(content)
    if name == MANIFEST or not (path / MANIFEST).exists():
        return
    manifest = parse_manifest(path)
    (path / MANIFEST).unlink()
    write_manifest(path, manifest.kind, manifest.facts, None)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("kind", OPENERS)
def test_json_that_was_never_written_is_one_line(
    kind: str, form: Callable[[bytes], bytes], artifacts: dict[str, Path], tmp_path: Path
) -> None:
    names = files_below(artifacts[kind])
    assert names
    for name in names:
        path = tmp_path / "artifact"
        shutil.copytree(artifacts[kind], path)
        OPENERS[kind](path)
        replace(path, name, form((path / name).read_bytes()))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.monotonic()
        with pytest.raises(PipelineError) as caught:
            OPENERS[kind](path)
        assert time.monotonic() - start < 5
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
        line = str(caught.value)
        assert "\n" not in line
        assert len(line) < 500
        assert str(path) in line
        assert Path(name).stem in line.removeprefix(str(tmp_path))
        shutil.rmtree(path)


def test_a_manifest_with_a_key_twice_is_damaged(shop: Shop, tmp_path: Path) -> None:
    """Its digest is of what Python's own reader makes of it."""
    path = tmp_path / "data"
    shutil.copytree(shop.data, path)
    text = (path / MANIFEST).read_text()
    (path / MANIFEST).write_text('{"format": 0, ' + text.lstrip()[1:])
    assert json.loads((path / MANIFEST).read_text()) == json.loads(text)
    with pytest.raises(PipelineError, match=f"{MANIFEST} is damaged"):
        Data.open(path)

"""Recordings of commands, which docs/hooks/recording.py draws."""

import importlib.util
import sys
from types import ModuleType
from xml.etree import ElementTree

import pytest

from tests.conftest import ROOT

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("recording", ROOT / "docs/hooks/recording.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "recording", module)
    spec.loader.exec_module(module)
    return module


def test_recording_shows_each_line_when_it_was_printed(recording: ModuleType) -> None:
    code = "import time; print('a <b>', flush=True); time.sleep(1); print('c' * 200)"
    first, second, third = recording.record([sys.executable, "-c", code])
    assert (first.seconds, second.text) == (0, "a <b>")
    assert third.seconds - second.seconds > 0.9
    image = ElementTree.fromstring(recording.draw([first, second, third]))  # noqa: S314
    texts = list(image.iter(f"{SVG}text"))
    assert [text.text for text in texts][1:] == ["a <b>", "c" * (recording.COLUMNS - 1) + "…"]
    assert texts[2].get("style") == f"animation-delay:{third.seconds:.2f}s"


def test_recording_moves_up_by_the_lines_beyond_the_screen(recording: ModuleType) -> None:
    lines = [recording.Line(float(i), "x") for i in range(recording.ROWS + 2)]
    assert f"100.000%{{transform:translateY({-2 * recording._LEADING}px)}}" in recording.draw(lines)


def test_recording_of_a_failed_command_is_refused(recording: ModuleType) -> None:
    with pytest.raises(recording.subprocess.CalledProcessError):
        recording.record([sys.executable, "-c", "raise SystemExit(2)"])

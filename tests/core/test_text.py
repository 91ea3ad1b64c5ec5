"""What a terminal shows of texts from data."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.console import note, print_result, set_up_logging
from pipeline.cli.recommend import recommendations_text
from pipeline.core.text import shown, shown_lines

EVIL = "sku\x1b]0;title\x07\x1b[2J\r\u202e42\n"
ESCAPED = "sku\\x1b]0;title\\x07\\x1b[2J\\r\\u202e42\\n"


@given(st.text())
def test_nothing_is_left_that_moves_a_cursor(text: str) -> None:
    line = shown(text)
    assert all(letter >= " " and not 0x7F <= ord(letter) <= 0x9F for letter in line)
    assert line.splitlines() in ([line], [])
    if text.isprintable():
        assert line == text
    lines = shown_lines(text)
    assert set(lines) - {"\n", "\t"} <= set(line)
    assert lines.count("\n") == text.count("\n")


@pytest.mark.parametrize("letter", ["\x1b", "\r", "\x07", "\x9b", "\u202e", "\u200b", "\u2060"])
def test_ids_that_differ_look_different(letter: str) -> None:
    assert shown(f"a{letter}b") == shown_lines(f"a{letter}b") == f"a{ascii(letter)[1:-1]}b"


def test_a_terminal_sees_escapes_and_json_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    record = {"session_id": EVIL, "recommendations": [{"item_id": EVIL, "score": 1.0}]}
    text = recommendations_text([record])
    assert text.count(ESCAPED) == 2
    assert "\x1b" not in text
    print_result(record, False, EVIL)
    assert capsys.readouterr().out == ESCAPED.replace("\\n", "\n") + "\n"
    print_result(record, True, EVIL)
    assert json.loads(capsys.readouterr().out) == record
    note(EVIL)
    set_up_logging(verbose=False)
    logging.getLogger("pipeline.core").warning("column %s", EVIL)
    assert capsys.readouterr().err.count("\\x1b[2J") == 2


def test_a_command_escapes_ids_and_names_of_columns(tmp_path: Path) -> None:
    evil = "<script>x</script>\x1b[2J\r\u202e\u200b\x9b"
    log, recipe = tmp_path / "log.jsonl", tmp_path / "recipe.yaml"
    rows = [{"session_id": f"{n // 4}{evil}", "item_id": f"{evil}{n % 9}"} for n in range(800)]
    log.write_text("".join(f"{json.dumps(row | {evil: evil})}\n" for row in rows))
    features = f"features: [{{name: c, kind: categorical, column: {json.dumps(evil)}}}]"
    for text, code in ((features, 0), ("item: other", 2)):
        recipe.write_text(f"preprocess:\n  {text}\n")
        command = [sys.executable, "-m", "pipeline", "preprocess", str(log), "--recipe"]
        done = subprocess.run(
            [*command, str(recipe), "--out", str(tmp_path / "data")],
            capture_output=True,
            check=False,
        )
        shown_text = (done.stdout + done.stderr).decode()
        assert done.returncode == code, shown_text
        assert shown_text == shown_lines(shown_text)
        assert ("\\x1b[2J" in shown_text) == (code == 2)
    assert "<script>x" not in (tmp_path / "data" / "report.html").read_text()

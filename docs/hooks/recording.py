"""Recording of a command as an animated SVG: `python docs/hooks/recording.py OUT.svg COMMAND ...`.

    python docs/hooks/recording.py docs/demo.svg pipeline demo --out demo

Each line appears when the command printed it; waits of more than `MAX_WAIT_SECONDS` are cut to it.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path

MAX_WAIT_SECONDS = 4.0
COLUMNS, ROWS = 104, 30
_FONT, _WIDTH, _LEADING, _MARGIN = 13, 7.8, 18, 16
"""Pixels: size and width of a character, height of a line, and space around the text."""


@dataclass(frozen=True)
class Line:
    """One line of a recording."""

    seconds: float
    """Time since the command began, with long waits cut."""
    text: str


def record(command: list[str]) -> list[Line]:
    """Run a command and return what it prints. CalledProcessError where it fails."""
    lines = [Line(0.0, f"$ {' '.join(command)}")]
    last = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None  # noqa: S101
        for text in process.stdout:
            now = time.monotonic()
            seconds = lines[-1].seconds + min(now - last, MAX_WAIT_SECONDS)
            lines.append(Line(seconds, text.rstrip()))
            last = now
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return lines


def draw(lines: list[Line]) -> str:
    """Return the recording as SVG: all lines in a column that moves up, each shown at its time."""
    width = 2 * _MARGIN + COLUMNS * _WIDTH
    height = 2 * _MARGIN + ROWS * _LEADING
    total = lines[-1].seconds
    steps = [
        f"{100 * line.seconds / total:.3f}%{{transform:translateY({(ROWS - 1 - i) * _LEADING}px)}}"
        for i, line in enumerate(lines)
        if i >= ROWS - 1
    ]
    texts = [
        f'<text y="{i * _LEADING}" style="animation-delay:{line.seconds:.2f}s"'
        f"{_style(line.text)}>{escape(_clip(line.text))}</text>"
        for i, line in enumerate(lines)
        if line.text
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}"'
            f' font-family="ui-monospace, Menlo, Consolas, monospace" font-size="{_FONT}">',
            "<style>",
            "text{fill:#d8dee9;white-space:pre;animation:show .01s both}.c{fill:#a3be8c}",
            "@keyframes show{from{opacity:0}to{opacity:1}}",
            f"@keyframes scroll{{0%{{transform:none}}{''.join(steps)}}}",
            f".all{{animation:scroll {total:.2f}s step-end both}}",
            "</style>",
            f'<rect width="{width:.0f}" height="{height}" rx="8" fill="#2e3440"/>',
            f'<svg x="{_MARGIN}" y="{_MARGIN}" width="{COLUMNS * _WIDTH:.0f}"'
            f' height="{ROWS * _LEADING}">',
            f'<g class="all"><g transform="translate(0 {_FONT})">',
            *texts,
            "</g></g></svg></svg>\n",
        ]
    )


def _style(text: str) -> str:
    return ' class="c"' if text.startswith("$ ") else ""


def _clip(text: str) -> str:
    return text if len(text) <= COLUMNS else f"{text[: COLUMNS - 1]}…"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(draw(record(sys.argv[2:])), encoding="utf-8")

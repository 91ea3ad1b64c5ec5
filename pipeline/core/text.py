"""Escapes of control characters in text from data, for terminals and pages.

An id or the name of a column may hold control characters, which move the cursor of a terminal,
change its title, or reverse the order of the text beside them (Unicode Standard Annex 9), and
letters without a width, by which two ids look the same. Files and JSON keep such texts unchanged.
"""

import re

_BIDIRECTIONAL = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_NO_WIDTH = "\u200b-\u200d\u2060-\u2064"
_CONTROL = re.compile(
    f"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff{_BIDIRECTIONAL}{_NO_WIDTH}]"
)
_LINES = {"\n", "\t"}


def shown(text: str) -> str:
    r"""Return one line: each control character, also a line break, is an escape such as \x1b."""
    return _CONTROL.sub(_escape, text)


def shown_lines(text: str) -> str:
    """Return several lines: as `shown`, but line breaks and tabs stay."""
    return _CONTROL.sub(lambda m: m[0] if m[0] in _LINES else _escape(m), text)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")

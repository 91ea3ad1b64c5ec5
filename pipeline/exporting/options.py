"""Options of an export, checked without torch."""

import re
from typing import Literal

from pipeline.core.errors import ConfigError

Device = Literal["cpu", "gpu"]
Scoring = Literal["fp32", "int8"]
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}")


def check_options(
    *, name: str, default_k: int, max_k: int, max_batch: int, device: str, scoring: str
) -> None:
    """ConfigError for options that are out of range or do not fit each other."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--name is {name!r}, expected up to 100 letters, digits, - and _.")
    if not 1 <= default_k <= max_k:
        raise ConfigError(f"--k is {default_k}, expected 1 to --max-k, which is {max_k}.")
    if not 1 <= max_batch <= 65_536:
        raise ConfigError(f"--max-batch is {max_batch}, expected 1 to 65536.")
    if device == "gpu" and scoring == "int8":
        raise ConfigError("--scoring int8 is for the CPU. Leave it out, or --device gpu.")

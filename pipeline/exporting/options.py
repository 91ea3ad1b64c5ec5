"""Options of an export, checked without torch."""

import re
from dataclasses import dataclass, fields
from typing import Literal

from pipeline.core.errors import ConfigError

Device = Literal["cpu", "gpu"]
Scoring = Literal["fp32", "int8"]
Format = Literal["triton", "onnx"]
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a model is written and served. ConfigError for options that contradict each other."""

    format: Format = "triton"
    """A Triton model repository, or an ONNX file with the tables that encode raw ids."""
    name: str = "recommender"
    """Name of the model for clients."""
    default_k: int = 10
    """Length of a list if a request has no `k`."""
    max_k: int = 100
    """Largest length of a list; the whole catalogue, if that is smaller."""
    max_batch: int = 256
    """Largest number of sessions in a batch."""
    device: Device = "cpu"
    """Device of the server; gpu needs a GPU during export too."""
    scoring: Scoring = "fp32"
    """int8 is faster on a CPU for a large catalogue, with the same lists."""
    similar: bool = False
    """Serve the items similar to an item instead of the next items of a session."""
    workflow_backend: bool = False
    """Encode requests with the user's NVTabular workflow, in an image that has NVTabular."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"--name is {self.name!r}, expected up to 100 letters, digits, - and _."
            )
        if not 1 <= self.default_k <= self.max_k:
            raise ConfigError(
                f"--k is {self.default_k}, expected 1 to --max-k, which is {self.max_k}."
            )
        if self.similar and self.name == ExportOptions.name:
            raise ConfigError(
                "--similar makes a model beside the one that recommends. Give it a --name, such as "
                "similar-items."
            )
        if not 1 <= self.max_batch <= 65_536:
            raise ConfigError(f"--max-batch is {self.max_batch}, expected 1 to 65536.")
        if self.device == "gpu" and self.scoring == "int8":
            raise ConfigError("--scoring int8 is for the CPU. Leave it out, or --device gpu.")
        for field in fields(self) if self.format == "onnx" else ():
            of_onnx = field.name in ("format", "default_k", "max_k")
            if not of_onnx and getattr(self, field.name) != field.default:
                raise ConfigError(
                    f"--{field.name.replace('_', '-')} is an option of a Triton repository. Leave "
                    "it out with --format onnx."
                )

"""Estimates of time and memory: sums of terms of a model's shape times measured coefficients.

`python -m benchmarks sizing` measures the coefficients on one core and writes them, with the
measured shapes and machine, to `coefficients.json`. They are valid for CPUs only. A term counts
work or bytes, so no coefficient is negative. Terms of the encoder have one coefficient per
architecture; the others are shared.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any

from pipeline.core.errors import ConfigError

Terms = dict[str, float]
"""Value of each term by name; `name:architecture` for terms per architecture."""

COEFFICIENTS_FILE = "coefficients.json"
KEPT_SCORE_BYTES = 2**29
"""Maximum bytes of scores that the cross-entropy keeps in a step, as in `model.ops`."""
MASKED_SHARES = {"xlnet": 0.2}
"""Share of interactions that are targets, for architectures measured with mlm; the others are
measured with clm."""
BUSY_SHARE = 0.6
"""Maximum share of a serving core's time for requests; beyond it latencies rise steeply."""
_FLOAT_BYTES = 4
_GIBIBYTE = 1024**3


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Model and batch, in the shape letters of the documentation."""

    architecture: str
    items: int
    """V, the catalogue size."""
    d_model: int
    """D, the width of the model."""
    n_layer: int = 2
    batch_size: int = 128
    """B: sessions of a training step."""
    length: float = 5.0
    """Mean number of interactions of a session."""

    @property
    def parameters(self) -> float:
        """Number of weights: the item table and about 12 D squared per layer."""
        return self.items * self.d_model + 12 * self.n_layer * self.d_model**2

    @property
    def interactions(self) -> float:
        """Number of interactions of a training step."""
        return self.batch_size * self.length

    @property
    def keeps_scores(self) -> bool:
        """Whether a step keeps its scores for the backward pass instead of recomputing them."""
        return _FLOAT_BYTES * self.targets * self.items <= KEPT_SCORE_BYTES

    @property
    def targets(self) -> float:
        """Number of targets of a training step: all interactions except the first, or the masked
        ones."""
        masked = MASKED_SHARES.get(self.architecture)
        of_session = self.length - 1 if masked is None else masked * self.length
        return self.batch_size * max(of_session, 1.0)


def training_seconds(shape: Shape) -> Terms:
    """Terms of the processor time of a training step, on one core."""
    count, width, name = shape.interactions, shape.d_model, shape.architecture
    return {
        "step": 1.0,
        "optimizer": shape.parameters,
        "score": shape.targets * shape.items,
        "score_product": shape.targets * shape.items * width,
        "score_again": 0.0 if shape.keeps_scores else shape.targets * shape.items * width,
        f"interaction:{name}": count * width * shape.n_layer,
        f"layer:{name}": count * width**2 * shape.n_layer,
        f"attention:{name}": count * shape.length * width * shape.n_layer,
    }


def training_bytes(shape: Shape) -> Terms:
    """Terms of the peak memory of a training process."""
    count, name = shape.interactions, shape.architecture
    return {
        "process": 1.0,
        "parameters": _FLOAT_BYTES * shape.parameters,  # weights, gradients, two moments of Adam
        "scores": _FLOAT_BYTES * shape.targets * shape.items if shape.keeps_scores else 0.0,
        f"activations:{name}": _FLOAT_BYTES * count * shape.d_model * shape.n_layer,
        f"attention:{name}": _FLOAT_BYTES * count * shape.length * shape.n_layer,
    }


def serving_seconds(shape: Shape) -> Terms:
    """Terms of the server's processor time for a request of one session."""
    width = shape.d_model
    return {
        f"request:{shape.architecture}": 1.0,
        "item": float(shape.items),
        "score_product": float(shape.items * width),
        f"layer:{shape.architecture}": float(shape.n_layer * width**2),
    }


def serving_bytes(shape: Shape) -> Terms:
    """Terms of the peak memory of a server, reached while it loads the model."""
    return {
        "process": 1.0,
        "parameters": _FLOAT_BYTES * shape.parameters,
        "item": float(shape.items),
    }


QUANTITIES: dict[str, Callable[[Shape], Terms]] = {
    "training_seconds": training_seconds,
    "training_bytes": training_bytes,
    "serving_seconds": serving_seconds,
    "serving_bytes": serving_bytes,
}
"""Functions of the terms, by estimated quantity."""


@cache
def coefficients() -> dict[str, Any]:
    """Coefficients of this version, with the machine and the held-out errors."""
    text = resources.files(__package__).joinpath(COEFFICIENTS_FILE).read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


def predict(quantity: str, shape: Shape, table: dict[str, float]) -> float:
    """Value of a quantity: sum of its terms times their coefficients."""
    return sum(value * table[name] for name, value in QUANTITIES[quantity](shape).items())


def extrapolations(shape: Shape) -> list[str]:
    """Sizes of a shape outside the measured range, as text."""
    shapes = [Shape(**point["shape"]) for point in coefficients()["points"]]
    texts = []
    for name in ("items", "d_model", "n_layer", "batch_size", "length"):
        low, high = (pick(getattr(each, name) for each in shapes) for pick in (min, max))
        value = getattr(shape, name)
        if not low <= value <= high:
            texts.append(f"{name} {value:,g} (measured {low:,g} to {high:,g})")
    return texts


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests and training data."""

    rate: float
    """Requests per second, of one session each."""
    sessions: int
    """Number of training sessions."""
    epochs: int
    hours: float
    """Maximum time of a training, in hours."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Memory and cores of training and serving on CPUs."""

    step_seconds: float
    """Seconds of a training step on one core."""
    epoch_hours: float
    """Hours of an epoch on one core."""
    training_cores: int
    """Cores to finish all epochs in time, if the work is distributed evenly."""
    training_gib: float
    request_ms: float
    """Processor time of a request, in milliseconds."""
    requests_per_core: float
    """Requests per second of a fully used core."""
    serving_cores: int
    """Cores for the rate, each busy for `BUSY_SHARE` of its time."""
    serving_gib: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def estimate(shape: Shape, load: Load, table: dict[str, Any] | None = None) -> Estimate:
    """Estimate for a model and a load, by the table of this version or another one.

    ConfigError for an architecture that was not measured.
    """
    table = table or coefficients()
    if shape.architecture not in table["architectures"]:
        raise ConfigError(
            f"--architecture is {shape.architecture!r}, but only "
            f"{', '.join(table['architectures'])} have been measured. Choose the nearest."
        )
    values = {name: predict(name, shape, table["coefficients"][name]) for name in QUANTITIES}
    steps = math.ceil(load.sessions / shape.batch_size)
    epoch_hours = steps * values["training_seconds"] / 3600
    return Estimate(
        step_seconds=values["training_seconds"],
        epoch_hours=epoch_hours,
        training_cores=max(1, math.ceil(load.epochs * epoch_hours / load.hours)),
        training_gib=values["training_bytes"] / _GIBIBYTE,
        request_ms=values["serving_seconds"] * 1e3,
        requests_per_core=1 / values["serving_seconds"],
        serving_cores=max(1, math.ceil(load.rate * values["serving_seconds"] / BUSY_SHARE)),
        serving_gib=values["serving_bytes"] / _GIBIBYTE,
    )

"""Estimates of time and memory: sums of terms of a model's shape times measured coefficients.

`python -m benchmarks sizing` measures the coefficients on one core and writes them, with what they
were measured on, to `coefficients.json`. They hold for CPUs alone. A term counts work or bytes, so
no coefficient is negative. Terms of the encoder have a coefficient for each architecture, all
others are shared.
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
"""Value of each term by its name; `name:architecture` where each architecture has its own."""

COEFFICIENTS_FILE = "coefficients.json"
KEPT_SCORE_BYTES = 2**29
"""Scores of a step that the cross-entropy keeps at most, `model.ops` has the same number."""
MASKED_SHARES = {"xlnet": 0.2}
"""Share of the interactions that are targets, of architectures that were measured with mlm; the
others were with clm."""
BUSY_SHARE = 0.6
"""Share of a serving core's time that requests may take; beyond it latencies rise steeply."""
_FLOAT_BYTES = 4
_GIBIBYTE = 1024**3


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Model and batch, in the shape letters of the documentation."""

    architecture: str
    items: int
    """V."""
    d_model: int
    """D."""
    n_layer: int = 2
    batch_size: int = 128
    """B: sessions of a training step."""
    length: float = 5.0
    """Mean number of interactions of a session."""

    @property
    def parameters(self) -> float:
        """Weights: the item table and about 12 D squared for each layer."""
        return self.items * self.d_model + 12 * self.n_layer * self.d_model**2

    @property
    def interactions(self) -> float:
        """Interactions of a training step."""
        return self.batch_size * self.length

    @property
    def keeps_scores(self) -> bool:
        """Whether a step keeps its scores for the backward pass; else it computes them again."""
        return _FLOAT_BYTES * self.targets * self.items <= KEPT_SCORE_BYTES

    @property
    def targets(self) -> float:
        """Targets of a training step: all interactions but the first, or those that are masked."""
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
    """Terms of the peak memory of a server, which it has while it loads the model."""
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
"""What is estimated, with its terms."""


@cache
def coefficients() -> dict[str, Any]:
    """The table of coefficients of this version, with the machine and the held-out errors."""
    text = resources.files(__package__).joinpath(COEFFICIENTS_FILE).read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


def predict(quantity: str, shape: Shape, table: dict[str, float]) -> float:
    """Value of a quantity by the coefficients of its terms."""
    return sum(value * table[name] for name, value in QUANTITIES[quantity](shape).items())


def extrapolations(shape: Shape) -> list[str]:
    """Sizes of a shape that are outside those of all measured ones, as text."""
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
    """Requests of one session a second."""
    sessions: int
    """Training sessions of an epoch."""
    epochs: int
    hours: float
    """Time in which a training has to end."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Memory and cores of training and serving on CPUs."""

    step_seconds: float
    """A training step on one core."""
    epoch_hours: float
    """On one core."""
    training_cores: int
    """Cores on which all epochs end in time, if the work spreads over them evenly."""
    training_gib: float
    request_ms: float
    """Processor time of a request."""
    requests_per_core: float
    """Requests a second of one core that does nothing else."""
    serving_cores: int
    """Cores of the rate, each busy for `BUSY_SHARE` of its time."""
    serving_gib: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
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

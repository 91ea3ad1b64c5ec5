"""`pipeline size`."""

import math
from typing import Annotated, Any

import typer

from pipeline.cli.console import print_result
from pipeline.cli.options import Json
from pipeline.core.errors import ConfigError

_WORDS = {
    "training_seconds": "time of a step",
    "training_bytes": "memory of training",
    "serving_seconds": "time of a request",
    "serving_bytes": "memory of a server",
}

_SMALLEST, _LARGEST = 1e-6, 1e12
_MOST = 1_000_000
"""Bounds of numbers and of whole numbers, beyond any load; products of them stay finite."""


# Long: every option is declared here with its help.
def size(
    items: Annotated[float, typer.Option(help="V: items of the catalogue, such as 1e6.")],
    rate: Annotated[float, typer.Option(help="Requests of one session a second.")],
    d_model: Annotated[int, typer.Option(min=1, max=_MOST, help="D: width of the model.")] = 96,
    architecture: Annotated[
        str, typer.Option(help="Architecture as in the recipe, one of the measured ones.")
    ] = "sasrec",
    n_layer: Annotated[int, typer.Option(min=1, max=_MOST, help="Layers of the encoder.")] = 2,
    batch_size: Annotated[
        int, typer.Option(min=1, max=_MOST, help="B: sessions of a training step.")
    ] = 128,
    length: Annotated[float, typer.Option(help="Mean interactions of a session.")] = 5.0,
    sessions_per_day: Annotated[
        float, typer.Option(help="Sessions of the log in a day, such as 2e5.")
    ] = 1e5,
    days: Annotated[int, typer.Option(min=1, max=_MOST, help="Days of training sessions.")] = 30,
    epochs: Annotated[int, typer.Option(min=1, max=_MOST, help="Epochs of a training.")] = 10,
    hours: Annotated[float, typer.Option(help="Hours in which a training has to end.")] = 8.0,
    as_json: Json = False,
) -> None:
    """Estimate memory and cores of training and serving on CPUs.

    The coefficients were measured on one machine. The last lines name it, and the largest error of
    the estimates on settings outside the fit.
    """
    for name, value in (
        *(("items", items), ("rate", rate), ("length", length)),
        *(("sessions-per-day", sessions_per_day), ("hours", hours)),
    ):
        if not _SMALLEST <= value <= _LARGEST:
            raise ConfigError(
                f"--{name} is {value:g}, expected a number from {_SMALLEST:g} to {_LARGEST:g}."
            )
    from pipeline.sizing.estimate import Load, Shape, coefficients, estimate, extrapolations

    shape = Shape(
        architecture=architecture,
        items=math.ceil(items),
        d_model=d_model,
        n_layer=n_layer,
        batch_size=batch_size,
        length=length,
    )
    sessions = math.ceil(sessions_per_day * days)
    result = estimate(shape, Load(rate=rate, sessions=sessions, epochs=epochs, hours=hours))
    table = coefficients()
    beyond = extrapolations(shape)
    facts = {
        **result.to_dict(),
        "device": "cpu",
        "sessions": sessions,
        "beyond_measured": beyond,
        **{name: table[name] for name in ("machine", "commit", "worst_ratios")},
    }
    lines = [
        f"training  {result.training_gib:,.1f} GiB and {_cores(result.training_cores)} for "
        f"{epochs} epochs of {sessions:,} sessions in {hours:g} h; on one core an epoch takes "
        f"{_duration(result.epoch_hours)}, a step {result.step_seconds:.3g} s",
        f"serving   {result.serving_gib:,.1f} GiB and {_cores(result.serving_cores)} for {rate:g} "
        f"requests/s; a request takes {result.request_ms:.3g} ms of a core, which can do "
        f"{result.requests_per_core:,.0f}/s and should do six tenths of them",
        *_quality(table, beyond),
    ]
    print_result(facts, as_json, "\n".join(lines))


def _duration(hours: float) -> str:
    if hours < 1:
        minutes = 60 * hours
        return f"{minutes:.3g} min" if minutes >= 1 else f"{60 * minutes:.3g} s"
    return f"{hours:,.2f} h"


def _cores(count: int) -> str:
    return "1 core" if count == 1 else f"{count:,} cores"


def _quality(table: dict[str, Any], beyond: list[str]) -> list[str]:
    """Return lines on the machine of the measurements and the errors of the estimates."""
    ratios = ", ".join(
        f"{_WORDS[name]} {each['held_out']:.2f}" for name, each in table["worst_ratios"].items()
    )
    machine = table["machine"]
    lines = [
        f"For CPUs alone. Measured on {machine['processor']}, {machine['cores']} cores, at commit "
        f"{table['commit']}.",
        f"Worst ratio of estimate and measurement on settings that were not fitted: {ratios}.",
    ]
    if beyond:
        lines.append(f"Beyond what was measured, so less sure: {'; '.join(beyond)}.")
    return lines

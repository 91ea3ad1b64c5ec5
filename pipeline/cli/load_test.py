"""`pipeline load-test`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.console import check_input, note, print_result
from pipeline.cli.options import Json, KeyFile, parse_numbers, read_key_file
from pipeline.core.errors import ConfigError

_MAX_SECONDS = 3_600
_OPEN_LOOP_CLIENTS = 32
"""Connections of the open loop, enough that requests rarely wait for one."""


# Long: every option is declared here with its help.
def load_test(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="http://HOST:PORT, grpc://HOST:PORT or grpcs://HOST:PORT."
        ),
    ],
    repository: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Copy of the served repository; requests use its item ids and feature values.  "
            "[default: item ids that the server recommends]",
        ),
    ] = None,
    clients: Annotated[
        str, typer.Option(metavar="N,N", help="Numbers of concurrent clients, one load each.")
    ] = "1,4,16",
    seconds: Annotated[float, typer.Option(min=0.2, help="Seconds of each load.")] = 10.0,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Open loop: requests a second at random times, without waiting for answers.  "
            "[default: closed loop, each client waits for its answer]"
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.svg",
            help="Plot latency by load, and add open loops at 25, 50, 80 and 95 % of the highest "
            "rate.",
        ),
    ] = None,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions of a request.")] = 1,
    interactions: Annotated[int, typer.Option(min=1, help="Interactions of a session.")] = 5,
    k: Annotated[int, typer.Option(min=1, help="Length of a list.")] = 10,
    name: Annotated[str, typer.Option(help="Name of the model on the server.")] = "recommender",
    key_file: KeyFile = None,
    as_json: Json = False,
) -> None:
    """Measure a running server under load: rate and latency.

    Requests are random and valid, and are built before the timing.
    """
    numbers = parse_numbers("--clients", clients)
    if not seconds <= _MAX_SECONDS:
        raise ConfigError(f"--seconds is {seconds:g}, expected 0.2 to {_MAX_SECONDS}.")
    if rate is not None and not rate > 0:
        raise ConfigError(f"--rate is {rate:g}, expected requests a second above 0.")
    if plot is not None:
        _check_plot(plot, rate)
    if repository is not None:
        check_input(repository, "repository")
    key = read_key_file(key_file)
    from pipeline.serve.load_test import OPEN_LOOP_SHARES, RequestShape
    from pipeline.serve.load_test import load_test as run
    from pipeline.serve.triton.access import NO_ACCESS

    def measure(number: int, rate: float | None) -> dict[str, Any]:
        return run(
            url,
            repository,
            model=name,
            clients=number,
            seconds=seconds,
            rate=rate,
            shape=RequestShape(sessions, interactions, k),
            access=NO_ACCESS._replace(key=key),
        ).to_dict()

    results = [measure(number, rate) for number in numbers]
    if plot is not None:
        highest = max(load["requests_per_second"] for load in results)
        most = max(_OPEN_LOOP_CLIENTS, *numbers)
        results += [measure(most, round(share * highest, 1)) for share in OPEN_LOOP_SHARES]
        _write_plot(plot, name, results)
    print_result({"loads": results}, as_json, _loads_text(results))


def _check_plot(file: Path, rate: float | None) -> None:
    """ConfigError for a name without .svg, for a missing folder and for --rate."""
    if file.suffix != ".svg":
        raise ConfigError(f"--plot is {file}, expected a name that ends in .svg.")
    if rate is not None:
        raise ConfigError("--plot chooses the rates of the open loop itself. Leave out --rate.")
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"--plot {file}: {file.parent} is no folder.")


def _write_plot(file: Path, name: str, loads: list[dict[str, Any]]) -> None:
    from pipeline.core.files import write_text
    from pipeline.reports.load_plot import load_plot

    shape = f"{loads[0]['sessions']} sessions" if loads[0]["sessions"] > 1 else "one session"
    title = f"{name}: latency of requests of {shape} by load"
    write_text(file, load_plot(title, {name: loads}))
    note(f"Wrote {file}.")


def _loads_text(loads: list[dict[str, Any]]) -> str:
    """Return a row for each load."""
    heads = [
        "clients",
        "offered/s",
        "requests/s",
        "sessions/s",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "failed",
    ]
    rows = [
        [
            f"{load['clients']}",
            "-" if load["rate"] is None else f"{load['rate']:,.0f}",
            f"{load['requests_per_second']:,.0f}",
            f"{load['sessions_per_second']:,.0f}",
            *("-" if load[name] is None else f"{load[name]:.1f}" for name in _QUANTILES),
            f"{sum(load['errors'].values()):,}",
        ]
        for load in loads
    ]
    lines = ["  ".join(f"{cell:>10}" for cell in row) for row in [heads, *rows]]
    errors = {error: count for load in loads for error, count in load["errors"].items()}
    return "\n".join([*lines, *(f"{count:,} failed: {error}" for error, count in errors.items())])


_QUANTILES = ("p50_ms", "p95_ms", "p99_ms")

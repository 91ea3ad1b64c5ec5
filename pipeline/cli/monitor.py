"""`pipeline monitor`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.console import check_input, note, print_result
from pipeline.cli.options import DataOption, Json, parse_numbers
from pipeline.core.errors import ConfigError


def monitor(
    logs: Annotated[
        list[Path],
        typer.Argument(
            metavar="LOG...",
            help="Directories of `serve --log-requests`, or files in them.",
            show_default=False,
        ),
    ],
    data: DataOption,
    clicks: Annotated[
        list[Path] | None,
        typer.Option(
            "--clicks",
            metavar="FILE",
            help="Later log with the columns of the recipe, for online metrics by version and "
            "arm. Repeatable.",
        ),
    ] = None,
    window: Annotated[
        str, typer.Option(help="Longest time from a request to its outcome, such as 30m or 1d.")
    ] = "30m",
    cutoffs: Annotated[str, typer.Option(help="List lengths K of the metrics.")] = "5,10,20",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Also write a page with plots.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare logged requests with training, and with later clicks.

    Prints drift of items and session lengths, unknown items and the content of lists, by version
    and day; with --clicks also hit rates with intervals by version and arm, and the result of an
    A/B test.
    """
    numbers = parse_numbers("--cutoffs", cutoffs)
    check_input(data, "data")
    for log in logs:
        if not log.exists():
            raise ConfigError(f"{log} does not exist. Expected a log of `serve --log-requests`.")
    if out is not None and out.suffix != ".html":
        raise ConfigError(f"--out {out}: expected a name that ends in .html.")
    if out is not None and out.is_dir():
        raise ConfigError(f"--out {out} is a directory. Name a file in it.")
    from pipeline.core.files import write_text
    from pipeline.monitoring.page import page
    from pipeline.monitoring.run import monitor as run_monitor

    result = run_monitor(logs, data, clicks=clicks or None, window=window, cutoffs=numbers)
    print_result(result.to_dict(), as_json, result.to_text())
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, page(result))
        note(f"Wrote {out}.")

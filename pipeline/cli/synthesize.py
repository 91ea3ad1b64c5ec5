"""`pipeline synthesize`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.console import print_result
from pipeline.cli.options import Json


def synthesize(
    out: Annotated[Path, typer.Option(help="File to write: .csv, .csv.gz or .parquet.")],
    sessions: Annotated[int, typer.Option(help="Number of sessions.")] = 8_000,
    items: Annotated[int, typer.Option(help="Size of the catalogue.")] = 1_000,
    days: Annotated[int, typer.Option(help="Days that the log spans.")] = 14,
    seed: Annotated[int, typer.Option(help="The same seed gives the same clicks.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    if_needed: Annotated[
        bool, typer.Option("--if-needed", help="Do nothing where --out exists.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write synthetic shop clicks with structure to learn."""
    if if_needed and out.is_file() and not overwrite:
        print_result({}, as_json, f"{out} exists.")
        return
    from pipeline.preprocessing.synthetic import synthesize as write_clicks

    facts = write_clicks(
        out, sessions=sessions, items=items, days=days, seed=seed, overwrite=overwrite
    )
    print_result(facts, as_json, f"Wrote {facts['interactions']:,} clicks to {out}.")

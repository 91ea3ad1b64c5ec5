"""`pipeline export`."""

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from pipeline.cli.console import check_input, is_current, print_result
from pipeline.cli.options import IfNeeded, Json, Out, RunDirectory
from pipeline.core.artifact import check_replaceable


def export(
    run: RunDirectory,
    out: Out,
    name: Annotated[str, typer.Option(help="Name of the model for clients.")] = "recommender",
    k: Annotated[int, typer.Option(help="Items of a list where a request has no `k`.")] = 10,
    max_k: Annotated[int, typer.Option(help="Most items of a list.")] = 100,
    max_batch: Annotated[int, typer.Option(help="Most sessions of a batch.")] = 256,
    device: Annotated[
        Literal["cpu", "gpu"],
        typer.Option(help="Where the server runs the model; gpu needs one here too."),
    ] = "cpu",
    scoring: Annotated[
        Literal["fp32", "int8"],
        typer.Option(help="int8: the same lists of a large catalogue in less time, on a CPU."),
    ] = "fp32",
    if_needed: IfNeeded = False,
    as_json: Json = False,
) -> None:
    """Write a run as a Triton model repository.

    The served model takes raw columns and returns raw item ids. Over an older repository this
    writes the next version, which a server with --reload takes up.
    """
    from pipeline.data.fingerprint import fingerprint_of
    from pipeline.exporting.options import ExportOptions

    options = ExportOptions(
        name=name, default_k=k, max_k=max_k, max_batch=max_batch, device=device, scoring=scoring
    )
    check_replaceable(out, "repository")
    check_input(run, "run")
    if if_needed:
        fingerprint = fingerprint_of(asdict(options), [], [run])
        if is_current(out, "repository", fingerprint, as_json):
            return
    from pipeline.exporting.run import export as run_export

    result = run_export(run, out, options)
    text = (
        f"Wrote {out}, version {result.version}: {result.catalogue_items:,} items, lists of up "
        f"to {result.max_k}.\n"
        f"The program's scores differ from the model's by at most "
        f"{result.largest_score_difference:.1e}.\n"
        f"Next: pipeline serve {out}"
    )
    print_result(result.to_dict(), as_json, text)

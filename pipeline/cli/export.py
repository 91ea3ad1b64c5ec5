"""`pipeline export`."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.cli.console import check_input, is_current, print_current, print_result
from pipeline.cli.options import IfNeeded, Json, Out, RunDirectory, SignKey, read_sign_key
from pipeline.core.artifact import check_replaceable
from pipeline.core.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from pipeline.exporting.options import ExportOptions


Name = Annotated[str, typer.Option("--name", help="Name of the model for clients.")]
DefaultK = Annotated[int, typer.Option("--k", help="Length of a list where a request has no `k`.")]
MaxK = Annotated[int, typer.Option("--max-k", help="Largest length of a list.")]
MaxBatch = Annotated[
    int, typer.Option("--max-batch", help="Largest number of sessions in a batch.")
]
Device = Annotated[
    Literal["cpu", "gpu"],
    typer.Option("--device", help="Device of the server; gpu needs a GPU during export too."),
]
Scoring = Annotated[
    Literal["fp32", "int8"],
    typer.Option(
        "--scoring", help="int8: faster on a CPU for a large catalogue, with the same lists."
    ),
]


# Long: every option is declared here with its help.
def export(
    run: RunDirectory,
    out: Out,
    format: Annotated[  # noqa: A002  the name of the option
        Literal["triton", "onnx"],
        typer.Option(help="A Triton model repository, or an ONNX file with the tables of its ids."),
    ] = "triton",
    name: Name = "recommender",
    k: DefaultK = 10,
    max_k: MaxK = 100,
    max_batch: MaxBatch = 256,
    device: Device = "cpu",
    scoring: Scoring = "fp32",
    similar: Annotated[
        bool,
        typer.Option(
            "--similar",
            help="Export a model of similar items beside the recommender. Give it a --name.",
        ),
    ] = False,
    workflow_backend: Annotated[
        bool,
        typer.Option(
            "--workflow-backend",
            help="Encode requests with the NVTabular workflow of `preprocess --workflow`, in a "
            "Triton image with NVTabular.",
        ),
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove the repository's models of other names.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --replace: do not ask.")] = False,
    sign: SignKey = None,
    if_needed: IfNeeded = False,
    as_json: Json = False,
) -> None:
    """Write a run as a Triton model repository, or as an ONNX file.

    The served model takes raw columns and returns raw item ids. In an existing repository it is
    the next version, which a server with --reload loads; models of another --name stay.
    """
    from pipeline.data.fingerprint import fingerprint_of
    from pipeline.exporting.options import ExportOptions
    from pipeline.exporting.served_models import current_model, read_models

    options = ExportOptions(
        format=format,
        name=name,
        default_k=k,
        max_k=max_k,
        max_batch=max_batch,
        device=device,
        scoring=scoring,
        similar=similar,
        workflow_backend=workflow_backend,
    )
    key = read_sign_key(sign)
    if format == "onnx":
        if key is not None:
            raise ConfigError("--sign is for a Triton repository. Leave it out with --format onnx.")
        _export_onnx(run, out, options, if_needed=if_needed, as_json=as_json)
        return
    check_replaceable(out, "repository")
    check_input(run, "run")
    others = sorted(read_models(out).others(name))
    if replace and others:
        _confirm_removal(out, others, yes)
    if if_needed and not (replace and others):
        facts = current_model(out, name, fingerprint_of(asdict(options), [], [run]))
        if facts is not None:
            print_current(out, facts, as_json)
            return
    _export_repository(run, out, options, replace=replace, key=key, as_json=as_json)


def _export_repository(
    run: Path,
    out: Path,
    options: "ExportOptions",
    *,
    replace: bool,
    key: "Ed25519PrivateKey | None",
    as_json: bool,
) -> None:
    from pipeline.exporting.run import export as run_export

    result = run_export(run, out, options, replace_others=replace, key=key)
    beside = f" Beside it: {', '.join(sorted(result.other_models))}." if result.other_models else ""
    lists = f"{result.catalogue_items:,} items, lists of up to {result.max_k}"
    if not result.ranks_items:
        lists = f"predictions of {', '.join(result.targets)}, no lists"
    text = (
        f"Wrote {out}, version {result.version}: {lists}.{beside}\n"
        f"The scores of the program differ from those of the model by at most "
        f"{result.largest_score_difference:.1e}.\n"
        f"Next: pipeline serve {out}"
    )
    print_result(result.to_dict(), as_json, text)


def _export_onnx(
    run: Path, out: Path, options: "ExportOptions", *, if_needed: bool, as_json: bool
) -> None:
    from pipeline.data.fingerprint import fingerprint_of

    check_replaceable(out, "onnx")
    check_input(run, "run")
    if if_needed and is_current(out, "onnx", fingerprint_of(asdict(options), [], [run]), as_json):
        return
    from pipeline.exporting.onnx_directory import MODEL_FILE, export_onnx

    result = export_onnx(run, out, options)
    if result.largest_difference is None:
        compared = "onnxruntime is not installed, so the file was not compared with the model."
    else:
        compared = f"Its scores differ from the model's by at most {result.largest_difference:.1e}."
    text = (
        f"Wrote {out / MODEL_FILE}: {result.catalogue_items:,} items, lists of up to "
        f"{result.max_k}.\n{compared}\n"
        f"Inputs: {', '.join(tensor['name'] for tensor in result.inputs)}. "
        f"Outputs: {', '.join(tensor['name'] for tensor in result.outputs)}."
    )
    print_result(result.to_dict(), as_json, text)


def _confirm_removal(out: Path, others: list[str], yes: bool) -> None:
    """Ask on a terminal whether to remove models. ConfigError without a terminal and --yes."""
    if yes:
        return
    models = f"{', '.join(others)} from {out}"
    if not _is_terminal():
        raise ConfigError(f"--replace removes {models}. Give --replace --yes, or leave it out.")
    typer.confirm(f"Remove {models}?", abort=True, err=True)


def _is_terminal() -> bool:
    return sys.stdin.isatty()

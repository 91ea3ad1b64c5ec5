"""`pipeline predict`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline.cli.console import check_input, print_result
from pipeline.cli.evaluate import FilterSeen, note_other_sessions
from pipeline.cli.options import (
    Candidates,
    DataOption,
    Exclude,
    Json,
    Out,
    Part,
    RunDirectory,
    check_k,
    read_ids,
    unknown_ids_text,
)
from pipeline.core.errors import ConfigError

_DEFAULT_K = 20


def predict(
    run: RunDirectory,
    data: DataOption,
    out: Out,
    part: Part = "test",
    k: Annotated[
        int | None, typer.Option(help=f"Length of a list.  [default: {_DEFAULT_K}]")
    ] = None,
    filter_seen: FilterSeen = None,
    exclude: Exclude = None,
    candidates: Candidates = None,
    embeddings: Annotated[
        Literal["sessions", "items"] | None,
        typer.Option(help="Write vectors for an inner-product index instead of lists."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the next items of each session to a Parquet file.

    Columns: session_id, item_ids and scores, best first, and the predictions of `model.targets` by
    name; or, with --embeddings, session_id or item_id and embedding.
    """
    if embeddings and (k is not None or filter_seen is not None or exclude or candidates):
        raise ConfigError(
            "--k, --filter-seen, --exclude and --candidates are for lists. Leave them out, or "
            "--embeddings."
        )
    check_k(k)
    check_input(run, "run")
    check_input(data, "data")
    excluded_ids, candidate_ids = read_ids(exclude) or [], read_ids(candidates)
    from pipeline.core.files import check_parquet

    check_parquet(out)
    from pipeline.evaluation import predict as prediction

    if embeddings == "items":
        facts = prediction.write_item_embeddings(run, out)
    elif embeddings == "sessions":
        facts = prediction.write_session_embeddings(run, data, part, out)
    else:
        facts = prediction.write_recommendations(
            run,
            data,
            part,
            out,
            k=_DEFAULT_K if k is None else k,
            filter_seen=filter_seen,
            exclude=excluded_ids,
            candidates=candidate_ids,
        )
    note_other_sessions(run, data)
    print_result(facts, as_json, _prediction_text(facts, out))


def _prediction_text(facts: dict[str, Any], out: Path) -> str:
    if "items" in facts:
        return f"Wrote {out}: {facts['items']:,} items, vectors of {facts['width']} numbers."
    sessions = f"{facts['sessions']:,} {facts['part']} sessions"
    if facts.get("targets"):
        sessions += f", {' and '.join(facts['targets'])}"
    if "k" not in facts and "width" not in facts:
        return f"Wrote {out}: {sessions}."
    if "width" in facts:
        return f"Wrote {out}: {sessions}, vectors of {facts['width']} numbers."
    lines = []
    for option, name in (("exclude", "excluded"), ("candidates", "candidates")):
        if unknown := facts[f"unknown_{name}"]:
            lines.append(unknown_ids_text(option, unknown))
    if facts["short_lists"]:
        lines.append(f"{facts['short_lists']:,} lists are shorter: the filters left no more items.")
    return "\n".join([*lines, f"Wrote {out}: {sessions}, lists of {facts['k']}."])

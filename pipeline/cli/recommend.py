"""`pipeline recommend`."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.console import check_input, note, print_result
from pipeline.cli.options import (
    Candidates,
    Exclude,
    Json,
    KeyFile,
    check_k,
    read_ids,
    read_key_file,
    unknown_ids_text,
)
from pipeline.core.errors import ConfigError
from pipeline.core.text import shown


# Long: every option is declared here with its help.
def recommend(
    target: Annotated[
        str,
        typer.Argument(
            metavar="URL|RUN",
            help="http://HOST:PORT, grpc://HOST:PORT, grpcs://HOST:PORT, or a run directory.",
        ),
    ],
    items: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Items of one session, oldest first.")
    ] = None,
    similar: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,C",
            help="Print the items nearest to each of these, by the item vectors of the run.",
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=V,V,...",
            help="Another column of the session, one value per interaction. Repeatable.",
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="LOG",
            help="Log of raw interactions with the columns of the recipe: a file, a folder, a glob "
            "in quotes, an s3://, gs:// or https:// address, or - for the standard input. "
            "Repeatable.",
        ),
    ] = None,
    sessions: Annotated[
        int | None, typer.Option(min=1, help="Read only the first N sessions of the log.")
    ] = None,
    session: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Session id of --items, for the request log and A/B test of the server.",
        ),
    ] = None,
    k: Annotated[int | None, typer.Option(help="Length of a list.  [default: 10]")] = None,
    exclude: Exclude = None,
    candidates: Candidates = None,
    filter_seen: Annotated[
        bool | None,
        typer.Option(
            "--filter-seen/--keep-seen",
            help="Exclude the session's own items.  [default: `preprocess.filter_seen`]",
        ),
    ] = None,
    targets: Annotated[
        bool,
        typer.Option("--targets", help="Also print the predictions of `model.targets`."),
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Name of the model on the server.  [default: recommender]")
    ] = None,
    key_file: KeyFile = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="PEM certificate authority of the server, for grpcs.  [default: the system's]",
        ),
    ] = None,
    cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM certificate of the client.")
    ] = None,
    cert_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM key of that certificate.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Longest time for an answer.  [default: 30]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Recommend next items for raw sessions.

    URL is a running server; RUN is a run directory and needs no server.
    """
    check_k(k)
    if similar is not None:
        others = (items, column, inputs, sessions, exclude, candidates, targets, session)
        settings = (filter_seen, name, key_file, ca, cert, cert_key, timeout)
        if any(others) or any(value is not None for value in settings):
            raise ConfigError(
                "--similar goes with --k and --json alone. A server has such lists as a model of "
                "`pipeline export --similar --name NAME`; ask it with --items A --name NAME."
            )
        _print_similar_items(target, similar.split(","), k, as_json)
        return
    _check_sessions(items, column, inputs, sessions, session)
    columns = dict(map(_parse_column, column or ()))
    if timeout is not None and not timeout > 0:
        raise ConfigError(f"--timeout is {timeout:g}, expected seconds above 0.")
    filters: dict[str, Any] = {
        "exclude": read_ids(exclude) or None,
        "candidates": read_ids(candidates),
        "filter_seen": filter_seen,
        "targets": targets,
    }
    connection = {"ca": ca, "cert": cert, "cert_key": cert_key, "timeout": timeout}
    with (
        _open_logs(inputs or []) as logs,
        open_client(target, name, read_key_file(key_file), connection) as client,
    ):
        check_candidates(client, filters["candidates"], target)
        if items:
            history = {"item_id": items.split(",")} | columns
            answer = client.recommend([history], k, session=session, **filters)
            records = list(answer.records([session]))
        else:
            records = list(client.recommend_log(logs, k, sessions=sessions, **filters))
    warn_of_unknown_sessions(records)
    print_result({"sessions": records}, as_json, recommendations_text(records))


def _print_similar_items(target: str, ids: list[str], k: int | None, as_json: bool) -> None:
    if "://" in target:
        raise ConfigError(
            "--similar reads a run directory. A server has such lists as a model of `pipeline "
            "export --similar --name NAME`; ask it with --items A --name NAME."
        )
    check_input(Path(target), "run")
    from pipeline.evaluation.recommender import Recommender

    lists = Recommender.open(Path(target)).similar_items(ids, k)
    records = [
        {"item_id": record.pop("session_id"), "similar": record["recommendations"]}
        for record in lists.records(ids)
    ]
    blocks = [
        f"item {shown(str(record['item_id']))}\n{_list_text(record['similar'])}"
        for record in records
    ]
    print_result({"items": records}, as_json, "\n".join(blocks))


def check_candidates(client: Any, ids: Sequence[str] | None, target: str) -> None:
    """Warn of candidates that are not in the catalogue. ConfigError if none of them is."""
    if not ids:  # an empty list is refused with the request
        return
    ids = list(dict.fromkeys(ids))
    num_unknown = len(ids) - client.num_known(ids)
    if num_unknown == len(ids):
        examples = ", ".join(map(repr, ids[:3])) + (", ..." if len(ids) > 3 else "")
        raise ConfigError(
            f"None of the {len(ids)} candidates ({examples}) is in the catalogue of {target}, "
            "expected some of its raw ids."
        )
    if num_unknown:
        note(f"Warning: {unknown_ids_text('candidates', num_unknown)}")


def warn_of_unknown_sessions(records: list[dict[str, Any]]) -> None:
    """Warn of sessions without any item of the catalogue."""
    unknown = [record["session_id"] for record in records if not record["num_known"]]
    if not unknown:
        return
    which = "the session"
    if unknown[0] is not None:
        which = f"{len(unknown):,} of {len(records):,} sessions, such as {unknown[0]}"
    note(
        f"Warning: no item id of {which} is in the model's catalogue. Check that the ids are those "
        "of the log."
    )


def _check_sessions(
    items: str | None,
    columns: list[str] | None,
    inputs: list[str] | None,
    sessions: int | None,
    session: str | None,
) -> None:
    if bool(items) == bool(inputs):
        raise ConfigError("Give either --items A,B,C or --input LOG.")
    if columns and inputs:
        raise ConfigError("--column goes with --items; a file brings its own columns.")
    if sessions and items:
        raise ConfigError("--sessions goes with --input; --items are one session.")
    if session and inputs:
        raise ConfigError("--session goes with --items; a log names its sessions.")


@contextmanager
def _open_logs(addresses: list[str]) -> Iterator[list[Path]]:
    """Yield local paths of logs, checked before the expensive imports."""
    from pipeline.logs.sources import local_logs

    with local_logs(addresses, Path(tempfile.gettempdir(), "recommend")) as logs:
        for path in logs:
            if not path.exists():
                raise ConfigError(f"{path} does not exist. Expected a log, or a folder of logs.")
        yield logs


def open_client(target: str, name: str | None, key: str | None, connection: dict[str, Any]) -> Any:
    """Return the client of a server, or the in-process client of a run."""
    if "://" in target:
        from pipeline.serve.client.client import Client

        options = {option: value for option, value in connection.items() if value is not None}
        return Client(target, name=name or "recommender", key=key, **options)
    if not Path(target).is_dir():
        raise ConfigError(
            f"{target!r} is no address, expected http://HOST:PORT, grpc://HOST:PORT or "
            "grpcs://HOST:PORT, and no directory, expected one that `pipeline train` wrote."
        )
    if name is not None:
        raise ConfigError("--name chooses a model of a server; a run is one model. Leave it out.")
    for option, value in {"key_file": key, **connection}.items():
        if value is not None:
            raise ConfigError(f"--{option.replace('_', '-')} is for a server; {target} is a run.")
    check_input(Path(target), "run")
    from pipeline.in_process import open_run

    return open_run(Path(target))


def _parse_column(text: str) -> tuple[str, list[str]]:
    name, equals, values = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"--column {text!r} is not of the form NAME=V,V,...")
    return name, values.split(",")


def _list_text(entries: list[dict[str, Any]]) -> str:
    """Return a list as lines, best item first."""
    lines = []
    for rank, entry in enumerate(entries, start=1):
        line = f"{rank:>4}  {shown(str(entry['item_id'])):<24} {entry['score']:>9.4f}"
        others = (f"{k} {v:.4f}" for k, v in entry.items() if k not in ("item_id", "score"))
        lines.append("  ".join([line, *others]))
    return "\n".join(lines)


def recommendations_text(records: list[dict[str, Any]]) -> str:
    """Return the lists of sessions as lines, best item first."""
    blocks = []
    for record in records:
        lines = [] if record["session_id"] is None else [shown(f"session {record['session_id']}")]
        if record["recommendations"]:
            lines.append(_list_text(record["recommendations"]))
        for target, value in record.get("targets", {}).items():
            lines.append(f"      {target:<24} {value:>9.4f}")
        if not record["recommendations"] and "targets" not in record:
            lines.append("   no item to recommend: the filters leave none")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)

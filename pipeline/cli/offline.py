"""What a run does without a server: `pipeline evaluate`, `report` and `predict`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.cli.console import (
    check_in,
    file_option,
    json_option,
    out_option,
    path_type,
    print_result,
)
from pipeline.core.errors import ConfigError

_data_option = click.option(
    "--data", required=True, type=path_type, help="Directory that preprocess wrote."
)
_part_option = click.option(
    "--part",
    type=click.Choice(["train", "valid", "test"]),
    default="test",
    show_default=True,
    help="Which sessions.",
)


def _asks_for_evaluation(command: Callable[..., None]) -> Callable[..., None]:
    """Add RUN and the options of an evaluation, which the command gets as `asked`."""
    for option in (
        click.option(
            "--filter-seen/--keep-seen",
            default=None,
            help="Whether items that came before in the session are left out of the ranking.  "
            "[default: as `preprocess.filter_seen` of the data's recipe says]",
        ),
        click.option(
            "--baselines/--no-baselines",
            default=True,
            show_default=True,
            help="Popularity, co-visitation, sequential rules and session-kNN beside the model.",
        ),
        click.option("--cutoffs", default="5,10,20", show_default=True, help="List lengths K."),
        click.option(
            "--positions",
            type=click.Choice(["all", "last"]),
            help="Every interaction but the first is a target, or the last.  [default: all; last "
            "where the data were split by leave-one-out]",
        ),
        _part_option,
        _data_option,
        click.argument("run", type=path_type),
    ):
        command = option(command)
    return command


def _checked(run: Path, data: Path, cutoffs: str, **others: Any) -> dict[str, Any]:
    """The arguments of an evaluation, before anything slow is imported."""
    numbers = _cutoffs(cutoffs)
    check_in(run, "run")
    check_in(data, "data")
    return {"run": run, "data": data, "cutoffs": numbers, **others}


@click.command(epilog="Example: pipeline evaluate runs/rsc15 --data data/rsc15 --cutoffs 10,20")
@_asks_for_evaluation
@click.option(
    "--breakdown",
    is_flag=True,
    help="Also by session length, popularity, known and new items, time.",
)
@json_option
def evaluate(breakdown: bool, as_json: bool, **asked: Any) -> None:
    """Rank the whole catalogue for every target; metrics of RUN beside the baselines."""
    arguments = _checked(**asked)
    from pipeline.cli.results import evaluation_text
    from pipeline.evaluation.run import evaluate as run_evaluation

    result = run_evaluation(**arguments)
    _note_other_sessions(**asked)
    print_result(result, as_json, evaluation_text(result, breakdown=breakdown))


@click.command(epilog="Example: pipeline report runs/rsc15 --data data/rsc15 --out rsc15.html")
@_asks_for_evaluation
@out_option("report.html")
@json_option
def report(out: Path, as_json: bool, **asked: Any) -> None:
    """Evaluate RUN and write one page about it: training, metrics, groups, examples.

    Everything is in the one file, which needs no script and no network. The same numbers go into
    a JSON file beside it.
    """
    arguments = _checked(**asked)
    from pipeline.cli.results import report_text
    from pipeline.training.report.run import write_report

    facts = write_report(out=out, **arguments)
    _note_other_sessions(**asked)
    print_result(facts, as_json, report_text(facts))


@click.command(
    epilog="Example: pipeline predict runs/rsc15 --data data/rsc15 --k 20 --out lists.parquet"
)
@click.argument("run", type=path_type)
@_data_option
@_part_option
@click.option("--k", type=int, help="Items of a list.  [default: 20]")
@click.option("--filter-seen", is_flag=True, help="Leave out what stands in the session.")
@file_option("--blocked", "Raw ids of items to leave out, one a line.")
@file_option("--candidates", "Raw ids of the only items to recommend, one a line.")
@click.option(
    "--embeddings",
    type=click.Choice(["sessions", "items"]),
    help="Write vectors for an index by inner product in place of lists.",
)
@out_option()
@json_option
def predict(
    run: Path,
    data: Path,
    part: str,
    k: int | None,
    filter_seen: bool,
    blocked: Path | None,
    candidates: Path | None,
    embeddings: str | None,
    out: Path,
    as_json: bool,
) -> None:
    """Write what comes after each session of DATA to a Parquet file, without a server.

    Columns: session_id, item_ids and scores, best first; or, with --embeddings, session_id or
    item_id and embedding.
    """
    if embeddings and (k is not None or filter_seen or blocked or candidates):
        raise ConfigError(
            "--k, --filter-seen, --blocked and --candidates are for lists. Leave them out, or "
            "--embeddings."
        )
    check_in(run, "run")
    check_in(data, "data")
    left_out = [] if blocked is None else _read_ids(blocked)
    among = None if candidates is None else _read_ids(candidates)
    from pipeline.core.parquet import check_parquet

    check_parquet(out)
    from pipeline.cli.results import prediction_text
    from pipeline.evaluation import predict as predictions

    if embeddings == "items":
        facts = predictions.write_item_embeddings(run, out)
    elif embeddings == "sessions":
        facts = predictions.write_session_embeddings(run, data, part, out)
    else:
        facts = predictions.write_lists(
            run,
            data,
            part,
            out,
            k=20 if k is None else k,
            filter_seen=filter_seen,
            blocked=left_out,
            candidates=among,
        )
    _note_other_sessions(run, data)
    print_result(facts, as_json, prediction_text(facts, out))


def _note_other_sessions(run: Path, data: Path, **_others: Any) -> None:
    """Say on stderr where a server of `run` would read other sessions from the logs of `data`."""
    from pipeline.data.fitted import recipe_of

    keys = recipe_of(data).other_sessions(recipe_of(run))
    if keys:
        named = ", ".join(f"`{key}`" for key in keys)
        click.echo(
            f"Note: {data} was made with other {named} than the data of {run}, so its sessions are "
            "not those that a server of the run would read.",
            err=True,
        )


def _read_ids(path: Path) -> list[str]:
    """One a line; blank lines are none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not text in UTF-8, expected one item id a line.") from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}. Expected text with one item id a line."
        ) from None
    ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise ConfigError(f"{path} is empty, expected one item id a line. Leave the option out.")
    return ids


def _cutoffs(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise click.UsageError(f"--cutoffs {text!r}: expected whole numbers from 1, such as 10,20.")
    return numbers

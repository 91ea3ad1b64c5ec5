"""`pipeline evaluate`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.cli.console import check_input, note, print_result
from pipeline.cli.options import (
    DataOption,
    Json,
    Part,
    Plugins,
    RunDirectory,
    parse_numbers,
    run_plugins,
    split_names,
)
from pipeline.core.errors import ConfigError
from pipeline.core.files import check_parquet, new_parquet

Positions = Annotated[
    Literal["all", "last"] | None,
    typer.Option(
        "--positions",
        help="Targets: every interaction but the first, or the last.  [default: all; last where "
        "the data were split by leave-one-out]",
    ),
]
Cutoffs = Annotated[str, typer.Option("--cutoffs", metavar="K,K", help="List lengths K.")]
Baselines = Annotated[
    bool,
    typer.Option(
        "--baselines/--no-baselines",
        help="Also evaluate popularity, co-visitation, sequential rules and session-kNN.",
    ),
]
FilterSeen = Annotated[
    bool | None,
    typer.Option(
        "--filter-seen/--keep-seen",
        help="Exclude earlier items of the session from the ranking.  [default: "
        "`preprocess.filter_seen` of the recipe of the data]",
    ),
]


Metrics = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        metavar="NAMES",
        help="Also list metrics: novelty, serendipity, diversity, diversity:COLUMN (a category of "
        "items), miscalibration, debiased; comma-separated, or all.",
    ),
]
By = Annotated[
    str | None,
    typer.Option(
        "--by",
        metavar="COLUMNS",
        help="Also metrics by the target's values of these features, comma-separated.",
    ),
]


# Long: every option is declared here with its help.
def evaluate(
    run: RunDirectory,
    data: DataOption,
    part: Part = "test",
    positions: Positions = None,
    cutoffs: Cutoffs = "5,10,20",
    baselines: Baselines = True,
    filter_seen: FilterSeen = None,
    metrics: Metrics = None,
    by: By = None,
    plugins: Plugins = None,
    ranks: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the rank of each target by each model as .parquet.",
        ),
    ] = None,
    breakdown: Annotated[
        bool,
        typer.Option(
            "--breakdown",
            help="Also metrics by session length, popularity, known and new items, and time.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Print metrics of a run beside those of the baselines.

    Every target is ranked in the whole catalogue.
    """
    numbers = parse_numbers("--cutoffs", cutoffs)
    list_metrics = split_names("--metrics", metrics)
    columns = split_names("--by", by)
    run_plugins(plugins)
    check_input(run, "run")
    check_input(data, "data")
    if ranks is not None:
        check_parquet(ranks)
    from pipeline.evaluation.run import evaluate as run_evaluation
    from pipeline.model.run import Run

    opened = Run.open(run)
    if ranks is not None and not opened.model.ranks_items:
        raise ConfigError(f"{run} does not predict the next item: there are no ranks to write.")
    result = run_evaluation(
        opened,
        data,
        part=part,
        positions=positions,
        cutoffs=numbers,
        baselines=baselines,
        filter_seen=filter_seen,
        metrics=list_metrics,
        by=columns,
    )
    note_other_sessions(run, data)
    print_result(result.to_dict(), as_json, result.to_text(breakdown=breakdown))
    if ranks is not None:
        assert result.ranks is not None  # noqa: S101  the run ranks
        with new_parquet(ranks, result.ranks.schema) as append:
            append(result.ranks)
        note(f"Wrote {ranks}.")


def note_other_sessions(run: Path, data: Path) -> None:
    """Print a note if a server of `run` would form other sessions from the logs of `data`."""
    from pipeline.data.fitted import recipe_of

    keys = recipe_of(data).other_sessions(recipe_of(run))
    if keys:
        names = ", ".join(f"`{key}`" for key in keys)
        note(
            f"Note: {data} was made with other {names} than the data of {run}, so its sessions are "
            "not those that a server of the run would read."
        )

"""`pipeline compare`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.console import check_input, note, print_result
from pipeline.cli.evaluate import Baselines, Cutoffs, FilterSeen, Metrics, Positions
from pipeline.cli.options import (
    DataOption,
    Json,
    Part,
    Plugins,
    parse_numbers,
    run_plugins,
    split_names,
)
from pipeline.core.errors import ConfigError


# Long: every option is declared here with its help.
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run directories, and folders of them, as `train --seeds` writes them.",
            show_default=False,
        ),
    ],
    data: DataOption,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Also write FILE: .html with plots, .md, .tex, .csv, .json or .txt. Repeatable.",
        ),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also write the plots as SVG and PNG (needs the extra `figures`).",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the files of --out.")
    ] = False,
    part: Part = "test",
    positions: Positions = None,
    cutoffs: Cutoffs = "5,10,20",
    baselines: Baselines = True,
    filter_seen: FilterSeen = None,
    metrics: Metrics = None,
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """Compare several runs and the baselines on the same targets.

    Differences are paired, have confidence intervals and are tested with a correction for multiple
    comparisons. Runs that differ only in their seed are one row.
    """
    numbers = parse_numbers("--cutoffs", cutoffs)
    list_metrics = split_names("--metrics", metrics)
    run_plugins(plugins)
    check_input(data, "data")
    for run in runs:
        if not run.is_dir():
            raise ConfigError(f"{run} does not exist. Expected a run directory.")
    from pipeline.evaluation.comparison.figures import check_figures, write_figures
    from pipeline.evaluation.comparison.files import check_file, write
    from pipeline.evaluation.comparison.run import compare as run_comparison

    for file in out or ():
        check_file(file, overwrite=overwrite)
    if figures is not None:
        check_figures()
    result = run_comparison(
        runs,
        data,
        part=part,
        positions=positions,
        cutoffs=numbers,
        baselines=baselines,
        filter_seen=filter_seen,
        metrics=list_metrics,
    )
    print_result(result.to_dict(), as_json, result.to_text())
    for file in out or ():
        write(result, file)
        note(f"Wrote {file}.")
    if figures is not None:
        write_figures(result, figures)
        note(f"Wrote the plots to {figures}.")

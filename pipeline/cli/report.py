"""`pipeline report`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.console import check_input, print_result
from pipeline.cli.evaluate import (
    Baselines,
    By,
    Cutoffs,
    FilterSeen,
    Metrics,
    Positions,
    note_other_sessions,
)
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


def report(
    run: RunDirectory,
    data: DataOption,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    part: Part = "test",
    positions: Positions = None,
    cutoffs: Cutoffs = "5,10,20",
    baselines: Baselines = True,
    filter_seen: FilterSeen = None,
    metrics: Metrics = None,
    by: By = None,
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """Write one page about a run: training, metrics, examples.

    The page is one file without scripts or links to the network. A JSON file beside it holds the
    same numbers.
    """
    from pipeline.core.outputs import check_report

    numbers = parse_numbers("--cutoffs", cutoffs)
    list_metrics = split_names("--metrics", metrics)
    columns = split_names("--by", by)
    check_report(out)
    run_plugins(plugins)
    check_input(run, "run")
    check_input(data, "data")
    from pipeline.training.report.run import write_report

    facts = write_report(
        run,
        data,
        out,
        part=part,
        positions=positions,
        cutoffs=numbers,
        baselines=baselines,
        filter_seen=filter_seen,
        metrics=list_metrics,
        by=columns,
    )
    note_other_sessions(run, data)
    text = f"Wrote {facts['page']}, and the same numbers to {facts['json']}."
    print_result(facts, as_json, text)

"""`pipeline evaluate`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline.cli.console import check_input, note, print_result
from pipeline.cli.options import (
    DataOption,
    Json,
    Part,
    RunDirectory,
    parse_cutoffs,
)

_WITH_MARGIN = ("recall", "ndcg", "mrr")
"""Metrics of the table that come with their margin."""
_OF_LISTS = {"coverage": "coverage", "popularity": "popularity", "popularity_bias": "bias"}
"""Metrics of the lists, with their headings."""
_LEGEND = """\
±: half the 95 % interval, over sessions. coverage: share of the items that some list holds;
popularity: mean number of training interactions of the recommended items; bias: this value
divided by that of the true next items. With one target each, recall is the hit rate, dcg is ndcg
and map is mrr."""
_SHORT_NAMES = {
    "popularity": "popular",
    "recent-popularity": "recent",
    "co-visitation": "co-visit",
    "sequential-rules": "rules",
    "session-knn": "knn",
}
"""Headings of the baselines in tables of many columns."""


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
        help="Popularity, co-visitation, sequential rules and session-kNN beside the model.",
    ),
]
FilterSeen = Annotated[
    bool | None,
    typer.Option(
        "--filter-seen/--keep-seen",
        help="Leave items that came before in the session out of the ranking.  [default: "
        "`preprocess.filter_seen` of the recipe of the data]",
    ),
]


def evaluate(
    run: RunDirectory,
    data: DataOption,
    part: Part = "test",
    positions: Positions = None,
    cutoffs: Cutoffs = "5,10,20",
    baselines: Baselines = True,
    filter_seen: FilterSeen = None,
    breakdown: Annotated[
        bool,
        typer.Option(
            "--breakdown",
            help="Also by session length, popularity, known and new items, and time.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Print metrics of a run beside those of the baselines.

    Every target is ranked in the whole catalogue.
    """
    numbers = parse_cutoffs(cutoffs)
    check_input(run, "run")
    check_input(data, "data")
    from pipeline.evaluation.run import evaluate as run_evaluation

    result = run_evaluation(
        run,
        data,
        part=part,
        positions=positions,
        cutoffs=numbers,
        baselines=baselines,
        filter_seen=filter_seen,
    )
    note_other_sessions(run, data)
    print_result(result, as_json, evaluation_text(result, breakdown=breakdown))


def note_other_sessions(run: Path, data: Path) -> None:
    """Note where a server of `run` would read other sessions from the logs of `data`."""
    from pipeline.data.fitted import recipe_of

    keys = recipe_of(data).other_sessions(recipe_of(run))
    if keys:
        names = ", ".join(f"`{key}`" for key in keys)
        note(
            f"Note: {data} was made with other {names} than the data of {run}, so its sessions are "
            "not those that a server of the run would read."
        )


def evaluation_text(result: dict[str, Any], *, breakdown: bool = False) -> str:
    """Return the table of models and metrics, and of groups of targets with `breakdown`."""
    models = result["results"]
    width = max(len(model) for model in models)
    cutoffs = sorted({int(name.split("@")[1]) for name in next(iter(models.values()))})
    lines = [
        f"{result['targets']:,} targets ({result['positions']} positions of the {result['part']} "
        f"sessions), {result['catalogue_items']:,} items ranked"
        f"{', seen ones left out' if result['filter_seen'] else ''}, "
        f"{result['unknown_targets']:,} targets unknown"
    ]
    if result["other_data"]:
        lines += _other_data_text(result)
    for cutoff in cutoffs:
        lines += ["", *_metrics_table(result, cutoff, width)]
    lines += _differences_text(result["differences"], cutoffs[-1])
    if breakdown:
        lines += _breakdown_text(result, f"recall@{cutoffs[-1]}")
    return "\n".join([*lines, "", _LEGEND])


def _metrics_table(result: dict[str, Any], cutoff: int, width: int) -> list[str]:
    """Return a row for each model; `width` is that of the longest name."""
    metrics = [f"{name}@{cutoff}" for name in _WITH_MARGIN]
    of_lists = {f"{name}@{cutoff}": f"{head}@{cutoff}" for name, head in _OF_LISTS.items()}
    heads = [f"{name:<13}" for name in metrics]
    lines = ["  ".join([" " * width, *heads, *of_lists.values()])]
    for model, values in result["results"].items():
        margins = result["margins"][model]
        cells = [f"{with_margin(values[name], margins[name]):<13}" for name in metrics]
        cells += [f"{_cell(name, values[name]):>{len(head)}}" for name, head in of_lists.items()]
        lines.append("  ".join([f"{model:<{width}}", *cells]))
    return lines


def _other_data_text(result: dict[str, Any]) -> list[str]:
    count = result["new_items"]
    new = f", and does not know {count:,} of their items" if count else ""
    lines = [f"The run was trained on other sessions than the data have{new}."]
    if result["part"] == "train":
        lines.append("Baselines could learn from these same sessions alone, so they are left out.")
    elif len(result["results"]) > 1:
        lines.append("The baselines have learned from the train part of the data, the run has not.")
    return lines


def _differences_text(differences: dict[str, Any], cutoff: int) -> list[str]:
    """Return the run minus the best baseline, on the same targets."""
    lines = []
    for name in (f"{metric}@{cutoff}" for metric in _WITH_MARGIN):
        if name in differences:
            entry = differences[name]
            value = f"{entry['difference']:+.4f} {_margin(entry['margin'])}"
            lines.append(f"{name} minus that of {entry['baseline']}, the best baseline: {value}")
    return ["", *lines] if lines else []


def _breakdown_text(result: dict[str, Any], metric: str) -> list[str]:
    """Return a table for each way to group the targets: groups by models."""
    run, *baselines = result["results"]
    heads = [_SHORT_NAMES.get(name, name) for name in baselines]
    lines = []
    for by, groups in result["breakdowns"].items():
        width = max(len(by), *(len(group["group"]) for group in groups))
        first = f"{by:<{width}}  {'targets':>9}  {run[:13]:<13}"
        lines += ["", f"{metric} by {by}", "  ".join([first, *heads]).rstrip()]
        for group in groups:
            own = with_margin(group["results"][run][metric], group["margins"][run][metric])
            cells = [
                f"{group['results'][name][metric]:>{len(head)}.3f}"
                for name, head in zip(baselines, heads, strict=True)
            ]
            first = f"{group['group']:<{width}}  {group['targets']:>9,}  {own:<13}"
            lines.append("  ".join([first, *cells]).rstrip())
    return lines


def with_margin(value: float, margin: float | None) -> str:
    """Return a metric with half its 95 % interval, as in 0.4736 ±.0161."""
    return f"{value:.4f} {_margin(margin)}".rstrip()


def _margin(margin: float | None) -> str:
    return "" if margin is None else f"±{margin:.4f}".replace("±0", "±")


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if name.startswith("popularity@") else f"{value:.4f}"

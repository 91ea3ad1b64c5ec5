"""`pipeline tune`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.console import check_input, print_result
from pipeline.cli.options import DataArgument, Json, Out, Plugins, RecipeFile, Settings, run_plugins


def tune(
    data: DataArgument,
    recipe: RecipeFile,
    space: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Search space in YAML, as in `train.learning_rate: {log: [1e-4, 1e-2]}`; also "
            "uniform, int and choice.",
        ),
    ],
    trials: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Number of trials, with those of an earlier search in --out."
        ),
    ],
    out: Out,
    seed: Annotated[int, typer.Option(help="The same seed gives the same trials.")] = 0,
    plugins: Plugins = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Search for the best settings of a recipe.

    Trials are compared by `train.metric` on the validation sessions; those that fall behind are
    stopped early. --out gets best.yaml (the recipe with the best settings), trials.json and the
    runs. After an interruption the same command continues.
    """
    from pipeline.core.outputs import check_search
    from pipeline.recipe.published import recipe_values
    from pipeline.recipe.recipe import Recipe
    from pipeline.recipe.search_space import read_space

    run_plugins(plugins)
    check_search(out)
    values = recipe_values(recipe, tuple(settings or ()))
    Recipe.from_dict(values, str(recipe))
    ranges = read_space(space)
    check_input(data, "data")
    from pipeline.training.tune import tune as run

    facts = run(data, values, ranges, out, num_trials=trials, seed=seed)
    print_result(facts, as_json, _tuning_text(facts, out))


def _tuning_text(facts: dict[str, Any], out: Path) -> str:
    """Return the table of trials, best first, and where the best settings are."""
    from pipeline.evaluation.metrics import lower_is_better

    sign = 1 if lower_is_better(facts["metric"]) else -1
    trials = sorted(
        facts["trials"], key=lambda row: (row["state"] != "complete", sign * (row["value"] or 0))
    )
    keys = sorted({key for trial in trials for key in trial["settings"]})
    rows = [["trial", "state", facts["metric"], "epochs", "seconds", *keys]]
    for trial in trials:
        value = "-" if trial["value"] is None else f"{trial['value']:.4f}"
        counts = [str(trial["epochs"]), _short(trial["seconds"])]
        settings = [_short(trial["settings"].get(key)) for key in keys]
        rows.append([str(trial["trial"]), trial["state"], value, *counts, *settings])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    lines += [f"Trial {trial['trial']}: {trial['reason']}" for trial in trials if trial["reason"]]
    best = facts["best"]
    if best is None:
        return "\n".join([*lines, f"No trial was completed. Wrote {out}/trials.json."])
    return "\n".join(
        [
            *lines,
            f"Best: trial {best['trial']}, {facts['metric']} {best['value']:.4f} on validation.",
            f"Wrote {out}/best.yaml; its run is {out}/runs/{best['trial']}.",
        ]
    )


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

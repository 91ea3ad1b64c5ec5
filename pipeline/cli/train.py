"""`pipeline train`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.console import check_input, is_current, note, print_result
from pipeline.cli.options import DataArgument, IfNeeded, Json, Out, Plugins, Settings, run_plugins
from pipeline.core.artifact import check_replaceable
from pipeline.core.columns import SESSIONS_DIRECTORY
from pipeline.core.errors import ConfigError
from pipeline.core.outputs import check_seeds

_WINDOW_COLUMNS = {
    "model": ("recall@20", "mrr@20"),
    "popularity": ("recall@20",),
    "sequential-rules": ("recall@20",),
}
"""Metrics of the table of windows, by model; windows.json has all."""
_WINDOW_LEGEND = [
    "Each window was evaluated before it was trained on; popular and rules are the recall@20",
    "of popularity and sequential rules. ±: half the 95 % interval. The run learned from all",
    "sessions of the data, so evaluate it on later ones.",
]


# Long: every option is declared here with its help.
def train(
    data: DataArgument,
    out: Out,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            metavar="FILE",
            help="Recipe with `model` and `train`, or the name of a published recipe, see "
            "`recipes list`.  [default: the defaults of both sections]",
        ),
    ] = None,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Ignore the checkpoint of an interrupted training."),
    ] = False,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Start from the weights of an earlier run; its catalogue may differ.",
        ),
    ] = None,
    windows: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTH",
            help="Train day by day (1d) or by hours (6h); each window is evaluated before it is "
            "trained on. Reads the valid and test sessions too.",
        ),
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="schema.pbtxt of DATA, which is then Parquet with one row per session, as stock "
            "NVTabular writes it. The data directory becomes OUT-data.",
        ),
    ] = None,
    valid: Annotated[
        list[Path] | None,
        typer.Option(metavar="PARQUET", help="With --schema: validation sessions. Repeatable."),
    ] = None,
    test: Annotated[
        list[Path] | None,
        typer.Option(metavar="PARQUET", help="With --schema: test sessions. Repeatable."),
    ] = None,
    categories: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --schema: folder of Categorify's unique.COLUMN.parquet with the raw ids.  "
            "[default: categories/ beside the files]",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Number of runs, with `train.seed` and the seeds after it, as OUT/seed-N. Runs "
            "that are up to date are kept.",
        ),
    ] = None,
    plugins: Plugins = None,
    if_needed: IfNeeded = False,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Train a model on the sessions of a data directory.

    After an interruption the same command continues from its last checkpoint (with --windows it
    starts again). Several processes: torchrun --nproc-per-node 2 -m pipeline train ...
    """
    from pipeline.recipe.published import recipe_values
    from pipeline.recipe.recipe import Recipe

    run_plugins(plugins)
    values = recipe_values(recipe, tuple(settings or ()))
    config = Recipe.from_dict(values, str(recipe or "--set"))
    if windows is not None and restart:
        raise ConfigError("--windows has no checkpoints to restart from. Leave out --restart.")
    if seeds is not None and windows is not None:
        raise ConfigError("--windows trains one run. Leave out --seeds.")
    if seeds is None:
        check_replaceable(out, "run")
    else:
        check_seeds(out)
    data = _imported(data, out, schema, valid, test, categories)
    if start is not None:
        check_input(start, "run")
    from pipeline.data.fingerprint import run_fingerprint
    from pipeline.recipe.durations import duration_seconds

    seconds = None if windows is None else duration_seconds(windows)
    fingerprint = run_fingerprint(
        data,
        config.model,
        config.train,
        windows=seconds,
        start=start,
        plugins=plugins,
    )
    if if_needed and seeds is None and is_current(out, "run", fingerprint, as_json):
        return
    _note_other_settings(config, recipe, data)
    if windows is None and schema is None and not (data / SESSIONS_DIRECTORY / "valid").is_dir():
        note(
            f"Note: {data} has no validation sessions, so nothing chooses the best epoch and the "
            "last weights are kept. Set `split.valid`, or give `preprocess` --valid."
        )
    if seeds is not None:
        from pipeline.training.seeds import train_seeds

        facts = train_seeds(data, config, out, seeds, restart=restart, start=start, plugins=plugins)
        print_result(facts, as_json, _seeds_text(facts, out))
        return
    if seconds is None:
        from pipeline.training.run import train as run

        facts = run(
            data, config.model, config.train, out, restart=restart, start=start, plugins=plugins
        )
    else:
        from pipeline.training.incremental.run import train_windows

        facts = train_windows(
            data, config.model, config.train, out, seconds=seconds, start=start, plugins=plugins
        )
    print_result(facts, as_json, run_text(facts, out))


def _imported(
    data: Path,
    out: Path,
    schema: Path | None,
    valid: list[Path] | None,
    test: list[Path] | None,
    categories: Path | None,
) -> Path:
    """Return the data directory: DATA, or with --schema one imported from its Parquet files."""
    if schema is None:
        if valid or test or categories:
            raise ConfigError("--valid, --test and --categories go with --schema.")
        check_input(data, "data")
        return data
    from pipeline.preprocessing.parquet_sessions import import_sessions, parts_of

    folder = out.with_name(f"{out.name}-data")
    parts = parts_of([data], valid or (), test or ())
    facts = import_sessions(parts, schema, folder, categories=categories)
    for line in facts["notes"]:
        note(f"Note: {line}")
    parts_text = ", ".join(f"{n['sessions']:,} {p}" for p, n in facts["sessions"].items())
    note(f"Wrote {folder}: {parts_text} sessions. Evaluate with --data {folder}.")
    if "valid" not in facts["sessions"]:
        note("Note: there are no validation sessions, so the last weights are kept. See --valid.")
    return folder


def _note_other_settings(config: Any, recipe: Path | None, data: Path) -> None:
    """Print a note if the data were made by another `preprocess` section than the recipe's."""
    from pipeline.data.fitted import other_settings

    if "preprocess" in config.model_fields_set:
        keys = ", ".join(f"`{key}`" for key in other_settings(config.preprocess, data))
        if keys:
            note(
                f"Note: {data} was made with other {keys} than {recipe} has now. "
                "Preprocess again to train with those."
            )


def run_text(facts: dict[str, Any], out: Path) -> str:
    """Return the outcome of training as lines."""
    if "table_values" in facts:
        return _counting_text(facts, out)
    best = ""
    if "best_epoch" in facts:
        metric = facts["train"]["metric"]
        best = f" Best epoch {facts['best_epoch']:g}: {metric} {facts[f'valid_{metric}']:.4f}."
    lines = _windows_text(facts["windows"]) if "windows" in facts else []
    lines += [
        f"Trained {facts['parameters']:,} parameters in {facts['seconds']:.0f} s on "
        f"{facts['device']}, loss {facts['train_loss']:.3f}.{best}",
        f"Wrote {out}.",
    ]
    return "\n".join(lines)


def _counting_text(facts: dict[str, Any], out: Path) -> str:
    """Return the outcome of fitting a counting model as lines."""
    metric = facts["train"]["metric"]
    value = facts.get(f"valid_{metric}")
    valid = "" if value is None else f" Validation: {metric} {value:.4f}."
    return (
        f"Counted {facts['table_values']:,} values of {facts['model']['architecture']} in "
        f"{facts['seconds']:.0f} s.{valid}\nWrote {out}."
    )


def _seeds_text(facts: dict[str, Any], out: Path) -> str:
    """Return the outcome of runs of several seeds as lines."""
    lines = [f"{name}: {run_text(run, out / name)}" for name, run in facts["runs"].items()]
    for name, value in facts["mean"].items():
        lines.append(
            f"{name} of {len(facts['runs'])} seeds: {value:.4f} sd "
            f"{facts['deviation'][name]:.4f}".replace("sd 0", "sd ")
        )
    return "\n".join([*lines, f"Next: pipeline compare {out} --data DATA"])


def _windows_text(windows: dict[str, Any]) -> list[str]:
    """Return the table of the windows and the mean over them."""
    heads = ["recall@20", "mrr@20", "popular", "rules"]
    first = f"{'from':<20}  {'sessions':>8}  {'new items':>9}  {'targets':>8}  {'unknown':>7}"
    lines = ["  ".join([first, *(f"{head:<13}" for head in heads)]).rstrip()]
    for window in windows["windows"]:
        evaluation = window["evaluation"]
        line = f"{window['from']:<20}  {window['sessions']:>8,}  {window['new_items']:>9,}"
        if evaluation is not None:
            counts = f"{evaluation['targets']:>8,}  {evaluation['unknown_targets']:>7,}"
            line = "  ".join([line, counts, *_window_cells(evaluation)])
        lines.append(line.rstrip())
    if windows["mean"] is not None:
        means = {"mean of the windows": "mean", "mean of the targets": "mean_of_targets"}
        for label, name in means.items():
            cells = _window_cells(windows[name])
            lines.append("  ".join([f"{label:<60}", *cells]).rstrip())
    return [*lines, *_WINDOW_LEGEND]


def _window_cells(evaluation: dict[str, Any]) -> list[str]:
    from pipeline.evaluation.result import with_margin

    results, margins = evaluation["results"], evaluation["margins"]
    return [
        f"{with_margin(results[model][metric], margins[model][metric]):<13}"
        for model, metrics in _WINDOW_COLUMNS.items()
        for metric in metrics
    ]

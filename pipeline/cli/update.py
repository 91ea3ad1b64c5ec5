"""`pipeline update`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli.console import note, print_result
from pipeline.cli.export import DefaultK, Device, MaxBatch, MaxK, Name, Scoring
from pipeline.cli.options import (
    Json,
    Operators,
    Plugins,
    RecipeFile,
    Settings,
    SignKey,
    read_sign_key,
    run_plugins,
)
from pipeline.core.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.updating.run import UpdateJob
    from pipeline.updating.state import Generation

STAYS = 3
"""Exit code if the newer model is refused."""


# Long: every option is declared here with its help.
def update(
    folder: Annotated[
        Path,
        typer.Option(
            "--from",
            metavar="DIR",
            help="Directory with data, runs, repository and state; a new one for a first model.",
        ),
    ],
    logs: Annotated[
        list[str],
        typer.Option(
            "--input", metavar="LOGS", help="New logs, as `preprocess` takes them. Repeatable."
        ),
    ],
    recipe: RecipeFile,
    unless_worse: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC@K:LOSS",
            help="Export only if recall, ndcg or mrr is at most this much below that of the served "
            "model, on the same targets, as in ndcg@20:0.005.  [default: always]",
        ),
    ] = None,
    keep: Annotated[
        int, typer.Option(min=2, help="Number of versions to keep, with their data and runs.")
    ] = 3,
    name: Name = "recommender",
    k: DefaultK = 10,
    max_k: MaxK = 100,
    max_batch: MaxBatch = 256,
    device: Device = "cpu",
    scoring: Scoring = "fp32",
    operators: Operators = None,
    plugins: Plugins = None,
    sign: SignKey = None,
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Learn from the logs of a new day, and serve the newer model unless it is worse.

    Runs preprocess --from, train --from, a comparison with the served model on the test part of
    the new logs, the export of the next version and the removal of old ones. After an interruption
    the same command continues. Exit codes: 0 if DIR/repository has the newer model; 3 if it keeps
    the old one; 2 for an error of the user.
    """
    from pipeline.exporting.options import ExportOptions
    from pipeline.recipe.published import recipe_values
    from pipeline.recipe.recipe import Recipe
    from pipeline.updating.gate import Gate

    run_plugins(plugins)
    if operators is not None and not operators.is_file():
        raise ConfigError(f"--operators {operators} does not exist. Expected a Python file.")
    config = Recipe.from_dict(recipe_values(recipe, tuple(settings or ())), str(recipe))
    options = ExportOptions(
        name=name,
        default_k=k,
        max_k=max_k,
        max_batch=max_batch,
        device=device,
        scoring=scoring,
    )
    key = read_sign_key(sign)
    gate = None if unless_worse is None else Gate.parse(unless_worse)
    from pipeline.logs.sources import local_logs
    from pipeline.updating.run import UpdateJob, update_model

    with local_logs(logs, folder) as paths:
        job = UpdateJob(
            folder=folder,
            recipe=config,
            logs=paths,
            options=options,
            gate=gate,
            keep=keep,
            operators=operators,
            plugins=plugins,
            key=key,
        )
        generation = update_model(job)
    facts = generation.model_dump(mode="json") | {"repository": str(job.repository)}
    print_result(facts, as_json, _text(generation, job))
    if not generation.accepted:
        note(f"{job.repository} stays as it is: {generation.reason}")
        raise typer.Exit(STAYS)


def _text(generation: "Generation", job: "UpdateJob") -> str:
    """Return the comparison and what became of the run as lines."""
    from pipeline.evaluation.comparison.result import Comparison
    from pipeline.exporting.served_models import read_models

    lines = []
    if generation.comparison is not None:
        lines += [Comparison.from_dict(generation.comparison).to_text(), ""]
    lines.append(generation.reason)
    if generation.accepted:
        lines.append(
            f"{job.repository} has {generation.run} as version {generation.version} of {job.name}."
        )
        served = read_models(job.repository).models[job.name]["run"]
        if served != generation.run:
            lines.append(
                f"It serves {served} since a rollback, which the same logs do not undo: give newer "
                "logs as --input."
            )
    else:
        lines.append(f"{generation.run} is not exported; run-{generation.before} stays.")
    return "\n".join(lines)

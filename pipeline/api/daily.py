"""Daily updates and rollback, from Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.api.objects import Source, recipe_of, sign_key, texts_of
from pipeline.recipe.recipe import Recipe

if TYPE_CHECKING:
    from pipeline.updating.state import Generation


def update(
    recipe: Recipe | Source,
    logs: Source | Sequence[Source],
    *,
    folder: Source,
    unless_worse: str | None = None,
    keep: int = 3,
    name: str = "recommender",
    operators: Source | None = None,
    plugins: Source | None = None,
    sign: Source | None = None,
) -> "Generation":
    """Train on the logs of a new day, and export the new model unless it is worse.

    `folder` holds data, runs, the repository and the state of all updates; in a new folder the
    first model is trained. `unless_worse` is a gate such as `ndcg@20:0.005`: the accepted loss of a
    metric on the test part of the new logs. `keep` is the number of versions to keep. `operators`
    and `plugins` are Python files, which are executed. `sign` is the key of `export`. The result
    has `accepted`, whether the run is served, and the `reason`. After an interruption, the same
    call continues.

    ConfigError for arguments that do not fit `folder`; ArtifactError if it holds something else.
    """
    from pipeline.exporting.options import ExportOptions
    from pipeline.logs.sources import local_logs
    from pipeline.updating.gate import Gate
    from pipeline.updating.run import UpdateJob, update_model

    if plugins is not None:
        from pipeline.plugins import load_plugins

        load_plugins(Path(plugins))
    gate = None if unless_worse is None else Gate.parse(unless_worse)
    with local_logs(texts_of(logs), Path(folder)) as paths:
        job = UpdateJob(
            folder=Path(folder),
            recipe=recipe_of(recipe),
            logs=paths,
            options=ExportOptions(name=name),
            gate=gate,
            keep=keep,
            operators=None if operators is None else Path(operators),
            plugins=None if plugins is None else Path(plugins),
            key=sign_key(sign),
        )
        return update_model(job)


def rollback(repository: Source, *, name: str | None = None, sign: Source | None = None) -> int:
    """Serve the previous version again; return its number.

    `name` is the name of the served model, by default the only one; `sign` is the key of `export`.
    ConfigError without an earlier version.
    """
    from pipeline.exporting.versions import rollback as run_rollback

    return run_rollback(Path(repository), name, key=sign_key(sign)).version

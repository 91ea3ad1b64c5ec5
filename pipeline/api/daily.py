"""New days and earlier versions, from Python."""

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
    """Learn from the logs of a new day, and export the newer model unless it is worse.

    `folder` has data, runs, the repository and the state of all updates; a new one begins a first
    model. `unless_worse` is a gate such as `ndcg@20:0.005`, the loss of a metric that is allowed on
    the test part of the new logs. `keep` versions stay. `operators` and `plugins` are Python
    files, which are run. `sign` is the key of `export`. The result says whether the run is served
    (`accepted`), and why (`reason`). Interrupted anywhere, the same call goes on.

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
    """Serve the version again that was served before; return its number.

    `name` is the model's for clients, by default the only one; `sign` the key of `export`.
    ConfigError where there is no earlier version.
    """
    from pipeline.exporting.versions import rollback as run_rollback

    return run_rollback(Path(repository), name, key=sign_key(sign)).version

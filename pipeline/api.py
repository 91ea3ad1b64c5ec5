"""Public functions: the stages, from Python.

Paths may be text or `Path`; a recipe, a run or a data directory may be a
path or an object.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.core.errors import ConfigError
from pipeline.data.directory import Data
from pipeline.model.run import Run as TrainedRun
from pipeline.recipe.recipe import Recipe

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.evaluation.result import Evaluation

Part = Literal["train", "valid", "test"]
Source = str | Path
"""A file or a directory."""


class Run(TrainedRun):
    """A run that also recommends for raw sessions, without a server."""

    def recommend(
        self,
        sessions: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Sequence[Any]]],
        k: int = 10,
        *,
        blocked: Sequence[Any] = (),
        candidates: Sequence[Any] | None = None,
        filter_seen: bool | None = None,
    ) -> "pd.DataFrame":
        """Return the next items of raw sessions as rows of session, rank, item_id and score.

        A session maps column names of the recipe to its values, oldest interaction first;
        `item_id` is enough. `sessions` is one or several of them. `blocked` are raw ids that no
        list holds, `candidates` the only ones; `filter_seen` leaves out items of the session, by
        default as the recipe says. The result is what a server of the exported run answers.
        ConfigError for a request that a server would refuse.
        """
        from pipeline.in_process import open_run
        from pipeline.serve.client.answers import records_to_frame

        several = [sessions] if isinstance(sessions, Mapping) else list(sessions)
        filters = {
            "exclude": list(blocked) or None,
            "candidates": None if candidates is None else list(candidates),
            "filter_seen": filter_seen,
        }
        with open_run(self) as client:
            records = client.recommend(several, k, **filters).records(range(len(several)))
            return records_to_frame(records).rename(columns={"session_id": "session"})


def preprocess(
    recipe: Recipe | Source,
    logs: Source | Sequence[Source],
    *,
    out: Source,
    test: Source | Sequence[Source] = (),
    base: Source | Data | None = None,
    cluster: str | None = None,
    operators: Source | None = None,
) -> Data:
    """Turn raw interactions into sessions with a schema; write them to `out` and open it.

    `logs` are CSV, TSV, JSON lines or Parquet files, folders of such, globs, or addresses that
    fsspec knows; `test` logs of test sessions instead
    of `split.test`. `base` is an earlier data directory to go on from: known ids keep their
    indices. `cluster` is the address of a Dask scheduler, `local` or `local-cuda`. `operators` is
    a Python file, which is run, with the NVTabular operators that the recipe names.

    DataError if the logs lack a column of the recipe; ArtifactError if `out` holds something else.
    """
    from pipeline.logs.files import check_tables, find_logs
    from pipeline.logs.sources import local_logs
    from pipeline.preprocessing.run import preprocess as run

    config, out = _recipe(recipe).preprocess, Path(out)
    check_tables(config)
    with local_logs(_texts(logs), out) as inputs, local_logs(_texts(test), out) as tests:
        run(
            config,
            find_logs(config, inputs),
            find_logs(config, tests),
            out,
            cluster=cluster,
            base=base.path if isinstance(base, Data) else None if base is None else Path(base),
            operators=None if operators is None else Path(operators),
        )
    return Data.open(out)


def train(
    recipe: Recipe | Source,
    data: Data | Source,
    *,
    out: Source,
    start: TrainedRun | Source | None = None,
    restart: bool = False,
    windows: str | None = None,
    callbacks: Sequence[Any] = (),
) -> Run:
    """Train the model of the recipe on `data`; write the run to `out` and open it.

    After an interruption the same call continues from its last checkpoint, unless `restart`.
    `start` is an earlier run whose weights the model starts from. `windows` is a width such as
    `1d`: the sessions of all parts are trained on window by window, each evaluated before.
    `callbacks` are Hugging Face's TrainerCallbacks.

    ConfigError for settings that do not fit the data, and for a training that diverged.
    """
    recipe, data, base = _recipe(recipe), Data.open(data), None
    if start is not None:
        base = start.path if isinstance(start, TrainedRun) else Path(start)
    if windows is None:
        from pipeline.training.run import train as run

        run(
            data,
            recipe.model,
            recipe.train,
            Path(out),
            restart=restart,
            start=base,
            callbacks=callbacks,
        )
    else:
        if restart or callbacks:
            raise ConfigError("`restart` and `callbacks` do not go with `windows`. Leave them out.")
        from pipeline.recipe.durations import duration_seconds
        from pipeline.training.incremental.run import train_windows

        seconds = duration_seconds(windows)
        train_windows(data, recipe.model, recipe.train, Path(out), seconds=seconds, start=base)
    opened = Run.open(out)
    assert isinstance(opened, Run)  # noqa: S101
    return opened


def evaluate(
    run: TrainedRun | Source,
    data: Data | Source,
    *,
    part: Part = "test",
    positions: Literal["all", "last"] | None = None,
    cutoffs: Sequence[int] = (5, 10, 20),
    baselines: bool = True,
    filter_seen: bool | None = None,
) -> "Evaluation":
    """Rank every target in the whole catalogue; return metrics of the run and of the baselines.

    `positions`: every interaction but the first is a target, or the last; by default as the data
    were split. `filter_seen` leaves items that came before in the session out of the ranking; by
    default as the recipe of the data says.

    ArtifactError if the data are not those of the run and do not go on from them.
    """
    if isinstance(cutoffs, int) or not cutoffs or min(cutoffs) < 1:
        raise ConfigError(
            f"cutoffs is {cutoffs!r}, expected list lengths from 1, such as (10, 20)."
        )
    from pipeline.evaluation.run import evaluate as run_evaluation

    return run_evaluation(
        TrainedRun.open(run),
        Data.open(data),
        part=part,
        positions=positions,
        cutoffs=tuple(cutoffs),
        baselines=baselines,
        filter_seen=filter_seen,
    )


def predict(
    run: TrainedRun | Source,
    data: Data | Source,
    *,
    out: Source,
    part: Part = "test",
    k: int = 20,
    filter_seen: bool = False,
    blocked: Sequence[Any] = (),
    candidates: Sequence[Any] | None = None,
) -> Path:
    """Write the next `k` items of each session of a part to a Parquet file; return its path.

    Columns: session_id, item_ids and scores, best first. `blocked` are raw ids that no list
    holds, `candidates` the only ones; `filter_seen` leaves out items of the session itself.

    ConfigError if `k` is not between 1 and the size of the catalogue or nothing is left to
    recommend.
    """
    from pipeline.evaluation.predict import write_recommendations

    write_recommendations(
        TrainedRun.open(run),
        Data.open(data),
        part,
        Path(out),
        k=k,
        filter_seen=filter_seen,
        blocked=blocked,
        candidates=candidates,
    )
    return Path(out)


def export(
    run: TrainedRun | Source,
    *,
    out: Source,
    name: str = "recommender",
    default_k: int = 10,
    max_k: int = 100,
    max_batch: int = 256,
    device: Literal["cpu", "gpu"] = "cpu",
    scoring: Literal["fp32", "int8"] = "fp32",
) -> Path:
    """Write a run as a Triton model repository; return its path.

    `name` is the model's for clients, `default_k` the items of a list where a request has no `k`,
    `max_k` the most. `device` is where the server runs the model. `scoring` int8 gives the same
    lists of a large catalogue in less time on a CPU. An older repository at `out` gets a new
    version.

    ConfigError for settings that cannot be; ArtifactError if `out` holds something else.
    """
    from pipeline.exporting.options import ExportOptions
    from pipeline.exporting.run import export as run_export

    options = ExportOptions(
        name=name,
        default_k=default_k,
        max_k=max_k,
        max_batch=max_batch,
        device=device,
        scoring=scoring,
    )
    run_export(TrainedRun.open(run), Path(out), options)
    return Path(out)


def _recipe(recipe: Recipe | Source) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else Recipe.load(Path(recipe))


def _texts(sources: Source | Sequence[Source]) -> list[str]:
    return list(map(str, [sources] if isinstance(sources, str | Path) else sources))

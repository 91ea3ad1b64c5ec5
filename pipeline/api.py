"""Public functions: the stages, from Python.

Paths may be text or `Path`; a recipe, a run or a data directory may be a path or an object. Where a
run is taken, so is a model that was put together in Python.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, Self

from pipeline.core.errors import ConfigError
from pipeline.data.directory import Data as DataDirectory
from pipeline.model.model import Model
from pipeline.model.run import Run as TrainedRun
from pipeline.recipe.recipe import Recipe

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.evaluation.comparison.result import Comparison
    from pipeline.evaluation.result import Evaluation
    from pipeline.updating.state import Generation

Part = Literal["train", "valid", "test"]
Source = str | Path
"""A file or a directory."""


class Data(DataDirectory):
    """A data directory that can also be made of a frame."""

    @classmethod
    def from_frame(cls, frame: Any, recipe: Recipe | Source, *, out: Source | None = None) -> Self:
        """Preprocess raw interactions of a pandas, Polars or Arrow table, and open the result.

        `frame` has the columns of a log that `recipe` names. `out` is the data directory to write,
        by default a temporary one that is removed with the object. DataError if the frame lacks a
        column.
        """
        scratch = TemporaryDirectory(prefix="pipeline-data-")
        log, folder = Path(scratch.name) / "frame.parquet", Path(scratch.name) / "data"
        _write_frame(frame, log)
        preprocess(recipe, log, out=folder if out is None else out)
        data = cls.open(folder if out is None else out)
        data.__dict__["_scratch"] = scratch  # lives as long as the object
        return data

    @classmethod
    def from_parquet(
        cls,
        paths: Source | Sequence[Source],
        schema: Source,
        *,
        out: Source | None = None,
        valid: Source | Sequence[Source] = (),
        test: Source | Sequence[Source] = (),
        categories: Source | None = None,
        max_sequence_length: int | None = None,
    ) -> Self:
        """Make a data directory of sessions that another workflow has written, and open it.

        `paths` are Parquet files, or folders of them, with a row a session, and `schema` is their
        schema.pbtxt, as stock NVTabular writes both. Files and folders called valid and test are
        those parts, as are `valid` and `test`. `categories` is the folder of Categorify's
        `unique.COLUMN.parquet`, which has the raw ids; by default one called so beside the files.
        `out` is the directory to write, by default a temporary one. DataError for files that are
        not what the schema says.
        """
        from pipeline.preprocessing.parquet_sessions import import_sessions, parts_of

        parts = parts_of(*([Path(path) for path in _texts(p)] for p in (paths, valid, test)))
        scratch = TemporaryDirectory(prefix="pipeline-data-")
        folder = Path(scratch.name) / "data" if out is None else Path(out)
        import_sessions(
            parts,
            Path(schema),
            folder,
            categories=None if categories is None else Path(categories),
            max_sequence_length=max_sequence_length,
        )
        data = cls.open(folder)
        data.__dict__["_scratch"] = scratch  # lives as long as the object
        return data


class Run(TrainedRun):
    """A run that also recommends for raw sessions, without a server."""

    def recommend(
        self,
        sessions: Any,
        k: int = 10,
        *,
        exclude: Sequence[Any] = (),
        candidates: Sequence[Any] | None = None,
        filter_seen: bool | None = None,
    ) -> "pd.DataFrame":
        """Return the next items of raw sessions as rows of session, rank, item_id and score.

        A session maps column names of the recipe to its values, oldest interaction first;
        `item_id` is enough. `sessions` is one or several of them, or a pandas, Polars or Arrow
        table of interactions with the columns of the log. `exclude` are raw ids that no
        list holds, `candidates` the only ones; `filter_seen` leaves out items of the session, by
        default as the recipe says. The result is what a server of the exported run answers.
        ConfigError for a request that a server would refuse.
        """
        from pipeline.in_process import open_run
        from pipeline.serve.client.answers import records_to_frame

        filters = {
            "exclude": list(exclude) or None,
            "candidates": None if candidates is None else list(candidates),
            "filter_seen": filter_seen,
        }
        with open_run(self) as client:
            if hasattr(sessions, "columns"):
                lists = client.recommend_frame(_as_pandas(sessions), k, **filters)
            else:
                several = [sessions] if isinstance(sessions, Mapping) else list(sessions)
                answer = client.recommend(several, k, **filters)
                lists = records_to_frame(answer.records(range(len(several))))
            return lists.rename(columns={"session_id": "session"})

    def similar_items(self, items: Any, k: int | None = None) -> "pd.DataFrame":
        """Return the items nearest to each of `items` as rows of similar_to, rank, item_id, score.

        `items` is a raw id or several; the score is the cosine of the vectors by which the model
        scores items; by default 10 of them. ConfigError for an id that is not in the catalogue.
        """
        from pipeline.evaluation.recommender import Recommender
        from pipeline.serve.client.answers import records_to_frame

        # ids of NumPy and pandas are no int
        is_single = isinstance(items, str) or not hasattr(items, "__iter__")
        ids = [items] if is_single else list(items)
        records = Recommender(self).similar_items(ids, k).records(ids)
        return records_to_frame(records).rename(columns={"session_id": "similar_to"})


def preprocess(
    recipe: Recipe | Source,
    logs: Source | Sequence[Source],
    *,
    out: Source,
    valid: Source | Sequence[Source] = (),
    test: Source | Sequence[Source] = (),
    base: Source | DataDirectory | None = None,
    cluster: str | None = None,
    operators: Source | None = None,
    workflow: Source | None = None,
) -> Data:
    """Turn raw interactions into sessions with a schema; write them to `out` and open it.

    `logs` are CSV, TSV, JSON lines or Parquet files, folders of such, globs, or addresses that
    fsspec knows; `valid` and `test` logs of these sessions, instead of `split.valid` and
    `split.test`. `base` is an earlier data directory to go on from: known ids keep their
    indices. `cluster` is the address of a Dask scheduler, `local` or `local-cuda`. `operators` is
    a Python file, which is run, with the NVTabular operators that the recipe names. `workflow` is
    one whose function workflow() returns an NVTabular graph over the log, which makes the sessions;
    the recipe then says how the log is read and split.

    DataError if the logs lack a column of the recipe; ArtifactError if `out` holds something else.
    """
    from pipeline.logs.files import check_tables, find_logs
    from pipeline.logs.sources import local_logs
    from pipeline.preprocessing.run import preprocess as run

    config, out = _recipe(recipe).preprocess, Path(out)
    path = base.path if isinstance(base, DataDirectory) else base
    check_tables(config)
    if workflow is not None and (base or cluster or operators or valid):
        raise ConfigError("`base`, `cluster`, `operators`, `valid` do not go with `workflow`.")
    with (
        local_logs(_texts(logs), out) as inputs,
        local_logs(_texts(valid), out) as valids,
        local_logs(_texts(test), out) as tests,
    ):
        if workflow is not None:
            from pipeline.preprocessing.workflows.run import preprocess_workflow

            preprocess_workflow(config, Path(workflow), inputs, tests, out)
            return Data.open(out)
        run(
            config,
            find_logs(config, inputs),
            find_logs(config, tests),
            out,
            valid_logs=find_logs(config, valids),
            cluster=cluster,
            base=None if path is None else Path(path),
            operators=None if operators is None else Path(operators),
        )
    return Data.open(out)


def train(
    recipe: Recipe | Source,
    data: DataDirectory | Source,
    *,
    out: Source,
    model: Model | None = None,
    start: TrainedRun | Source | None = None,
    restart: bool = False,
    windows: str | None = None,
    callbacks: Sequence[Any] = (),
) -> Run:
    """Train the model of the recipe on `data`; write the run to `out` and open it.

    After an interruption the same call continues from its last checkpoint, unless `restart`.
    `model` is one that was put together in Python, which `recipe.train` trains in place of
    `recipe.model`; the run holds its program, see `Run.save`. `start` is an earlier run whose
    weights the model starts from. `windows` is a width such as `1d`: the sessions of all parts are
    trained on window by window, each evaluated before. `callbacks` are Hugging Face's
    TrainerCallbacks.

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
            model=model,
        )
    else:
        if restart or callbacks or model is not None:
            raise ConfigError(
                "`restart`, `callbacks` and `model` do not go with `windows`. Leave them out."
            )
        from pipeline.recipe.durations import duration_seconds
        from pipeline.training.incremental.run import train_windows

        seconds = duration_seconds(windows)
        train_windows(data, recipe.model, recipe.train, Path(out), seconds=seconds, start=base)
    opened = Run.open(out)
    assert isinstance(opened, Run)  # noqa: S101
    return opened


def evaluate(
    run: TrainedRun | Model | Source,
    data: DataDirectory | Source,
    *,
    part: Part = "test",
    positions: Literal["all", "last"] | None = None,
    cutoffs: Sequence[int] = (5, 10, 20),
    baselines: bool = True,
    filter_seen: bool | None = None,
    metrics: Sequence[str] = (),
    by: Sequence[str] = (),
) -> "Evaluation":
    """Rank every target in the whole catalogue; return metrics of the run and of the baselines.

    `positions`: every interaction but the first is a target, or the last; by default as the data
    were split. `filter_seen` leaves items that came before in the session out of the ranking; by
    default as the recipe of the data says. `metrics` adds metrics of the lists: novelty,
    serendipity, diversity, `diversity:COLUMN` by a category of items, miscalibration and debiased,
    or all, which leaves out those by a column. `by` are columns of the data, features by their
    names, to group the targets by.

    ArtifactError if the data are not those of the run and do not go on from them.
    """
    from pipeline.evaluation.run import evaluate as run_evaluation

    return run_evaluation(
        _run(run, data),
        Data.open(data),
        part=part,
        positions=positions,
        cutoffs=_cutoffs(cutoffs),
        baselines=baselines,
        filter_seen=filter_seen,
        metrics=_names("metrics", metrics),
        by=_names("by", by),
    )


def compare(
    runs: Sequence[TrainedRun | Model | Source],
    data: DataDirectory | Source,
    *,
    part: Part = "test",
    positions: Literal["all", "last"] | None = None,
    cutoffs: Sequence[int] = (5, 10, 20),
    baselines: bool = True,
    filter_seen: bool | None = None,
    metrics: Sequence[str] = (),
) -> "Comparison":
    """Rank the same targets by several runs and the baselines; test their differences.

    Runs that differ in nothing but the seed are one row, with the mean and the standard deviation;
    a folder of runs is all of them. The result has paired differences from the best row of
    each metric, with 95 % intervals and p-values corrected for their number (Holm). The other
    arguments are those of `evaluate`.

    ArtifactError if the data are not those of a run and do not go on from them.
    """
    from pipeline.evaluation.comparison.run import compare as run_comparison

    return run_comparison(
        [Path(run) if isinstance(run, str | Path) else _run(run, data) for run in runs],
        Data.open(data),
        part=part,
        positions=positions,
        cutoffs=_cutoffs(cutoffs),
        baselines=baselines,
        filter_seen=filter_seen,
        metrics=_names("metrics", metrics),
    )


def _names(argument: str, names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise ConfigError(f"{argument} is {names!r}, expected a sequence of names.")
    return tuple(names)


def _cutoffs(cutoffs: Sequence[int]) -> tuple[int, ...]:
    if isinstance(cutoffs, int) or not cutoffs or min(cutoffs) < 1:
        raise ConfigError(
            f"cutoffs is {cutoffs!r}, expected list lengths from 1, such as (10, 20)."
        )
    return tuple(cutoffs)


def predict(
    run: TrainedRun | Model | Source,
    data: DataDirectory | Source,
    *,
    out: Source,
    part: Part = "test",
    k: int = 20,
    filter_seen: bool = False,
    exclude: Sequence[Any] = (),
    candidates: Sequence[Any] | None = None,
) -> Path:
    """Write the next `k` items of each session of a part to a Parquet file; return its path.

    Columns: session_id, item_ids and scores, best first. `exclude` are raw ids that no list
    holds, `candidates` the only ones; `filter_seen` leaves out items of the session itself.

    ConfigError if `k` is not between 1 and the size of the catalogue or nothing is left to
    recommend.
    """
    from pipeline.evaluation.predict import write_recommendations

    write_recommendations(
        _run(run, data),
        Data.open(data),
        part,
        Path(out),
        k=k,
        filter_seen=filter_seen,
        exclude=exclude,
        candidates=candidates,
    )
    return Path(out)


def export(
    run: TrainedRun | Model | Source,
    *,
    out: Source,
    data: DataDirectory | Source | None = None,
    format: Literal["triton", "onnx"] = "triton",  # noqa: A002  as the option
    name: str = "recommender",
    default_k: int = 10,
    max_k: int = 100,
    max_batch: int = 256,
    device: Literal["cpu", "gpu"] = "cpu",
    scoring: Literal["fp32", "int8"] = "fp32",
    workflow_backend: bool = False,
    sign: Source | None = None,
) -> Path:
    """Write a run as a Triton model repository, or its model as ONNX; return the directory.

    A model that was put together in Python needs the `data` that it was trained on. `format` onnx
    writes `model.onnx` and the tables of its ids; of the options below it takes `default_k` and
    `max_k`.
    `name` is the model's for clients, `default_k` the items of a list where a request has no `k`,
    `max_k` the most. `device` is where the server runs the model. `scoring` int8 gives the same
    lists of a large catalogue in less time on a CPU. `workflow_backend` encodes requests by the
    user's NVTabular workflow itself, in an image that has NVTabular. An older repository at `out`
    gets a new version. `sign` is a file with an Ed25519 private key in PEM, which signs the
    repository.

    ConfigError for settings that cannot be; ArtifactError if `out` holds something else.
    """
    from pipeline.exporting.options import ExportOptions
    from pipeline.exporting.run import export as run_export

    options = ExportOptions(
        format=format,
        name=name,
        default_k=default_k,
        max_k=max_k,
        max_batch=max_batch,
        device=device,
        scoring=scoring,
        workflow_backend=workflow_backend,
    )
    key = _sign_key(sign)
    if format == "onnx":
        from pipeline.exporting.onnx_directory import export_onnx

        if key is not None:
            raise ConfigError("`sign` is for a Triton repository.")

        export_onnx(_run(run, data), Path(out), options)
    else:
        run_export(_run(run, data), Path(out), options, key=key)
    return Path(out)


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
    with local_logs(_texts(logs), Path(folder)) as paths:
        job = UpdateJob(
            folder=Path(folder),
            recipe=_recipe(recipe),
            logs=paths,
            options=ExportOptions(name=name),
            gate=gate,
            keep=keep,
            operators=None if operators is None else Path(operators),
            plugins=None if plugins is None else Path(plugins),
            key=_sign_key(sign),
        )
        return update_model(job)


def rollback(repository: Source, *, name: str | None = None, sign: Source | None = None) -> int:
    """Serve the version again that was served before; return its number.

    `name` is the model's for clients, by default the only one; `sign` the key of `export`.
    ConfigError where there is no earlier version.
    """
    from pipeline.exporting.versions import rollback as run_rollback

    return run_rollback(Path(repository), name, key=_sign_key(sign)).version


def _sign_key(path: Source | None) -> Any:
    if path is None:
        return None
    from pipeline.core.signature import read_private_key

    return read_private_key(Path(path))


def _run(run: TrainedRun | Model | Source, data: DataDirectory | Source | None) -> TrainedRun:
    if not isinstance(run, Model):
        return Run.open(run)
    if data is None:
        raise ConfigError("A model in memory needs the `data` that it was trained on.")
    return Run.of(run, data)


def _as_pandas(frame: Any) -> Any:
    """Frame of pandas, of Polars or of Arrow -> pandas. ConfigError for anything else."""
    import pandas as pd

    if isinstance(frame, pd.DataFrame):
        return frame
    if hasattr(frame, "to_pandas"):
        return frame.to_pandas()
    raise ConfigError(f"Expected a table of pandas, Polars or Arrow, got {type(frame).__name__}.")


def _write_frame(frame: Any, path: Path) -> None:
    """Write a table as Parquet, with its columns as they are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if hasattr(frame, "to_arrow"):  # Polars
        frame = frame.to_arrow()
    table = frame if isinstance(frame, pa.Table) else None
    if table is None:
        table = pa.Table.from_pandas(_as_pandas(frame), preserve_index=False)
    pq.write_table(table, path)


def _recipe(recipe: Recipe | Source) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else Recipe.load(Path(recipe))


def _texts(sources: Source | Sequence[Source]) -> list[str]:
    return list(map(str, [sources] if isinstance(sources, str | Path) else sources))

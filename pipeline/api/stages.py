"""The stages, from Python.

Paths may be text or `Path`; a recipe, run or data directory may be a path or an object. Where a run
is accepted, so is a model built in Python.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.api.objects import Data, Run, Source, recipe_of, run_of, sign_key, texts_of
from pipeline.core.errors import ConfigError
from pipeline.data.directory import Data as DataDirectory
from pipeline.model.model import Model
from pipeline.model.run import Run as TrainedRun
from pipeline.recipe.recipe import Recipe

if TYPE_CHECKING:
    from pipeline.evaluation.comparison.result import Comparison
    from pipeline.evaluation.result import Evaluation

Part = Literal["train", "valid", "test"]


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

    `logs` are CSV, TSV, JSON lines or Parquet files, folders of them, globs, or fsspec addresses;
    `valid` and `test` are logs of these parts, in place of `split.valid` and `split.test`. `base`
    is an earlier data directory to extend: known ids keep their indices. `cluster` is the address
    of a Dask scheduler, `local` or `local-cuda`. `operators` is a Python file, which is executed,
    with the NVTabular operators that the recipe names. `workflow` is a Python file whose function
    workflow() returns an NVTabular graph that makes the sessions; the recipe then defines only
    reading and splitting.

    DataError if the logs lack a column of the recipe; ArtifactError if `out` holds something else.
    """
    from pipeline.logs.files import check_tables, find_logs
    from pipeline.logs.sources import local_logs
    from pipeline.preprocessing.run import preprocess as run

    config, out = recipe_of(recipe).preprocess, Path(out)
    path = base.path if isinstance(base, DataDirectory) else base
    check_tables(config)
    if workflow is not None and (base or cluster or operators or valid):
        raise ConfigError("`base`, `cluster`, `operators`, `valid` do not go with `workflow`.")
    with (
        local_logs(texts_of(logs), out) as inputs,
        local_logs(texts_of(valid), out) as valids,
        local_logs(texts_of(test), out) as tests,
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
    `model` is a model built in Python that replaces `recipe.model`; the run holds its program, see
    `Run.save`. `start` is an earlier run with the initial weights. `windows` is a width such as
    `1d`: training goes through the sessions of all parts by time window, and evaluates each window
    before training on it. `callbacks` are Hugging Face's TrainerCallbacks.

    ConfigError for settings that do not fit the data, and for a training that diverged.
    """
    recipe, data, base = recipe_of(recipe), Data.open(data), None
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

    `positions` is all, every interaction except the first, or last; the default follows the split
    of the data. `filter_seen` excludes earlier items of the session from the ranking; the default
    is that of the data's recipe. `metrics` adds metrics of the lists: novelty, serendipity,
    diversity, `diversity:COLUMN` by a categorical item feature, miscalibration and debiased, or
    all, without those by a column. `by` are columns of the data, by feature name, for further
    groups of targets.

    ArtifactError if the data are not those of the run and do not extend them.
    """
    from pipeline.evaluation.run import evaluate as run_evaluation

    return run_evaluation(
        run_of(run, data),
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

    Runs that differ only in the seed share a row, with mean and standard deviation; a folder of
    runs stands for all its runs. The result has paired differences from the best row of each
    metric, with 95 % intervals and p-values corrected for their number (Holm). The other arguments
    are those of `evaluate`.

    ArtifactError if the data are not those of a run and do not extend them.
    """
    from pipeline.evaluation.comparison.run import compare as run_comparison

    return run_comparison(
        [Path(run) if isinstance(run, str | Path) else run_of(run, data) for run in runs],
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
    filter_seen: bool | None = None,
    exclude: Sequence[Any] = (),
    candidates: Sequence[Any] | None = None,
) -> Path:
    """Write the next `k` items of each session of a part to a Parquet file; return its path.

    Columns: session_id, item_ids and scores, best first. `exclude` are raw ids to exclude,
    `candidates` the only raw ids to recommend; `filter_seen` excludes items of the session, and
    defaults to that of the data's recipe.

    ConfigError if `k` is not between 1 and the size of the catalogue, or if no item remains.
    """
    from pipeline.evaluation.predict import write_recommendations

    write_recommendations(
        run_of(run, data),
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
    similar: bool = False,
    workflow_backend: bool = False,
    sign: Source | None = None,
) -> Path:
    """Write a run as a Triton model repository, or its model as ONNX; return the directory.

    A model built in Python needs the `data` that it was trained on. `format` onnx writes
    `model.onnx` and the tables of its ids; of the options below it takes `default_k` and `max_k`.
    `name` is the name of the served model, `default_k` the list length for a request without `k`,
    `max_k` the maximum. `device` is the device of the server. `scoring` int8 returns the same lists
    of a large catalogue in less time on a CPU. `similar` serves the items similar to the newest
    item of a request, as a separate model with its own `name`. `workflow_backend` encodes requests
    by the user's NVTabular workflow itself, in an image that has NVTabular. An older repository at
    `out` gets a new version. `sign` is a file with an Ed25519 private key in PEM, which signs the
    repository.

    ConfigError for invalid settings; ArtifactError if `out` holds something else.
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
        similar=similar,
        workflow_backend=workflow_backend,
    )
    key = sign_key(sign)
    if format == "onnx":
        from pipeline.exporting.onnx_directory import export_onnx

        if key is not None:
            raise ConfigError("`sign` is for a Triton repository.")

        export_onnx(run_of(run, data), Path(out), options)
    else:
        run_export(run_of(run, data), Path(out), options, key=key)
    return Path(out)

"""Data directories and runs, from Python."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

from pipeline.core.errors import ConfigError
from pipeline.data.directory import Data as DataDirectory
from pipeline.model.model import Model
from pipeline.model.run import Run as TrainedRun
from pipeline.recipe.recipe import Recipe

if TYPE_CHECKING:
    import pandas as pd

Source = str | Path
"""A file or a directory."""


class Data(DataDirectory):
    """A data directory, which can also be made from a frame or from Parquet sessions."""

    @classmethod
    def from_frame(cls, frame: Any, recipe: Recipe | Source, *, out: Source | None = None) -> Self:
        """Preprocess raw interactions of a pandas, Polars or Arrow table, and open the result.

        `frame` has the log columns of `recipe`. `out` is the data directory to write,
        by default a temporary one that is removed with the object. DataError if the frame lacks a
        column.
        """
        from pipeline.logs.files import check_tables, find_logs
        from pipeline.preprocessing.run import preprocess

        scratch = TemporaryDirectory(prefix="pipeline-data-")
        log = Path(scratch.name) / "frame.parquet"
        folder = Path(scratch.name) / "data" if out is None else Path(out)
        _write_frame(frame, log)
        config = recipe_of(recipe).preprocess
        check_tables(config)
        preprocess(config, find_logs(config, [log]), [], folder)
        data = cls.open(folder)
        data.__dict__["_scratch"] = scratch  # removed with the object
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
        """Make a data directory from sessions of another workflow, and open it.

        `paths` are Parquet files, or folders of them, with one row per session, and `schema` is
        their schema.pbtxt, as NVTabular writes both. Files and folders named valid and test become
        these parts, as do `valid` and `test`. `categories` is the folder of Categorify's
        `unique.COLUMN.parquet` with the raw ids, by default a folder `categories` beside the files.
        `out` is the directory to write, by default a temporary one. DataError for files that do not
        match the schema.
        """
        from pipeline.preprocessing.parquet_sessions import import_sessions, parts_of

        parts = parts_of(*([Path(path) for path in texts_of(p)] for p in (paths, valid, test)))
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
        data.__dict__["_scratch"] = scratch  # removed with the object
        return data


class Run(TrainedRun):
    """A run, which also recommends for raw sessions without a server."""

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

        A session maps column names of the recipe to its values, oldest interaction first; `item_id`
        is enough. `sessions` is one session, several, or a pandas, Polars or Arrow table of
        interactions with the columns of the log. `exclude` are raw ids to exclude, `candidates` the
        only raw ids to recommend; `filter_seen` excludes items of the session, and defaults to that
        of the recipe. The result equals that of a server of the exported run. ConfigError for a
        request that a server would refuse.
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

        `items` is one or several raw ids; the score is the cosine of the item vectors; `k` defaults
        to 10. ConfigError for an id outside the catalogue.
        """
        from pipeline.evaluation.recommender import Recommender
        from pipeline.serve.client.answers import records_to_frame

        # NumPy's integers are not int
        is_single = isinstance(items, str) or not hasattr(items, "__iter__")
        ids = [items] if is_single else list(items)
        records = Recommender(self).similar_items(ids, k).records(ids)
        return records_to_frame(records).rename(columns={"session_id": "similar_to"})


def run_of(run: TrainedRun | Model | Source, data: DataDirectory | Source | None) -> TrainedRun:
    """Return a run; a model in memory becomes a run with the data that it was trained on."""
    if not isinstance(run, Model):
        return Run.open(run)
    if data is None:
        raise ConfigError("A model in memory needs the `data` that it was trained on.")
    return Run.of(run, data)


def recipe_of(recipe: Recipe | Source) -> Recipe:
    """Return the recipe, read by its file or its name unless it is a Recipe."""
    return recipe if isinstance(recipe, Recipe) else Recipe.load(Path(recipe))


def texts_of(sources: Source | Sequence[Source]) -> list[str]:
    """Return one or several paths or addresses as a list."""
    return list(map(str, [sources] if isinstance(sources, str | Path) else sources))


def sign_key(path: Source | None) -> Any:
    """Return the private key in a file, None without one."""
    if path is None:
        return None
    from pipeline.core.signature import read_private_key

    return read_private_key(Path(path))


def _as_pandas(frame: Any) -> Any:
    """Frame of pandas, of Polars or of Arrow -> pandas. ConfigError for anything else."""
    import pandas as pd

    if isinstance(frame, pd.DataFrame):
        return frame
    if hasattr(frame, "to_pandas"):
        return frame.to_pandas()
    raise ConfigError(f"Expected a table of pandas, Polars or Arrow, got {type(frame).__name__}.")


def _write_frame(frame: Any, path: Path) -> None:
    """Write a table as Parquet, with unchanged columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if hasattr(frame, "to_arrow"):  # Polars
        frame = frame.to_arrow()
    table = frame if isinstance(frame, pa.Table) else None
    if table is None:
        table = pa.Table.from_pandas(_as_pandas(frame), preserve_index=False)
    pq.write_table(table, path)

"""The NVTabular graph from raw interactions to encoded sessions, fitted or rebuilt."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dask.dataframe.io import from_delayed  # type: ignore[attr-defined]
from dask.delayed import delayed
from merlin.core.utils import global_dask_client
from merlin.dag import ColumnSelector
from merlin.io import Dataset
from merlin.io.worker import clean_worker_cache
from merlin.schema import Tags
from nvtabular import Workflow
from nvtabular.ops import AddTags, FillMissing, LogOp

from pipeline.core.columns import ITEM, SESSION, TIMESTAMP
from pipeline.core.fitted import Fitted, Standardisation, Vocabulary, category_path
from pipeline.core.merlin import has_cudf
from pipeline.core.recipe import Preprocess
from pipeline.preprocess.operators import Cyclic, Elapsed, Encode, GroupSessions, Standardise
from pipeline.preprocess.source import Interactions

ELAPSED = "elapsed"
PARTITION_ROWS = 1_000_000
"""Interactions that are worked on at a time."""


def fit(recipe: Preprocess, interactions: Interactions, scratch: Path) -> Fitted:
    """Learn indices, means and deviations.

    NVTabular writes its unique values below `scratch` on the way; workers of a cluster see it.
    """
    types = interactions.types
    encode = _encode(recipe, {}, scratch)
    normalize = Standardise(out_dtype=np.float32)
    graph = _interaction_graph(recipe, encode, normalize)
    Workflow(graph).fit(_dataset(interactions.frame, scratch))
    vocabularies = {}
    for name, path in encode.categories.items():
        values = pq.read_table(path)[name].combine_chunks()
        wanted = pa.int64() if types[name] == "int64" else pa.string()
        vocabularies[name] = Vocabulary(type=types[name], values=values.cast(wanted))
    standardisations = {
        name: _standardisation(mean, normalize.stds[name]) for name, mean in normalize.means.items()
    }
    return Fitted(
        recipe=recipe,
        session_type=types[SESSION],
        timestamp_type=interactions.timestamp_type,
        vocabularies=vocabularies,
        standardisations=standardisations,
    )


def with_items(fitted: Fitted, items: pd.Series) -> Fitted:
    """The same with `items` in the catalogue that training never saw, behind those it saw."""
    known = fitted.item
    found = pa.array(items.dropna().drop_duplicates(), from_pandas=True).cast(known.values.type)
    new = found.filter(pc.invert(pc.is_in(found, known.values)))
    values = pa.concat_arrays([known.values, new.take(pc.sort_indices(new))])
    item = replace(known, values=values)
    return replace(fitted, vocabularies={**fitted.vocabularies, ITEM: item})


def rebuild(fitted: Fitted, directory: Path, keep: int | None) -> Workflow:
    """The fitted workflow, grouping included, from the state that lies in `directory`.

    `keep`: newest interactions of a session that stay; None keeps all.
    """
    clean_worker_cache()  # of categories, by path; `directory` may have been replaced
    paths = {name: str(category_path(directory, name)) for name in fitted.vocabularies}
    encode = _encode(fitted.recipe, paths, directory)
    normalize = Standardise(out_dtype=np.float32)
    for name, statistics in fitted.standardisations.items():
        normalize.means[name] = statistics.mean
        normalize.stds[name] = statistics.deviation
    for operator in (encode, normalize):
        operator.fitted = True
    session_features = tuple(f.name for f in fitted.recipe.features if f.of == "session")
    columns = _interaction_graph(fitted.recipe, encode, normalize)
    columns = columns + (ColumnSelector([SESSION]) >> AddTags([Tags.SESSION, Tags.SESSION_ID]))
    columns = columns + (ColumnSelector([TIMESTAMP]) >> AddTags([Tags.TIME]))
    return Workflow(columns >> GroupSessions(SESSION, TIMESTAMP, session_features, keep))


def transform(workflow: Workflow, interactions: pd.DataFrame, scratch: Path | None = None) -> Any:
    """Sessions as a data frame of the engine, pandas or cuDF.

    `scratch` is a folder that the workers see, where there is a cluster.
    """
    return workflow.transform(_dataset(interactions, scratch)).to_ddf().compute()


def partitions(interactions: pd.DataFrame) -> list[pd.DataFrame]:
    """Parts of about `PARTITION_ROWS` rows, whole sessions in the order of their ids.

    They depend on the log alone: sums of numbers come out the same, to the last bit, on however
    many workers. Rows keep their order within a part.
    """
    if len(interactions) <= PARTITION_ROWS:
        return [interactions]
    codes, sessions = pd.factorize(interactions[SESSION], sort=True)
    rows_before = np.cumsum(np.bincount(codes, minlength=len(sessions))) - 1
    part = (rows_before // PARTITION_ROWS)[codes]
    order = np.argsort(part, kind="stable")
    bounds = np.flatnonzero(np.diff(part[order])) + 1
    return [interactions.iloc[rows] for rows in np.split(order, bounds)]


def _dataset(interactions: pd.DataFrame, scratch: Path | None) -> Dataset:
    parts = partitions(interactions)
    if global_dask_client() is None:
        if len(parts) == 1:
            return Dataset(interactions, cpu=_cpu())
        tasks = [delayed(part) for part in parts]
    else:
        # as files: what a worker has read, another one reads again when that worker is lost
        folder = Path(tempfile.mkdtemp(prefix="parts-", dir=scratch))
        folder.chmod(0o755)  # workers may run as somebody else
        tasks = []
        for number, part in enumerate(parts):
            part.to_parquet(folder / f"{number}.parquet", index=False)
            tasks.append(delayed(pd.read_parquet)(folder / f"{number}.parquet"))
    meta = interactions.iloc[:0]
    return Dataset(from_delayed(tasks, meta=meta, verify_meta=False), cpu=_cpu())


def _interaction_graph(recipe: Preprocess, encode: Encode, normalize: Standardise) -> Any:
    """One row an interaction in and out: indices, standardised numbers, time features."""
    graph = ColumnSelector([ITEM]) >> encode >> AddTags([Tags.ITEM_ID, Tags.ITEM])
    categorical = [f for f in recipe.features if f.kind == "categorical"]
    if categorical:
        # one operator for all categorical columns: fitting it is one pass over the data
        names = [f.name for f in categorical]
        encoded = ColumnSelector([ITEM, *names]) >> encode
        graph = encoded[ITEM] >> AddTags([Tags.ITEM_ID, Tags.ITEM])
        graph = graph + _tagged(encoded, recipe, "categorical")
    numbers = _numbers(recipe)
    if numbers is not None:
        filled = numbers >> normalize >> FillMissing(0)
        elapsed = recipe.timestamp is not None and ELAPSED in recipe.timestamp.features
        graph = graph + _tagged(filled, recipe, "continuous", (ELAPSED,) if elapsed else ())
    for feature in recipe.timestamp.features if recipe.timestamp else ():
        if feature != ELAPSED:
            graph = graph + (ColumnSelector([TIMESTAMP]) >> Cyclic(feature))
    return graph


def _encode(recipe: Preprocess, vocabularies: dict[str, str], scratch: Path) -> Encode:
    thresholds = {ITEM: recipe.min_item_count}
    thresholds |= {f.name: f.min_count for f in recipe.features if f.kind == "categorical"}
    return Encode(
        freq_threshold=thresholds,
        vocabs=vocabularies or None,
        out_path=str(scratch),
        dtype=np.int64,
    )


def _numbers(recipe: Preprocess) -> Any:
    """Continuous columns, after their logarithm where they have one; None if there are none."""
    continuous = [f for f in recipe.features if f.kind == "continuous"]
    plain = [f.name for f in continuous if not f.log]
    logged: Any = [f.name for f in continuous if f.log]
    graph = ColumnSelector(plain) if plain else None
    if logged:
        logged = ColumnSelector(logged) >> LogOp()
        graph = logged if graph is None else graph + logged
    if recipe.timestamp and ELAPSED in recipe.timestamp.features:
        elapsed = ColumnSelector([SESSION, TIMESTAMP]) >> Elapsed(SESSION, TIMESTAMP) >> LogOp()
        graph = elapsed if graph is None else graph + elapsed
    return graph


def _tagged(node: Any, recipe: Preprocess, kind: str, others: tuple[str, ...] = ()) -> Any:
    """Columns of one kind with a tag for what they describe."""
    graph = None
    for of, tags in (("item", [Tags.ITEM]), ("session", [Tags.SESSION]), ("interaction", [])):
        names = [f.name for f in recipe.features if f.kind == kind and f.of == of]
        names += others if of == "interaction" else ()
        if names:
            part = node[names] >> AddTags(tags) if tags else node[names]
            graph = part if graph is None else graph + part
    return graph


def _standardisation(mean: float, deviation: float) -> Standardisation:
    """A column without any number has neither; it becomes 0 throughout."""
    if np.isnan(mean):
        return Standardisation(mean=0.0, deviation=0.0)
    return Standardisation(mean=mean, deviation=0.0 if np.isnan(deviation) else deviation)


def _cpu() -> bool:
    return not has_cudf()

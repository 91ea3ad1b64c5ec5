"""`pipeline preprocess`: logs in, a data directory out."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from merlin.schema import ColumnSchema
from merlin.schema import Schema as MerlinSchema
from merlin.schema.io.tensorflow_metadata import TensorflowMetadata
from tqdm import tqdm

from pipeline.core import identity
from pipeline.core.artifact import check_replaceable, new_artifact
from pipeline.core.columns import ITEM, SCHEMA_FILE, SESSION, SESSIONS_DIRECTORY, TIMESTAMP
from pipeline.core.errors import ConfigError, DataError
from pipeline.core.fitted import Fitted
from pipeline.core.logfile import find_logs
from pipeline.core.merlin import has_cudf
from pipeline.core.recipe import Preprocess
from pipeline.preprocess import workflow
from pipeline.preprocess.cluster import check_shared, on_cluster
from pipeline.preprocess.source import Interactions, read_interactions
from pipeline.preprocess.split import split

_ROW_GROUP_SESSIONS = 65_536
"""Rows that the dataloader reads at a time."""
_SCHEMA_PROPERTIES = ("domain", "embedding_sizes", "value_count")


def preprocess(
    recipe: Preprocess,
    inputs: list[Path],
    test_inputs: list[Path],
    out: Path,
    *,
    cluster: str | None = None,
) -> dict[str, Any]:
    """Write sessions, schema, fitted state and manifest to `out`; return the manifest's facts.

    Statistics come from the training sessions alone, and the items from all interactions where
    the last ones are held out. `inputs` are files and folders of logs;
    `test_inputs` are such of their own, in place of `split.test`. `cluster` is the address of a
    Dask scheduler, whose workers see the folder of `out` under the same path; what is written does
    not depend on it.
    """
    if test_inputs and recipe.split.held_out:
        raise ConfigError(
            f"`split: {recipe.split.by}` takes the test from the log itself. Leave out --test, or "
            "split by time."
        )
    if test_inputs and recipe.split.test is not None:
        raise ConfigError(
            "Both --test and `split.test` name the test sessions. Give --test files, or leave "
            "the choice to `split.test` in the recipe."
        )
    if recipe.split.valid or recipe.split.test:
        _check_times(recipe)
    check_replaceable(out, "data")
    inputs, test_inputs = find_logs(recipe, inputs), find_logs(recipe, test_inputs)
    made_from = identity.of_data(recipe, inputs, test_inputs)
    facts: dict[str, Any] = {}
    with (
        tqdm(total=3, desc="read", unit="step", leave=False, disable=None) as steps,
        new_artifact(out, "data", facts, made_from=made_from) as directory,
        tempfile.TemporaryDirectory(dir=directory if cluster else None) as scratch,
        on_cluster(cluster) as client,
    ):
        if client is not None:
            check_shared(client, Path(scratch))
        log = read_interactions(recipe, inputs)
        parts = split(recipe, log.frame)
        facts["engine"] = "cudf" if has_cudf() else "pandas"
        facts["rows"] = {"input": _rows(log)}
        steps.update()
        steps.set_description("fit")
        train = Interactions(parts["train"], log.types, log.timestamp_type, log.report)
        fitted = workflow.fit(recipe, train, Path(scratch))
        if recipe.split.held_out:
            fitted = workflow.with_items(fitted, log.frame[ITEM])
        if not len(fitted.item.values):
            raise DataError(
                f"No item for training: none is seen {recipe.min_item_count} times or more in "
                f"{len(train.frame)} interactions. Check `item` or lower `min_item_count`."
            )
        fitted.write(directory)
        if test_inputs:
            test_log = read_interactions(recipe, test_inputs, log.types)
            parts["test"] = test_log.frame
            facts["rows"]["test"] = _rows(test_log)
        steps.update()
        steps.set_description("transform")
        facts["sessions"] = {}
        for name, frame in parts.items():
            facts["sessions"][name] = _write_part(fitted, directory, name, frame, Path(scratch))
        steps.update()
        facts["catalogue_items"] = len(fitted.item.values)
        facts["max_sequence_length"] = recipe.max_sequence_length
    return facts


def _check_times(recipe: Preprocess) -> None:
    for name in ("valid", "test"):
        share = getattr(recipe.split, name)
        if isinstance(share, str) and recipe.timestamp is None:
            raise ConfigError(
                f"`split.{name}: {share}` is a span of time but the recipe has no `timestamp`. "
                "Add one, or use a fraction."
            )


def _write_part(
    fitted: Fitted, directory: Path, name: str, frame: pd.DataFrame, scratch: Path
) -> dict[str, Any]:
    """Transform one part and write it; training rows are cut to the newest L and their target."""
    longest = fitted.recipe.max_sequence_length + 1
    graph = workflow.rebuild(fitted, directory, longest if name == "train" else None)
    sessions = workflow.transform(graph, frame, scratch)
    table = _table(sessions)
    target = directory / SESSIONS_DIRECTORY / name
    target.mkdir(parents=True)
    pq.write_table(table, target / "part-0.parquet", row_group_size=_ROW_GROUP_SESSIONS)
    if name == "train":
        _write_schema(graph.output_schema, directory)
    return {
        "sessions": table.num_rows,
        "interactions": len(frame),
        "first": _date(frame[TIMESTAMP].min()) if fitted.recipe.timestamp else None,
        "last": _date(frame[TIMESTAMP].max()) if fitted.recipe.timestamp else None,
    }


def _table(sessions: Any) -> pa.Table:
    """Arrow without pandas' notes: with those, pandas could not read its own list columns."""
    if isinstance(sessions, pd.DataFrame):
        table = pa.Table.from_pandas(sessions, preserve_index=False)
    else:
        table = sessions.to_arrow(preserve_index=False)
    names = [SESSION, *(name for name in table.column_names if name != SESSION)]
    return table.select(names).replace_schema_metadata(None)


def _write_schema(schema: MerlinSchema, directory: Path) -> None:
    """`schema.pbtxt` by Merlin's own writer, without paths of this machine."""
    columns = [
        ColumnSchema(
            column.name,
            tags=column.tags,
            dtype=column.dtype,
            properties={k: v for k, v in column.properties.items() if k in _SCHEMA_PROPERTIES},
            is_list=column.is_list,
            is_ragged=column.is_ragged,
        )
        for column in schema
    ]
    metadata = TensorflowMetadata.from_merlin_schema(MerlinSchema(columns))
    for feature in metadata.proto_schema.feature:
        feature.annotation.tag.sort()  # a set of texts; each process would order it its own way
    metadata.to_proto_text_file(str(directory), SCHEMA_FILE)


def _rows(log: Interactions) -> dict[str, Any]:
    return {"read": log.report.rows, "kept": len(log.frame), **log.report.counts}


def _date(microseconds: int) -> str:
    return f"{np.datetime64(int(microseconds), 'us').astype('datetime64[s]')}Z"

"""Preprocessing of a log that is larger than memory, and a check of its sessions.

    python -m benchmarks.larger_than_memory --rows 50000000 --gigabytes 4

`pipeline preprocess` runs with a limited address space (RLIMIT_AS), which is larger than resident
memory. Then every 50th session is read from the log again, encoded by the fitted workflow in one
pass over one data frame, and compared with the output of the limited run.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import typer

RECIPE = """
preprocess:
  timestamp: {column: timestamp, unit: ms, features: [hour, elapsed]}
  features:
    - {name: category, kind: categorical, of: item}
    - {name: event, kind: categorical}
    - {name: price, kind: continuous, of: item, log: true}
  max_sequence_length: 19
  split: {valid: 0.05, test: 0.05}
"""


def main(
    rows: Annotated[int, typer.Option(help="Interactions of the log.")] = 50_000_000,
    items: Annotated[int, typer.Option(help="Size of the catalogue.")] = 200_000,
    gigabytes: Annotated[float, typer.Option(help="Limit of the address space in GiB.")] = 4.0,
    every: Annotated[int, typer.Option(min=1, help="Compare one session in so many.")] = 50,
    folder: Annotated[
        Path | None, typer.Option(help="Folder of log and output.  [default: temporary]")
    ] = None,
) -> None:
    """Preprocess with limited memory, and compare."""
    from benchmarks.logs import write_log

    with tempfile.TemporaryDirectory(prefix="pipeline-large-", dir=folder) as scratch:
        directory = Path(scratch)
        (directory / "recipe.yaml").write_text(RECIPE)
        write_log(directory / "log.parquet", rows=rows, items=items, seed=1)
        size = (directory / "log.parquet").stat().st_size
        typer.echo(f"{rows:,} interactions, {size / 1e6:,.0f} MB of Parquet")
        seconds, peak = preprocess_limited(directory, int(gigabytes * (1 << 30)))
        typer.echo(
            f"preprocessed in {seconds:.0f} s, peak {peak / 1e6:,.0f} MB, limit {gigabytes:g} GiB"
        )
        for part in ("train", "valid", "test"):
            compare(directory, part, every)


def preprocess_limited(directory: Path, limit_bytes: int) -> tuple[float, int]:
    """Run `pipeline preprocess`; return seconds and peak resident bytes."""
    command = [sys.executable, "-m", "pipeline", "preprocess", str(directory / "log.parquet")]
    command += ["--recipe", str(directory / "recipe.yaml"), "--out", str(directory / "data")]
    begin = time.monotonic()
    limits = (limit_bytes, limit_bytes)
    process = subprocess.Popen(
        command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limits)
    )
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        typer.echo(f"Error: pipeline preprocess ended with status {code}.", err=True)
        raise typer.Exit(1)
    return time.monotonic() - begin, usage.ru_maxrss * 1024


def compare(directory: Path, part: str, every: int) -> None:
    """Compare sessions of a part with the result of one pass over their rows."""
    from pipeline.data.fitted import Fitted
    from pipeline.logs.row_counts import RowCounts
    from pipeline.preprocessing import workflow
    from pipeline.preprocessing.blocks import raw_blocks, to_frame, typed_block
    from pipeline.preprocessing.engine import as_table

    fitted = Fitted.read(directory / "data")
    chosen: list[pa.Table] = []
    [file] = (directory / "data/sessions" / part).iterdir()
    for batch in pq.ParquetFile(file).iter_batches():
        ids = batch["session_id"].to_numpy()
        chosen.append(pa.Table.from_batches([batch]).filter(pa.array(ids % every == 0)))
    written = pa.concat_tables(chosen).combine_chunks()
    rows = []
    for batch in pq.ParquetFile(directory / "log.parquet").iter_batches():
        in_part = pc.is_in(batch["session_id"], written["session_id"].combine_chunks())
        rows.append(pa.Table.from_batches([batch]).filter(in_part))
    sample = directory / "sample.parquet"
    pq.write_table(pa.concat_tables(rows), sample)
    types = {name: vocabulary.type for name, vocabulary in fitted.vocabularies.items()}
    blocks = [
        typed_block(fitted.recipe, table, before, types).table
        for before, table in raw_blocks(fitted.recipe, [sample], RowCounts())
    ]
    frame = to_frame(pa.concat_tables(blocks).unify_dictionaries())
    longest = fitted.recipe.max_sequence_length + 1 if part == "train" else None
    expected = as_table(workflow.transform(workflow.rebuild(fitted, longest), frame))
    for name in written.column_names:
        one, other = written[name].combine_chunks(), expected[name].combine_chunks()
        if pa.types.is_list(one.type):
            np.testing.assert_array_equal(pc.list_value_length(one), pc.list_value_length(other))
            one, other = one.flatten(), other.flatten()
        np.testing.assert_array_equal(one.to_numpy(), other.to_numpy(), err_msg=name)
    typer.echo(f"{part}: {written.num_rows:,} sessions of {len(frame):,} interactions, equal")


if __name__ == "__main__":
    typer.run(main)

"""A log that is larger than what the process may take, and that its sessions come out as ever.

    python benchmarks/larger_than_memory.py --rows 50000000 --gigabytes 4

`pipeline preprocess` runs with its address space limited (RLIMIT_AS), which counts more than the
memory that it takes. Then every 50th session is read from the log again, encoded with the fitted
workflow in a process without a limit, and compared with the output of the limited run.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

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


@click.command()
@click.option("--rows", default=50_000_000, show_default=True, help="Interactions of the log.")
@click.option("--items", default=200_000, show_default=True, help="Size of the catalogue.")
@click.option("--gigabytes", default=4.0, show_default=True, help="GiB that the process may take.")
@click.option("--every", default=50, show_default=True, help="Compare every so-manyth session.")
@click.option("--folder", type=Path, help="For the log and the output.  [default: temporary]")
def main(rows: int, items: int, gigabytes: float, every: int, folder: Path | None) -> None:
    """Preprocess, limited, and compare."""
    from benchmarks.logs import write_log

    with tempfile.TemporaryDirectory(prefix="pipeline-large-", dir=folder) as scratch:
        place = Path(scratch)
        (place / "recipe.yaml").write_text(RECIPE)
        write_log(place / "log.parquet", rows=rows, items=items, seed=1)
        size = (place / "log.parquet").stat().st_size
        click.echo(f"{rows:,} interactions, {size / 1e6:,.0f} MB of Parquet")
        seconds, peak = limited(place, int(gigabytes * (1 << 30)))
        click.echo(
            f"preprocessed in {seconds:.0f} s, at most {peak / 1e6:,.0f} MB, of "
            f"{gigabytes:g} GiB that it may take"
        )
        for part in ("train", "valid", "test"):
            compare(place, part, every)


def limited(place: Path, limit: int) -> tuple[float, int]:
    """Seconds and peak resident bytes of the command."""
    command = [sys.executable, "-m", "pipeline", "preprocess", str(place / "log.parquet")]
    command += ["--recipe", str(place / "recipe.yaml"), "--out", str(place / "data")]
    began = time.monotonic()
    process = subprocess.Popen(
        command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    )
    _, status, usage = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise click.ClickException(f"pipeline preprocess ended with {code}.")
    return time.monotonic() - began, usage.ru_maxrss * 1024


def compare(place: Path, part: str, every: int) -> None:
    """Sessions of one part, written in many parts and encoded in one pass."""
    from pipeline.data.fitted import Fitted
    from pipeline.preprocessing import engine

    fitted = Fitted.read(place / "data")
    chosen: list[pa.Table] = []
    for batch in pq.ParquetFile(next((place / "data/sessions" / part).iterdir())).iter_batches():
        ids = batch["session_id"].to_numpy()
        chosen.append(pa.Table.from_batches([batch]).filter(pa.array(ids % every == 0)))
    written = pa.concat_tables(chosen).combine_chunks()
    rows = []
    for batch in pq.ParquetFile(place / "log.parquet").iter_batches():
        of_part = pc.is_in(batch["session_id"], written["session_id"].combine_chunks())
        rows.append(pa.Table.from_batches([batch]).filter(of_part))
    pq.write_table(pa.concat_tables(rows), place / "some.parquet")
    types = {name: v.type for name, v in fitted.vocabularies.items()}
    (place / f"sorted-{part}").mkdir()
    with engine.workers() as pool:
        log = engine.read_sorted(
            fitted.recipe, [place / "some.parquet"], place / f"sorted-{part}", pool, types
        )
        sessions = list(engine.sessions_of(fitted, log, None, part, pool))
    again = pa.concat_tables([of_shard.table for of_shard in sessions])
    for name in written.column_names:
        one, other = written[name].combine_chunks(), again[name].combine_chunks()
        if pa.types.is_list(one.type):
            np.testing.assert_array_equal(pc.list_value_length(one), pc.list_value_length(other))
            one, other = one.flatten(), other.flatten()
        np.testing.assert_array_equal(one.to_numpy(), other.to_numpy(), err_msg=name)
    click.echo(f"{part}: {written.num_rows:,} sessions of {log.rows:,} interactions, equal")


if __name__ == "__main__":
    main()

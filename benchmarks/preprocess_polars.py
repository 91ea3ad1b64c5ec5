"""The work of `pipeline preprocess` as a hand-written Polars program: FILE OUT.

It imports nothing of this project, so any interpreter with Polars can run it. It is lazy and reads
the log twice, the fastest of several variants. Sessions of one interaction are dropped after
grouping, which is cheaper than a second join.
"""

import json
import sys
import time
from pathlib import Path

import polars as pl

CATEGORICAL = ["item_id", "category", "event"]
FIRST_INDEX = 3
"""Index of the first value: 0 is padding, 1 null, 2 out of vocabulary."""
NEWEST = 20
SHORTEST = 2


def preprocess(log_path: str, out: Path) -> None:
    """Write sessions.parquet and a file of values for each categorical column below `out`."""
    log = pl.scan_parquet(log_path)
    price = pl.col("price").log1p()

    sizes = log.group_by("session_id").len()
    long_enough = sizes.filter(pl.col("len") >= SHORTEST).select("session_id")
    train = log.join(long_enough, on="session_id", how="semi")
    moments, *counted = pl.collect_all(
        [train.select(price.mean().alias("mean"), price.std().alias("deviation"))]
        + [
            train.group_by(name).len().sort(["len", name], descending=[True, False]).select(name)
            for name in CATEGORICAL
        ]
    )
    mean, deviation = moments.row(0)
    vocabularies = dict(zip(CATEGORICAL, counted, strict=True))

    items = vocabularies["item_id"].with_row_index("index", offset=FIRST_INDEX)
    # values that only short sessions have get no index; these sessions are dropped below
    texts = [
        pl.col(name)
        .cast(pl.Enum(vocabularies[name][name]), strict=False)
        .to_physical()
        .cast(pl.Int64)
        .add(FIRST_INDEX)
        for name in ("category", "event")
    ]
    sessions = (
        log.join(items.lazy().cast({"index": pl.Int64}), on="item_id", how="left")
        .drop("item_id")
        .rename({"index": "item_id"})
        .with_columns(*texts, ((price - mean) / deviation).fill_null(0).cast(pl.Float32))
        .sort("session_id", "timestamp", maintain_order=True)
        .group_by("session_id", maintain_order=True)
        .agg(pl.all().tail(NEWEST))
        .filter(pl.col("item_id").list.len() >= SHORTEST)
        .collect()
    )
    out.mkdir(parents=True)
    sessions.write_parquet(out / "sessions.parquet", compression="snappy")
    for name, values in vocabularies.items():
        values.write_parquet(out / f"{name}.parquet", compression="snappy")


if __name__ == "__main__":
    begin = time.perf_counter()
    preprocess(sys.argv[1], Path(sys.argv[2]))
    result = {"seconds": time.perf_counter() - begin, "versions": {"polars": pl.__version__}}
    print(json.dumps(result))  # noqa: T201

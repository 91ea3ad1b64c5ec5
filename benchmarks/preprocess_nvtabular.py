"""The work of `pipeline preprocess` with NVTabular's own operators: FILE OUT.

As in NVTabular's session-based examples: one data frame, so that no session is split between
partitions, and one workflow from categories to lists, on pandas.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pipeline.core.merlin  # noqa: F401  settings of dask without which Merlin does not start

# isort: split
import nvtabular as nvt
import pandas as pd
from nvtabular import ops

CATEGORICAL = ["item_id", "category", "event"]
NEWEST = 20
SHORTEST = 2


def preprocess(log_path: str, out: Path, frames: Any = pd) -> None:
    """Write part files of sessions to `out`, and NVTabular's files of values to out/categories.

    `frames` is pandas or cuDF, which NVTabular then runs on.
    """
    log = frames.read_parquet(log_path)
    # vocabularies and moments are fitted on sessions that are long enough
    sizes = log.groupby("session_id").size()
    log = log[log["session_id"].isin(sizes[sizes >= SHORTEST].index)].reset_index(drop=True)

    categorical = CATEGORICAL >> ops.Categorify(out_path=str(out))
    price = ["price"] >> ops.LogOp() >> ops.Normalize() >> ops.FillMissing(0)
    grouped = categorical + price + ["session_id", "timestamp"] >> ops.Groupby(
        groupby_cols=["session_id"],
        sort_cols=["timestamp"],
        aggs={
            "item_id": ["list", "count"],
            **{name: ["list"] for name in ("category", "event", "price", "timestamp")},
        },
        name_sep="-",
    )
    lists = [f"{name}-list" for name in (*CATEGORICAL, "price", "timestamp")]
    newest = grouped[lists] >> ops.ListSlice(-NEWEST)
    workflow = nvt.Workflow(grouped["session_id", "item_id-count"] + newest)
    dataset = nvt.Dataset(log, cpu=frames is pd)
    workflow.fit(dataset)
    workflow.transform(dataset).to_parquet(str(out))


if __name__ == "__main__":
    begin = time.perf_counter()
    preprocess(sys.argv[1], Path(sys.argv[2]))
    result = {
        "seconds": time.perf_counter() - begin,
        "versions": {"nvtabular": nvt.__version__, "pandas": pd.__version__},
    }
    print(json.dumps(result))  # noqa: T201

"""Synthetic log of a shop, of any number of rows, written in bounded memory.

`python -m benchmarks.logs FILE ROWS ITEMS SEED` writes one.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BLOCK_ROWS = 1_000_000
"""Rows of a row group; memory holds one, and the rows of one block of sessions."""
CATEGORIES = 1_000
EVENTS = ("view", "cart", "purchase")
MEAN_LENGTH = 5
LONGEST = 200
"""Maximum number of interactions of a session."""
SCHEMA = pa.schema(
    {
        "session_id": pa.int64(),
        "item_id": pa.int64(),
        "timestamp": pa.int64(),
        "category": pa.string(),
        "price": pa.float64(),
        "event": pa.string(),
    }
)

_BLOCK_SESSIONS = 65_536
_FIRST_SESSION = 1_000_000
_FIRST_ITEM = 100_000_000
_FIRST_TIME = 1_700_000_000_000
_SESSION_GAP_MS = 100.0
"""Mean time between the starts of consecutive sessions, of which thousands overlap."""
_PAUSE_MS = 30_000.0
"""Mean time between interactions of a session."""
_ZIPF = 1.05
_EVENT_SHARES = (0.9, 0.07, 0.03)
_NO_PRICE = 0.01

Columns = dict[str, np.ndarray]


class Catalogue:
    """Items with ids, popularity, categories and prices."""

    def __init__(self, items: int, random: np.random.Generator) -> None:
        # ids with gaps, in an order that is independent of popularity
        self.ids = random.permutation(4 * items)[:items].astype(np.int64) + _FIRST_ITEM
        self.category = random.integers(0, CATEGORIES, items)
        self.price = np.round(np.exp(random.normal(3.0, 1.0, items)), 2)
        self.price[random.random(items) < _NO_PRICE] = np.nan
        weights = np.arange(1, items + 1) ** -_ZIPF
        self._cumulative = np.cumsum(weights) / weights.sum()

    def choose(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Draw (count,) positions of items by popularity."""
        items = np.searchsorted(self._cumulative, random.random(count))
        return np.minimum(items, len(self.ids) - 1)  # the last sum may be slightly below 1


def write_log(path: Path, rows: int, *, items: int = 200_000, seed: int = 0) -> None:
    """Write `rows` interactions as a Parquet file, the oldest first.

    Columns are those of `SCHEMA`, timestamps in milliseconds. Category and price depend on the
    item; a price may be missing. The end of the log cuts its last sessions. The same seed and items
    give the same bytes, and a shorter log is a prefix of a longer one.
    """
    random = np.random.default_rng(seed)
    catalogue = Catalogue(items, random)
    categories = pa.array([f"category-{number:04d}" for number in range(CATEGORIES)])
    events = pa.array(EVENTS)
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for block in _in_blocks(_rows_by_time(random, catalogue), rows):
            item = block["item"]
            columns: dict[str, Any] = {
                "session_id": block["session"],
                "item_id": catalogue.ids[item],
                "timestamp": block["time"],
                "category": categories.take(pa.array(catalogue.category[item])),
                "price": pa.array(catalogue.price[item], from_pandas=True),
                "event": events.take(pa.array(block["event"])),
            }
            writer.write_table(pa.table(columns, schema=SCHEMA), row_group_size=BLOCK_ROWS)


def _rows_by_time(random: np.random.Generator, catalogue: Catalogue) -> Iterator[Columns]:
    """Yield endless interactions in order of time."""
    pending: list[Columns] = []
    session, moment = 0, _FIRST_TIME
    while True:
        lengths = np.minimum(random.geometric(1 / MEAN_LENGTH, _BLOCK_SESSIONS), LONGEST)
        starts = moment + _whole(random.exponential(_SESSION_GAP_MS, _BLOCK_SESSIONS)).cumsum()
        # ids in random order, as in a shop with several servers
        ids = session + random.permutation(_BLOCK_SESSIONS) + _FIRST_SESSION
        count = int(lengths.sum())
        firsts = np.cumsum(lengths) - lengths
        # no two interactions of a session at the same time
        pauses = 1 + _whole(random.exponential(_PAUSE_MS, count))
        pauses[firsts] = 0
        since = pauses.cumsum()
        since -= np.repeat(since[firsts], lengths)
        pending.append(
            {
                "session": np.repeat(ids, lengths),
                "time": np.repeat(starts, lengths) + since,
                "item": catalogue.choose(count, random),
                "event": random.choice(len(EVENTS), count, p=_EVENT_SHARES),
            }
        )
        session, moment = session + _BLOCK_SESSIONS, int(starts[-1])
        rows = {name: np.concatenate([part[name] for part in pending]) for name in pending[0]}
        order = np.argsort(rows["time"], kind="stable")
        rows = {name: values[order] for name, values in rows.items()}
        # later sessions begin after `moment`
        done = int(np.searchsorted(rows["time"], moment))
        yield {name: values[:done] for name, values in rows.items()}
        pending = [{name: values[done:] for name, values in rows.items()}]


def _in_blocks(parts: Iterator[Columns], rows: int) -> Iterator[Columns]:
    """Yield the first `rows` rows of all parts, `BLOCK_ROWS` at a time."""
    pending: list[Columns] = []
    while rows:
        size = min(rows, BLOCK_ROWS)
        while sum(len(part["time"]) for part in pending) < size:
            pending.append(next(parts))
        merged = {name: np.concatenate([part[name] for part in pending]) for name in pending[0]}
        yield {name: values[:size] for name, values in merged.items()}
        pending = [{name: values[size:] for name, values in merged.items()}]
        rows -= size


def _whole(values: np.ndarray) -> np.ndarray:
    return np.floor(values).astype(np.int64)


if __name__ == "__main__":
    write_log(Path(sys.argv[1]), int(sys.argv[2]), items=int(sys.argv[3]), seed=int(sys.argv[4]))

"""A log of a shop that never was, to preprocess: any number of rows in bounded memory.

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
"""Of a row group; as many are in memory at a time, and those of a block of sessions."""
CATEGORIES = 1_000
EVENTS = ("view", "cart", "purchase")
MEAN_LENGTH = 5
LONGEST = 200
"""Interactions of a session."""
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
"""Mean, from the start of a session to that of the next: they overlap by the thousand."""
_PAUSE_MS = 30_000.0
"""Mean, from an interaction to the next of its session."""
_ZIPF = 1.05
_EVENT_SHARES = (0.9, 0.07, 0.03)
_NO_PRICE = 0.01

Columns = dict[str, np.ndarray]


class Catalogue:
    """The items: their ids, how often each is chosen, their categories and prices."""

    def __init__(self, items: int, random: np.random.Generator) -> None:
        # ids with gaps, and the popular ones anywhere among them
        self.ids = random.permutation(4 * items)[:items].astype(np.int64) + _FIRST_ITEM
        self.category = random.integers(0, CATEGORIES, items)
        self.price = np.round(np.exp(random.normal(3.0, 1.0, items)), 2)
        self.price[random.random(items) < _NO_PRICE] = np.nan
        weights = np.arange(1, items + 1) ** -_ZIPF
        self._cumulative = np.cumsum(weights) / weights.sum()

    def choose(self, count: int, random: np.random.Generator) -> np.ndarray:
        """(count,) positions of items, popular ones more often."""
        found = np.searchsorted(self._cumulative, random.random(count))
        return np.minimum(found, len(self.ids) - 1)  # the last sum may be a bit below 1


def write_log(path: Path, rows: int, *, items: int = 200_000, seed: int = 0) -> None:
    """Write so many interactions, the oldest first, as a Parquet file.

    Columns as in `SCHEMA`, timestamps in milliseconds. Category and price are the item's; a price
    may be missing. The log ends when it has its rows, some sessions with it. The same seed and
    items give the same bytes, and fewer rows are the beginning of more.
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
    """Interactions without end, in order of time, some at a time."""
    waiting: list[Columns] = []
    number, moment = 0, _FIRST_TIME
    while True:
        lengths = np.minimum(random.geometric(1 / MEAN_LENGTH, _BLOCK_SESSIONS), LONGEST)
        starts = moment + _whole(random.exponential(_SESSION_GAP_MS, _BLOCK_SESSIONS)).cumsum()
        # ids are not in the order of time, as those of a shop with several servers
        ids = number + random.permutation(_BLOCK_SESSIONS) + _FIRST_SESSION
        count = int(lengths.sum())
        firsts = np.cumsum(lengths) - lengths
        # no two interactions of a session at the same time
        pauses = 1 + _whole(random.exponential(_PAUSE_MS, count))
        pauses[firsts] = 0
        since = pauses.cumsum()
        since -= np.repeat(since[firsts], lengths)
        waiting.append(
            {
                "session": np.repeat(ids, lengths),
                "time": np.repeat(starts, lengths) + since,
                "item": catalogue.choose(count, random),
                "event": random.choice(len(EVENTS), count, p=_EVENT_SHARES),
            }
        )
        number, moment = number + _BLOCK_SESSIONS, int(starts[-1])
        rows = {name: np.concatenate([part[name] for part in waiting]) for name in waiting[0]}
        order = np.argsort(rows["time"], kind="stable")
        rows = {name: values[order] for name, values in rows.items()}
        # whatever begins later comes after these
        done = int(np.searchsorted(rows["time"], moment))
        yield {name: values[:done] for name, values in rows.items()}
        waiting = [{name: values[done:] for name, values in rows.items()}]


def _in_blocks(parts: Iterator[Columns], rows: int) -> Iterator[Columns]:
    """The first `rows` of all parts, `BLOCK_ROWS` at a time."""
    held: list[Columns] = []
    while rows:
        size = min(rows, BLOCK_ROWS)
        while sum(len(part["time"]) for part in held) < size:
            held.append(next(parts))
        joined = {name: np.concatenate([part[name] for part in held]) for name in held[0]}
        yield {name: values[:size] for name, values in joined.items()}
        held = [{name: values[size:] for name, values in joined.items()}]
        rows -= size


def _whole(values: np.ndarray) -> np.ndarray:
    return np.floor(values).astype(np.int64)


if __name__ == "__main__":
    write_log(Path(sys.argv[1]), int(sys.argv[2]), items=int(sys.argv[3]), seed=int(sys.argv[4]))

"""Synthetic data directory for both sides: sessions as Parquet lists of indices, and a schema."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.columns import FIRST_ITEM, ITEM, SCHEMA_FILE, SESSIONS_DIRECTORY

MEAN_LENGTH = 5.0
SHORTEST = 2
ZIPF_EXPONENT = 0.8
_ROW_GROUP_SESSIONS = 4_096
"""Sessions that a loader reads at a time."""

_SCHEMA = """\
feature {{
  name: "{item}"
  value_count {{
    min: {shortest}
    max: {longest}
  }}
  type: INT
  int_domain {{
    name: "{item}"
    max: {highest}
    is_categorical: true
  }}
  annotation {{
    tag: "item_id"
    tag: "id"
    tag: "item"
    tag: "categorical"
    tag: "list"
    extra_metadata {{
      [type.googleapis.com/google.protobuf.Struct] {{
        fields {{ key: "dtype_item_size" value {{ number_value: 64.0 }} }}
        fields {{ key: "is_list" value {{ bool_value: true }} }}
        fields {{ key: "is_ragged" value {{ bool_value: true }} }}
      }}
    }}
  }}
}}
"""


def write_sessions(
    directory: Path,
    *,
    items: int,
    longest: int,
    parts: dict[str, int],
    seed: int = 0,
    full: bool = False,
) -> None:
    """Write the parts and the schema; `parts` maps a name to its number of sessions.

    Lengths are geometric from 2 to `longest`, about 5 on average, or all `longest` if `full`;
    items are drawn by a Zipf law, the most popular with the lowest index.
    """
    random = np.random.default_rng(seed)
    for name, sessions in parts.items():
        folder = directory / SESSIONS_DIRECTORY / name
        folder.mkdir(parents=True)
        values, offsets = draw_sessions(random, sessions, items, longest)
        if full:
            offsets = np.arange(sessions + 1) * longest
            values = np.resize(values, offsets[-1])
        lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))
        table = pa.table({ITEM: lists})
        pq.write_table(table, folder / "part-0.parquet", row_group_size=_ROW_GROUP_SESSIONS)
    schema = _SCHEMA.format(
        item=ITEM, shortest=SHORTEST, longest=longest, highest=items + FIRST_ITEM - 1
    )
    (directory / SCHEMA_FILE).write_text(schema, encoding="utf-8")


def draw_sessions(
    random: np.random.Generator, sessions: int, items: int, longest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the item indices of all sessions and their (sessions + 1,) offsets."""
    # a little above the mean, which cutting at `longest` lowers again
    chance = 1 / (MEAN_LENGTH + 0.1 - SHORTEST + 1)
    lengths = np.clip(random.geometric(chance, sessions) + SHORTEST - 1, SHORTEST, longest)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    weights = np.arange(1, items + 1) ** -ZIPF_EXPONENT
    drawn = np.searchsorted(np.cumsum(weights / weights.sum()), random.random(offsets[-1]))
    return np.minimum(drawn, items - 1) + FIRST_ITEM, offsets


def padded_batch(
    random: np.random.Generator, sessions: int, items: int, longest: int, *, full: bool
) -> np.ndarray:
    """Return (sessions, longest) item indices, padded with 0; without any padding if `full`."""
    values, offsets = draw_sessions(random, sessions, items, longest)
    lengths = np.full(sessions, longest) if full else np.diff(offsets)
    inside = np.arange(longest) < lengths[:, None]
    batch = np.zeros((sessions, longest), np.int64)
    batch[inside] = np.resize(values, inside.sum())
    return batch

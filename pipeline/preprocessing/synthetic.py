"""Synthetic shop clicks with structure worth learning.

Items belong to categories and have followers: most clicks go from an item to one of a few that
tend to follow it, on each device another one first, some to a popular item of the same category,
some back to an item seen before, some elsewhere. A model that learns the followers does much
better than popularity, and one that reads the device better than rules between items; the random
clicks bound how well it can do at best.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.core.errors import ConfigError

FOLLOWERS = 4
"""Items that tend to come after an item."""
FOLLOW, SAME_CATEGORY, AGAIN = 0.6, 0.15, 0.1
"""Chances of a click; the rest goes anywhere by popularity."""
MEAN_LENGTH = 5.0
LONGEST = 60
FIRST_DAY = np.datetime64("2026-01-05", "us")
DEVICES = ("phone", "desktop", "tablet")


def synthesize(
    out: Path,
    *,
    sessions: int = 8_000,
    items: int = 1_000,
    days: int = 14,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write clicks to `out`, .csv, .csv.gz or .parquet, in the order of time; return their counts.

    Columns: session, product, time (text, UTC), category, price, action, device. ConfigError for
    a number that is too small or another kind of file.
    """
    if sessions < 10 or items < 10 or days < 1:
        raise ConfigError(
            f"Found {sessions} sessions, {items} items, {days} days; expected at least 10, 10, 1."
        )
    if not 1 <= days <= 36_500 or seed < 0:
        raise ConfigError(
            f"Found {days} days, seed {seed}; expected 1 to 36500 days, a seed from 0."
        )
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; it is left alone. Choose another --out, or --overwrite.")
    name = out.name.lower()
    if not name.endswith((".csv", ".csv.gz", ".parquet")):
        raise ConfigError(f"{out}: expected a name that ends in .csv, .csv.gz or .parquet.")
    table = clicks(np.random.default_rng(seed), sessions, items, days)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{os.getpid()}.{out.name}")
    try:
        if name.endswith(".parquet"):
            pq.write_table(table, partial)
        else:
            compression = "gzip" if name.endswith(".gz") else None
            with pa.output_stream(str(partial), compression=compression) as stream:
                pa.csv.write_csv(table, stream)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return {"interactions": table.num_rows, "sessions": sessions, "items": items, "days": days}


def clicks(random: np.random.Generator, sessions: int, items: int, days: int) -> pa.Table:
    """Clicks of all sessions, sorted by time."""
    popularity = 1 / np.arange(1, items + 1) ** 0.8
    popularity /= popularity.sum()
    num_categories = max(2, items // 40)
    category = random.integers(num_categories, size=items)
    price = np.round(
        np.exp(random.normal(3.0, 0.8, num_categories)[category] + random.normal(0, 0.4, items)), 2
    )
    followers = _followers(random, category)
    lengths = 1 + np.minimum(random.geometric(1 / (MEAN_LENGTH - 1), sessions), LONGEST - 1)
    lengths[random.random(sessions) < 0.05] = 1
    device = random.choice(len(DEVICES), sessions, p=[0.5, 0.35, 0.15])
    paths = _walk(random, popularity, category, followers, lengths, device)

    inside = np.arange(paths.shape[1]) < lengths[:, np.newaxis]
    start = random.uniform(0, days * 86_400, sessions)
    dwell = np.exp(random.normal(3.5, 1.0, paths.shape))
    seconds = start[:, np.newaxis] + np.cumsum(dwell, axis=1)
    rows = np.repeat(np.arange(sessions), lengths)
    product, moment = paths[inside], seconds[inside]
    action = np.array(["view", "cart", "purchase"])[
        random.choice(3, len(rows), p=[0.88, 0.08, 0.04])
    ]
    order = np.argsort(moment, kind="stable")
    times = FIRST_DAY + (moment[order] * 1e6).astype("timedelta64[us]")
    return pa.table(
        {
            "session": _names("s", rows[order], 7),
            "product": _names("sku-", product[order], 5),
            "time": pa.array([f"{t} UTC" for t in np.datetime_as_string(times, "ms")]),
            "category": _names("category-", category[product[order]], 2),
            "price": pa.array(price[product[order]]),
            "action": pa.array(action[order]),
            "device": pa.array(np.array(DEVICES)[device[rows[order]]]),
        }
    )


def _followers(random: np.random.Generator, category: np.ndarray) -> np.ndarray:
    """(items, FOLLOWERS): mostly of the item's own category."""
    items = len(category)
    chosen = random.integers(items, size=(items, FOLLOWERS))
    for value in np.unique(category):
        members = np.flatnonzero(category == value)
        chosen[members, : FOLLOWERS - 1] = random.choice(members, (len(members), FOLLOWERS - 1))
    return chosen


def _walk(
    random: np.random.Generator,
    popularity: np.ndarray,
    category: np.ndarray,
    followers: np.ndarray,
    lengths: np.ndarray,
    device: np.ndarray,
) -> np.ndarray:
    """(sessions, longest) items, step by step for all sessions at once."""
    sessions, longest = len(lengths), int(lengths.max())
    items = len(popularity)
    paths = np.zeros((sessions, longest), np.int64)
    paths[:, 0] = random.choice(items, sessions, p=popularity)
    by_category = [np.flatnonzero(category == c) for c in range(category.max() + 1)]
    weights = [popularity[members] / popularity[members].sum() for members in by_category]
    for step in range(1, longest):
        before = paths[:, step - 1]
        kind = random.random(sessions)
        rank = np.minimum(random.geometric(0.5, sessions) - 1, FOLLOWERS - 1)
        # which of the followers is the likeliest depends on the device
        following = followers[before, (rank + device) % FOLLOWERS]
        again = paths[np.arange(sessions), random.integers(step, size=sessions)]
        anywhere = random.choice(items, sessions, p=popularity)
        near = anywhere.copy()
        for value, members in enumerate(by_category):
            rows = np.flatnonzero(category[before] == value)
            if len(members):
                near[rows] = random.choice(members, len(rows), p=weights[value])
        limits = np.cumsum([FOLLOW, SAME_CATEGORY, AGAIN])
        paths[:, step] = np.select(
            list(kind < limits[:, np.newaxis]), [following, near, again], anywhere
        )
    return paths


def _names(prefix: str, numbers: np.ndarray, digits: int) -> pa.Array:
    return pa.array([f"{prefix}{number:0{digits}d}" for number in numbers.tolist()])

"""Synthetic shop clicks with structure that a sequence model can use and a first-order rule cannot.

A visitor has two latent properties: a taste, and an errand, which is an order of the categories of
the shop (a tent, then a sleeping bag, then a stove). The next click depends on the log as follows:

- The action on the last item decides the category. After a view the visitor stays and compares
  another item of the category; after a cart or a purchase the errand goes on to its next category.
  All errands pass through all categories, each in another order, so the category before the current
  one, often several clicks back, tells which errand it is.
- The taste decides which items of the category. An item suits `SUITS` of the `TASTES`, so one click
  leaves several tastes possible and two or three clicks leave one.
- The device decides the price: each device has a third of the price range that it prefers.

Some clicks return to an item of the session, and some go anywhere by popularity; the latter bound
how well any model can do. The last item alone, which is all that co-visitation and sequential rules
read, leaves the action, the errand, the device and much of the taste open; session-kNN reads all
items of the session, and neither their order nor the columns.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.core.errors import ConfigError
from pipeline.core.files import atomic_write

ITEMS_PER_CATEGORY = 40
ERRANDS = 4
"""Orders in which visitors go through the categories."""
TASTES, SUITS = 8, 2
"""Tastes of visitors, and how many of them an item suits."""
UNSUITED = 0.02
"""Weight of an item that does not suit the taste; 1 if it does."""
OTHER_PRICE = 0.2
"""Weight of an item outside the price range that the device prefers; 1 inside."""
AGAIN, ANYWHERE = 0.08, 0.1
"""Share of clicks on an item seen before in the session, and on any item by its popularity."""
POPULARITY_POWER = 0.8
"""An item of popularity rank r is chosen in proportion to r to the minus this power."""
ACTIONS, ACTION_SHARES = ("view", "cart", "purchase"), (0.65, 0.25, 0.1)
VIEW = 0
DEVICES, DEVICE_SHARES = ("phone", "desktop", "tablet"), (0.5, 0.35, 0.15)
MEAN_LENGTH = 5.0
LONGEST = 60
ONE_CLICK = 0.05
"""Share of sessions cut to one click."""
FIRST_DAY = np.datetime64("2026-01-05", "us")

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


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
            f"--sessions is {sessions}, --items {items} and --days {days}, expected at least "
            "10, 10 and 1."
        )
    if not 1 <= days <= 36_500 or seed < 0:
        raise ConfigError(
            f"--days is {days} and --seed {seed}, expected 1 to 36500 days and a seed from 0."
        )
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; it is left alone. Choose another --out, or --overwrite.")
    name = out.name.lower()
    if not name.endswith((".csv", ".csv.gz", ".parquet")):
        raise ConfigError(f"{out}: expected a name that ends in .csv, .csv.gz or .parquet.")
    table = clicks(np.random.default_rng(seed), sessions, items, days)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as partial:
        if name.endswith(".parquet"):
            pq.write_table(table, partial)
        else:
            compression = "gzip" if name.endswith(".gz") else None
            with pa.output_stream(str(partial), compression=compression) as stream:
                pa.csv.write_csv(table, stream)
    return {"interactions": table.num_rows, "sessions": sessions, "items": items, "days": days}


def clicks(random: np.random.Generator, sessions: int, items: int, days: int) -> pa.Table:
    """Clicks of all sessions, sorted by time."""
    shop = _open_shop(random, items)
    lengths = _session_lengths(random, sessions)
    device = random.choice(len(DEVICES), sessions, p=DEVICE_SHARES)
    action = random.choice(len(ACTIONS), (sessions, int(lengths.max())), p=ACTION_SHARES)
    product = _walk(random, shop, lengths, device, action)

    start = random.uniform(0, days * 86_400, sessions)
    dwell = np.exp(random.normal(3.5, 1.0, product.shape))
    seconds = start[:, np.newaxis] + np.cumsum(dwell, axis=1)
    inside = np.arange(product.shape[1]) < lengths[:, np.newaxis]  # (sessions, longest)
    order = np.argsort(seconds[inside], kind="stable")
    session = np.repeat(np.arange(sessions), lengths)[order]
    product, action, seconds = (x[inside][order] for x in (product, action, seconds))
    times = FIRST_DAY + (seconds * 1e6).astype("timedelta64[us]")
    return pa.table(
        {
            "session": _names("s", session, 7),
            "product": _names("sku-", product, 5),
            "time": pa.array([f"{t} UTC" for t in np.datetime_as_string(times, "ms")]),
            "category": _names("category-", shop.category[product], 2),
            "price": pa.array(shop.price[product]),
            "action": pa.array(np.array(ACTIONS)[action]),
            "device": pa.array(np.array(DEVICES)[device[session]]),
        }
    )


@dataclass(frozen=True)
class _Choice:
    """Draws items from one of many groups, each with weights of its own, for all rows at once."""

    items: Ints
    """(n,) items of all groups, group after group."""
    bounds: Floats
    """(n,) group number plus the cumulative share of the item in its group, rising."""

    @classmethod
    def by_weights(cls, group: Ints, items: Ints, weights: Floats) -> "_Choice":
        """(n,) group of each entry, in order and without gaps; (n,) its item; (n,) its weight."""
        total = np.cumsum(weights)
        last = np.append(np.flatnonzero(np.diff(group)), len(group) - 1)  # last entry of each group
        before = np.concatenate([[0.0], total[last]])
        bounds = group + (total - before[group]) / np.diff(before)[group]
        bounds[last] = group[last] + 1  # exact despite rounding
        return cls(items, bounds)

    def draw(self, random: np.random.Generator, group: Ints) -> Ints:
        """(R,) groups -> (R,) an item of each."""
        return self.items[np.searchsorted(self.bounds, group + random.random(len(group)), "right")]


@dataclass(frozen=True)
class _Shop:
    """The catalogue, and how visitors choose from it."""

    category: Ints
    """(V,) category of each item."""
    price: Floats
    """(V,) price of each item."""
    next_category: Ints
    """(ERRANDS, categories) the category that an errand goes on to."""
    popular: _Choice
    """Any item by its popularity, in one group."""
    suitable: _Choice
    """Items of a category by taste, device and popularity; groups as in `group`."""

    def group(self, category: Ints, taste: Ints, device: Ints) -> Ints:
        """Number of a group of `suitable`."""
        return (category * TASTES + taste) * len(DEVICES) + device


def _open_shop(random: np.random.Generator, items: int) -> _Shop:
    num_categories = max(2, items // ITEMS_PER_CATEGORY)
    category = random.permutation(np.arange(items) % num_categories)
    price = np.exp(random.normal(3.0, 0.8, num_categories)[category] + random.normal(0, 0.4, items))
    suits = random.random((items, TASTES)).argsort(axis=1) < SUITS
    popularity = 1 / np.arange(1, items + 1) ** POPULARITY_POWER
    every = np.arange(items)
    return _Shop(
        category=category,
        price=np.round(price, 2),
        next_category=_errands(random, num_categories),
        popular=_Choice.by_weights(np.zeros_like(every), every, popularity),
        suitable=_suitable(category, price, suits, popularity),
    )


def _errands(random: np.random.Generator, num_categories: int) -> Ints:
    """(ERRANDS, categories) the category after each, in rounds through all of them."""
    rounds = random.random((ERRANDS, num_categories)).argsort(axis=1)
    following = np.empty_like(rounds)
    np.put_along_axis(following, rounds, np.roll(rounds, -1, axis=1), axis=1)
    return following


def _suitable(
    category: Ints, price: Floats, suits: NDArray[np.bool_], popularity: Floats
) -> _Choice:
    """(V,) category, price, popularity and (V, TASTES) tastes of items -> `_Shop.suitable`."""
    groups, entries, weights = [], [], []
    for value in range(category.max() + 1):
        members = np.flatnonzero(category == value)  # (n,)
        rank = price[members].argsort().argsort()
        price_range = rank * len(DEVICES) // len(members)
        preferred = np.arange(len(DEVICES))[:, np.newaxis] == price_range  # (devices, n)
        by_device = np.where(preferred, 1.0, OTHER_PRICE)
        by_taste = np.where(suits[members].T, 1.0, UNSUITED)  # (TASTES, n)
        both = by_taste[:, np.newaxis] * by_device * popularity[members]  # (TASTES, devices, n)
        num_groups = TASTES * len(DEVICES)
        groups.append(np.repeat(np.arange(num_groups) + value * num_groups, len(members)))
        entries.append(np.tile(members, num_groups))
        weights.append(both.ravel())
    return _Choice.by_weights(
        np.concatenate(groups), np.concatenate(entries), np.concatenate(weights)
    )


def _session_lengths(random: np.random.Generator, sessions: int) -> Ints:
    lengths = 1 + np.minimum(random.geometric(1 / (MEAN_LENGTH - 1), sessions), LONGEST - 1)
    lengths[random.random(sessions) < ONE_CLICK] = 1
    return lengths


def _walk(
    random: np.random.Generator, shop: _Shop, lengths: Ints, device: Ints, action: Ints
) -> Ints:
    """(sessions, longest) items, click by click for all sessions at once."""
    sessions = len(lengths)
    taste = random.integers(TASTES, size=sessions)
    errand = random.integers(ERRANDS, size=sessions)
    category = shop.category[shop.popular.draw(random, np.zeros(sessions, np.int64))]
    product = np.zeros(action.shape, np.int64)
    product[:, 0] = shop.suitable.draw(random, shop.group(category, taste, device))
    for click in range(1, action.shape[1]):
        rows = np.flatnonzero(lengths > click)
        here = shop.category[product[rows, click - 1]]
        goes_on = action[rows, click - 1] != VIEW
        target = np.where(goes_on, shop.next_category[errand[rows], here], here)
        suitable = shop.suitable.draw(random, shop.group(target, taste[rows], device[rows]))
        again = product[rows, random.integers(click, size=len(rows))]
        anywhere = shop.popular.draw(random, np.zeros_like(rows))
        kind = random.random(len(rows))
        product[rows, click] = np.select(
            [kind < AGAIN, kind < AGAIN + ANYWHERE], [again, anywhere], suitable
        )
    return product


def _names(prefix: str, numbers: NDArray[Any], digits: int) -> pa.Array:
    return pa.array([f"{prefix}{number:0{digits}d}" for number in numbers.tolist()])

# %% [markdown]
# # Every night
#
# `pipeline.update` does all of it for the logs of a day: preprocess, train from yesterday's
# weights, evaluate, and export unless the new model is worse. Killed anywhere, the same call goes
# on.

# %%
from pathlib import Path

import pandas as pd

from pipeline import Recipe, rollback, update
from pipeline.preprocessing.synthetic import synthesize

synthesize(Path("clicks.parquet"), sessions=2_000, items=100, days=8)
clicks = pd.read_parquet("clicks.parquet")
days = pd.to_datetime(clicks["time"], utc=True).dt.date
for day in sorted(days.unique()):
    clicks[days == day].to_parquet(f"clicks-{day}.parquet")
logs = sorted(Path().glob("clicks-*.parquet"))
recipe = Recipe.from_dict(
    {
        "preprocess": {
            "session": "session",
            "item": "product",
            "timestamp": {"column": "time"},
            "split": {"test": 0.1},
        },
        "train": {"epochs": 2},
    },
    "example",
)

# %% [markdown]
# The first call makes a model of all logs so far, the next one learns from the new day. The gate
# lets a model through that loses no more than .05 of NDCG@20 against the one that is served.

# %%
first = update(recipe, logs[:-1], folder="shop")
print(f"version {first.version}")
second = update(recipe, logs[-2:], folder="shop", unless_worse="ndcg@20:0.05")
print(f"accepted: {second.accepted}. {second.reason}")

# %% [markdown]
# A server of `shop/repository` with `--reload` takes the new version up while it answers. Should
# it turn out badly, the version before is one call away.

# %%
if second.accepted:
    print(f"version {rollback('shop/repository')} is served again")

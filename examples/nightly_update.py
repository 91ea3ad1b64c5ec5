# %% [markdown]
# # Update every night
#
# After this page you can update a served model from the logs of each day, and return to the version
# before.
#
# ## Make a log of a file a day

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
# ## Update
#
# `pipeline.update` preprocesses, trains from the weights of the day before, evaluates and exports.
# After an interruption the same call continues. The first call learns from all logs so far. The
# second one exports its model unless it loses more than .05 of NDCG@20 against the served one.

# %%
first = update(recipe, logs[:-1], folder="shop")
print(f"version {first.version}")
second = update(recipe, logs[-2:], folder="shop", unless_worse="ndcg@20:0.05")
print(f"accepted: {second.accepted}. {second.reason}")

# %% [markdown]
# ## Return to the version before
#
# A server of `shop/repository` with `--reload` serves a new version without a restart. `rollback`
# makes it serve the version before again.

# %%
if second.accepted:
    print(f"version {rollback('shop/repository')} is served again")

# %% [markdown]
# Next: [update every night](../how-to/nightly-update.md) runs this by cron, systemd or Kubernetes.

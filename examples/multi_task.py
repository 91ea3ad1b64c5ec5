# %% [markdown]
# # Several tasks, and lists ranked by them
#
# After this page you can predict purchases beside the next item, and rank lists by the probability
# of a purchase.
#
# ## Make a log with purchases
#
# Every fourth item is bought in a third of its clicks, the others in 3 %. `per_item` predicts, for
# each item that may come next, whether the interaction with it is a purchase. `rank_by` adds the
# logarithm of this probability to the score of the next item.

# %%
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import Data, Recipe, evaluate, train
from pipeline.preprocessing.synthetic import synthesize

synthesize(Path("clicks.parquet"), sessions=1_500, items=100)
clicks = pd.read_parquet("clicks.parquet")
# in this shop every fourth item is bought in a third of its clicks, the others hardly ever
number = clicks["product"].str[-3:].astype(int)
chance = np.where(number % 4 == 0, 0.33, 0.03)
bought = np.random.default_rng(0).random(len(clicks)) < chance
clicks["action"] = np.where(bought, "purchase", "view")
preparation = {
    "session": "session",
    "item": "product",
    "timestamp": {"column": "time"},
    "features": [{"name": "action", "kind": "categorical", "of": "interaction"}],
    "split": {"valid": "1d", "test": "1d"},
}
purchase = {"feature": "action", "kind": "binary", "positive": ["purchase"], "per_item": True}
recipe = Recipe.from_dict(
    {
        "preprocess": preparation,
        "model": {"targets": [purchase], "rank_by": "next_item + log(action)"},
        "train": {"epochs": 2},
    },
    "example",
)
data = Data.from_frame(clicks, recipe, out="data")
run = train(recipe, data, out="run")

# %% [markdown]
# ## Evaluate both tasks
#
# The target has a table of its own: `auc` measures whether purchases get higher probabilities than
# other interactions, `calibration` divides the mean probability by the share of purchases.

# %%
print(evaluate(run, data, cutoffs=[10]))
print(run.recommend({"item_id": ["sku-00001", "sku-00002"]}, k=5))

# %% [markdown]
# Next: [predict more than the next item](../how-to/targets.md) has all settings.

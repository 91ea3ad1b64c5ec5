# %% [markdown]
# # A first model
#
# Synthetic clicks become sessions, sessions train a model, and the model recommends: the whole
# way in Python, in a minute on a laptop. Everything is written below the current folder.

# %%
from pathlib import Path

import pandas as pd

from pipeline import Recipe, evaluate, preprocess, train
from pipeline.preprocessing.synthetic import synthesize

synthesize(Path("clicks.csv.gz"), sessions=2_000, items=200)

# %% [markdown]
# A recipe names the columns of the log. `model` and `train` may stay empty: the defaults are a
# strong model. Here it trains for two epochs, which is enough to see it work.

# %%
Path("shop.yaml").write_text(
    """
preprocess:
  session: session
  item: product
  timestamp: {column: time, unit: iso, features: [hour, elapsed]}
  features:
    - {name: category, kind: categorical, of: item}
    - {name: price, kind: continuous, of: item, log: true}
  split: {valid: 1d, test: 1d}
train:
  epochs: 2
"""
)
recipe = Recipe.load("shop.yaml")
data = preprocess(recipe, "clicks.csv.gz", out="data")
print(pd.DataFrame(data.facts["sessions"]).T)  # data/report.html says more

# %%
run = train(recipe, data, out="run")

# %% [markdown]
# `evaluate` ranks every next item of the test sessions in the whole catalogue, beside baselines
# on the same targets. A model below a baseline is a reason to look at the data first.

# %%
evaluation = evaluate(run, data, cutoffs=[20])
print(evaluation)

# %% [markdown]
# Raw ids in, raw ids out. `sku-00001` was seen in training; a session may also hold items and
# columns that were not.

# %%
print(run.recommend({"item_id": ["sku-00001", "sku-00002"]}, k=5))

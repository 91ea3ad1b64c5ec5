# %% [markdown]
# # A first model
#
# After this page you have trained a model on synthetic clicks and asked it for recommendations, all
# in Python. It takes a minute on a laptop and writes to the current folder.
#
# ## Make a log
#
# `synthesize` writes clicks with session, product, time, category, price, action and device.

# %%
from pathlib import Path

import pandas as pd

from pipeline import Recipe, evaluate, preprocess, train
from pipeline.preprocessing.synthetic import synthesize

synthesize(Path("clicks.csv.gz"), sessions=2_000, items=200)

# %% [markdown]
# ## Preprocess
#
# A recipe names the columns of the log. `model` and `train` may stay empty: their defaults are a
# strong model. Here it trains for two epochs. The newest day is the test part, the day before it
# validates.

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
# ## Evaluate
#
# `evaluate` ranks each next item of the test sessions in the whole catalogue, beside baselines on
# the same targets. If a model is below a baseline, look at the data first.

# %%
evaluation = evaluate(run, data, cutoffs=[20])
print(evaluation)

# %% [markdown]
# ## Recommend
#
# A session is a list of raw item ids, oldest first. It may hold ids that training never saw.

# %%
print(run.recommend({"item_id": ["sku-00001", "sku-00002"]}, k=5))

# %% [markdown]
# Next: [from a click log to Triton](../tutorials/from-a-log-to-triton.md) does these steps on the
# command line and serves the model. [A log with errors](own_log.md) reads a log that is not clean.

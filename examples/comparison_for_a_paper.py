# %% [markdown]
# # A comparison for a paper
#
# After this page you can compare models on the same targets, over several seeds, with intervals and
# a corrected test.
#
# ## Preprocess a log

# %%
from pathlib import Path

from pipeline import Recipe, compare, preprocess, train
from pipeline.preprocessing.synthetic import synthesize

synthesize(Path("clicks.csv.gz"), sessions=1_500, items=100)
preparation = {
    "session": "session",
    "item": "product",
    "timestamp": {"column": "time"},
    "split": {"valid": "1d", "test": "1d"},
}
data = preprocess(
    Recipe.from_dict({"preprocess": preparation}, "example"), "clicks.csv.gz", out="data"
)

# %% [markdown]
# ## Train models and seeds
#
# These are two published models with two seeds each. On the command line, `pipeline train data
# --recipe gru4rec --seeds 2 --out runs/gru4rec` trains both seeds, and `pipeline recipes list`
# names the models.

# %%
runs = []
for name in ("sasrec", "gru4rec"):
    for seed in (0, 1):
        recipe = Recipe.load(name, (f"train.seed={seed}", "train.epochs=2"))
        runs.append(train(recipe, data, out=f"runs/{name}/seed-{seed}"))

# %% [markdown]
# ## Compare
#
# Runs that differ in the seed alone are one row. Each p-value compares a row with the best one of
# the metric, paired by sessions, and is corrected for the number of rows (Holm).

# %%
comparison = compare(runs, data, cutoffs=[10])
print(comparison)
comparison.to_frame().to_csv("comparison.csv", index=False)  # a row per model and metric

# %% [markdown]
# `pipeline compare runs/sasrec runs/gru4rec --data data --out table.tex --figures figures` writes
# the table for LaTeX, and plots as SVG and PNG.
#
# Next: [compare models](../how-to/compare.md) explains the table, the test and the columns;
# [which model](../concepts/which-model.md) has results on public data.

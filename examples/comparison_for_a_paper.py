# %% [markdown]
# # A comparison for a paper
#
# Several models, several seeds, the same targets, intervals and a corrected test: what a table in
# a paper needs.

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
# Two seeds of two published models. On the command line `train --recipe gru4rec --seeds 2` does
# the same, and `pipeline recipes list` names the others.

# %%
runs = []
for name in ("sasrec", "gru4rec"):
    for seed in (0, 1):
        recipe = Recipe.load(name, (f"train.seed={seed}", "train.epochs=2"))
        runs.append(train(recipe, data, out=f"runs/{name}/seed-{seed}"))

# %% [markdown]
# Runs that differ in the seed alone are one row. The p-values compare each row with the best one
# of the metric, by sessions, and are corrected for their number (Holm).

# %%
comparison = compare(runs, data, cutoffs=[10])
print(comparison)

# %% [markdown]
# `pipeline compare runs/sasrec runs/gru4rec --data data --out table.tex --figures figures` writes
# the same as a table for LaTeX, and plots as SVG and PNG.

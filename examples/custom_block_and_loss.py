# %% [markdown]
# # A block and a loss of your own
#
# After this page you can use a module and a loss of yours in a model. The run needs none of this
# code: it is evaluated, exported and served like a run of a recipe.
#
# ## Preprocess a log

# %%
from pathlib import Path

import torch
from torch import nn

from pipeline import Recipe, evaluate, export, preprocess, train
from pipeline import model as tr
from pipeline.preprocessing.synthetic import synthesize

synthesize(Path("clicks.csv.gz"), sessions=1_000, items=100)
recipe = Recipe.from_dict(
    {
        "preprocess": {
            "session": "session",
            "item": "product",
            "timestamp": {"column": "time"},
            "features": [{"name": "category", "kind": "categorical", "of": "item"}],
            "split": {"valid": "1d", "test": "1d"},
        },
        "train": {"epochs": 2, "learning_rate": 0.005},
    },
    "example",
)
data = preprocess(recipe, "clicks.csv.gz", out="data")

# %% [markdown]
# ## Write the parts
#
# The block is a causal convolution: each position reads itself and the two before it. It maps
# (B, L, D) to (B, L, D), with padding on the right. The loss is any module of scores and targets.


# %%
class CausalConvolution(nn.Module):
    """Convolution over the last three interactions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, kernel_size=3)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(B, L, D) -> (B, L, D)."""
        channels = nn.functional.pad(embeddings.transpose(1, 2), (2, 0))  # nothing from the right
        return torch.relu(self.convolution(channels)).transpose(1, 2) + embeddings


class FocalLoss(nn.Module):
    """Cross-entropy that weighs targets which are scored well already less (Lin et al. 2017)."""

    def forward(self, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """(T, V) scores and (T,) targets -> one number."""
        log_probability = scores.log_softmax(1).gather(1, targets.unsqueeze(1)).squeeze(1)
        return -((1 - log_probability.exp()) ** 2 * log_probability).mean()


# %% [markdown]
# ## Build and train the model
#
# `tr.Model` checks that no position sees its target or a later interaction. Pad the convolution on
# the right, by `(0, 2)`, and it raises an error. The seed makes the initial weights repeatable:
# `train.seed` of the recipe is read after they are drawn.

# %%
torch.manual_seed(0)
inputs = tr.TabularSequenceFeatures.from_schema(
    data.schema, max_sequence_length=20, d_output=48, aggregation="concat", masking="causal"
)
body = tr.SequentialBlock(inputs, CausalConvolution(48), CausalConvolution(48))
model = tr.Model(tr.Head(body, tr.NextItemPredictionTask(loss=FocalLoss(), weight_tying=True)))

run = train(recipe, data, model=model, out="run")
print(evaluate(run, data, cutoffs=[10]))
export(run, out="repository")

# %% [markdown]
# For several seeds write the runs to `runs/own/seed-0`, `runs/own/seed-1` and so on: then
# [compare](../how-to/compare.md) takes them as one model.
#
# Next: [build a model](../how-to/build-a-model.md) lists the parts. To name yours in a recipe,
# [register them](../how-to/plugins.md).

"""Continuous features: numbers unchanged, through layers, or as soft embeddings."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.model.inputs.columns import Initializer, InputOptions, check_names, check_positive
from pipeline.model.inputs.tables import EMBEDDING_DEVIATION


class SoftEmbedding(nn.Module):
    """A number as a weighted sum of the rows of a table.

    The weights are softmax(w x + b), so that ranges of x get their own vectors (Li, Du and Bengio
    2017, "Time-dependent representation for neural event sequence prediction").
    """

    def __init__(
        self, num_embeddings: int, embeddings_dim: int, emb_initializer: Initializer | None = None
    ) -> None:
        super().__init__()
        check_positive("num_embeddings", num_embeddings)
        check_positive("embeddings_dim", embeddings_dim)
        self.projection_layer = nn.Linear(1, num_embeddings)
        self.embedding_table = nn.Embedding(num_embeddings, embeddings_dim)
        with torch.no_grad():
            if emb_initializer is None:
                nn.init.normal_(self.embedding_table.weight, std=EMBEDDING_DEVIATION)
            else:
                emb_initializer(self.embedding_table.weight)

    def forward(self, numbers: Tensor) -> Tensor:
        """(B, L) -> (B, L, d)."""
        shares = self.projection_layer(numbers.unsqueeze(-1)).softmax(-1)  # (B, L, rows)
        return shares @ self.embedding_table.weight


def build_soft_embeddings(names: Sequence[str], options: InputOptions) -> dict[str, nn.Module]:
    """Build the soft embedding of each feature, by name. ConfigError for options of other
    features."""
    cardinalities, dims = options.soft_embedding_cardinalities, options.soft_embedding_dims
    check_names("soft_embedding_cardinalities", cardinalities, names, "soft")
    check_names("soft_embedding_dims", dims, names, "soft")
    modules: dict[str, nn.Module] = {}
    for name in names:
        dim = dims.get(name, options.soft_embedding_dim_default)
        rows = cardinalities.get(name, options.soft_embedding_cardinality_default)
        soft = SoftEmbedding(rows, dim, options.embeddings_initializers.get(name))
        # layer normalization of a single number is always 0
        normed = options.layer_norm and dim > 1
        modules[name] = nn.Sequential(soft, nn.LayerNorm(dim)) if normed else soft
    return modules


def build_continuous_projection(
    num_features: int, dimensions: int | Sequence[int]
) -> nn.Sequential:
    """Linear layers with ReLU between and after: (B, L, features) -> (B, L, dimensions[-1])."""
    dimensions = [dimensions] if isinstance(dimensions, int) else list(dimensions)
    for dimension in dimensions or [0]:
        check_positive("continuous_projection", dimension)
    layers = nn.Sequential()
    width = num_features
    for dimension in dimensions:
        layers.append(nn.Linear(width, dimension)).append(nn.ReLU())
        width = dimension
    return layers

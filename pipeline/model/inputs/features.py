"""Input block: the features of each interaction become one vector."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from pipeline.core.errors import ConfigError
from pipeline.data.batch import SessionBatch
from pipeline.data.schema import Schema, Tags
from pipeline.model.inputs.aggregation import Aggregation, build_aggregation, build_projection
from pipeline.model.inputs.checks import check_names, check_positive, child_name
from pipeline.model.inputs.combiner import Combiner, check_combiner, look_up
from pipeline.model.inputs.continuous import build_continuous_projection, build_soft_embeddings
from pipeline.model.inputs.pretrained import (
    Normalizer,
    PretrainedEmbeddings,
    VectorProjection,
    build_vector_projections,
    check_pretrained,
)
from pipeline.model.inputs.probe import probe
from pipeline.model.inputs.selection import Tagged, select_features, together
from pipeline.model.inputs.tables import Initializer, build_tables
from pipeline.model.inputs.transformations import (
    TabularLayerNorm,
    Transformations,
    build_post,
    build_pre,
)
from pipeline.model.masking import Masking, choose_masking

PROJECTED = "continuous_projection"
"""The part that all continuous features together become."""


class TabularSequenceFeatures(nn.Module):
    """Embeddings of categorical features, numbers and vectors, combined per interaction.

    Its parts stand in one order: tables, continuous features, vectors looked up by index, vectors
    of the batch, each in the order of the schema. Features of a session are repeated along its
    interactions. Use `from_schema`.
    """

    def __init__(
        self,
        *,
        item: str,
        tables: Mapping[str, nn.Embedding],
        several: Mapping[str, Sequence[str]],
        combiner: Combiner,
        continuous: Sequence[str],
        continuous_projection: nn.Sequential | None,
        soft_embeddings: Mapping[str, nn.Module],
        pretrained: Mapping[str, PretrainedEmbeddings],
        vectors: Mapping[str, VectorProjection],
        pre: Sequence[nn.Module],
        post: Sequence[nn.Module],
        aggregation: Aggregation | nn.Module,
        projection: nn.Module | None,
        d_output: int | None,
        max_sequence_length: int | None,
        masking: str | Masking | None,
        masking_arguments: Mapping[str, Any],
    ) -> None:
        super().__init__()
        check_combiner(combiner)
        if max_sequence_length is not None:
            check_positive("max_sequence_length", max_sequence_length)
        self.item = item
        self.max_sequence_length = max_sequence_length
        self.combiner = combiner
        # features that share a table have it under the name of the first, so that it is saved once
        owners: dict[int, str] = {}
        self._owners = {name: owners.setdefault(id(table), name) for name, table in tables.items()}
        self._tables = nn.ModuleDict({child_name(owners[id(t)]): t for t in tables.values()})
        self.continuous = list(continuous)
        self.continuous_projection = continuous_projection
        self.soft_embeddings = _module_dict(soft_embeddings)
        self.pretrained = _module_dict(pretrained)
        self.vector_projections = _module_dict(vectors)
        self.pretrained_names = list(pretrained)
        self.vectors = list(vectors)
        """Features that are vectors, (B, L, P) or (B, P)."""
        self.pre = nn.ModuleList(pre)
        self.post = nn.ModuleList(post)
        self.several = {name: tuple(columns) for name, columns in several.items()}
        """Columns of one value each, by the feature of several values that they are of."""
        self._axes: dict[str, tuple[int, ...]] = (
            {
                column: (1, 2, 3) if column == name else (1, 2)
                for column, name in self.index_columns.items()
            }
            | dict.fromkeys(self.continuous, (1, 2))
            | dict.fromkeys(self.vectors, (2, 3))
            | {item: (2,)}
        )
        example = self.example_parts()
        for module in self.post:
            if isinstance(module, TabularLayerNorm):
                module.build({name: part.size(-1) for name, part in example.items()})
            example = probe(module, example, dict)
        widths = {name: part.size(-1) for name, part in example.items()}
        self.aggregation = build_aggregation(aggregation, item, widths)
        combined = probe(self.aggregation, example, Tensor)
        self.projection = build_projection(projection, d_output, combined.size(-1))
        self.output_size = int(probe(self.projection, combined, Tensor).size(-1))
        """D of the vector of an interaction."""
        self.masking: Masking | None = choose_masking(
            masking,
            self.output_size,
            masking_arguments,
            item_alone=self.feature_names == [item],
        )

    @classmethod
    def from_schema(
        cls,
        schema: Schema | Iterable[Any],
        *,
        categorical_tags: Tagged = (Tags.CATEGORICAL,),
        continuous_tags: Tagged = (Tags.CONTINUOUS,),
        pretrained_embeddings_tags: Tagged = (Tags.EMBEDDING,),
        max_sequence_length: int | None = None,
        embedding_dims: Mapping[str, int] | None = None,
        embedding_dim_default: int = 64,
        infer_embedding_sizes: bool = False,
        infer_embedding_sizes_multiplier: float = 2.0,
        embeddings_initializers: Mapping[str, Initializer] | None = None,
        shared_tables: Sequence[Sequence[str]] = (),
        combiner: Combiner = "mean",
        continuous_projection: int | Sequence[int] | None = None,
        continuous_soft_embeddings: bool = False,
        soft_embedding_cardinalities: Mapping[str, int] | None = None,
        soft_embedding_cardinality_default: int = 10,
        soft_embedding_dims: Mapping[str, int] | None = None,
        soft_embedding_dim_default: int = 8,
        layer_norm: bool = True,
        pretrained_embeddings: Mapping[str, PretrainedEmbeddings] | None = None,
        pretrained_output_dims: int | Mapping[str, int] | None = None,
        normalizer: Normalizer | None = None,
        pre: Transformations = None,
        post: Transformations = None,
        aggregation: Aggregation | nn.Module = "concat",
        projection: nn.Module | None = None,
        d_output: int | None = None,
        masking: str | Masking | None = None,
        train_on_last_item_seq_only: bool | None = None,
        mlm_probability: float | None = None,
        plm_probability: float | None = None,
        max_span_length: int | None = None,
        permute_all: bool | None = None,
        sample_from_batch: bool | None = None,
        tied_generator: bool | None = None,
        generator_loss_weight: float | None = None,
        discriminator_loss_weight: float | None = None,
    ) -> Self:
        """Choose features by tag, from our schema or Merlin's own. ConfigError for what can't be.

        - `*_tags`: which columns are read as indices, numbers and vectors; None for none. The
          item, tagged `item_id`, is always read, a column tagged `target` never.
        - `max_sequence_length`: L, the newest interactions that are read at prediction.
        - `embedding_dims` of some features; of others the width grows with their cardinality if
          `infer_embedding_sizes`, else it is `embedding_dim_default`.
        - `embeddings_initializers`: functions that fill a weight, by feature. Reserved rows are 0.
        - `shared_tables`: lists of features that have one table together.
        - `combiner` of several indices of an interaction: mean, sum or sqrtn.
        - `continuous_projection`: widths of linear layers with ReLU over all numbers together.
        - `continuous_soft_embeddings`: each number as a mixture of vectors, layer-normalised if
          `layer_norm`; `soft_embedding_*` are the number and width of the vectors.
        - `pretrained_embeddings`: by categorical feature, vectors to look up by its index beside
          its own table.
        - `pretrained_output_dims`, `normalizer`: of columns whose vectors come with the batch.
        - `pre` and `post`: what is done to a batch before and to each part after it is embedded.
        - `aggregation` of the parts: concat, stack, element-wise-sum,
          element-wise-sum-item-multi, or a module of {name: (B, L, d)} -> (B, L, D).
        - `projection` of the result by a module, or `d_output` by a linear layer of that width.
        - `masking`: clm, mlm, plm or rtd, or a masking; the rest are arguments of one of them, see
          `pipeline.model.masking`.
        """
        whole = schema if isinstance(schema, Schema) else Schema.from_merlin(schema)
        whole, several = together(whole)
        item = whole.item_id.name
        chosen = select_features(
            whole, categorical_tags, continuous_tags, pretrained_embeddings_tags
        )
        categories = chosen.categorical.column_names
        numbers = chosen.continuous.column_names
        initializers = dict(embeddings_initializers or {})
        dims = dict(embedding_dims or {})
        whole.select_by_name(*dims, *initializers)
        check_names("embedding_dims", dims, categories, "categorical")
        soft_names = numbers if continuous_soft_embeddings else []
        embedded = [*categories, *soft_names]
        check_names("embeddings_initializers", initializers, embedded, "embedded")
        cardinalities = {column.name: column.num_rows for column in chosen.categorical}
        check_pretrained(pretrained_embeddings or {}, cardinalities)
        if continuous_soft_embeddings and continuous_projection is not None:
            raise ConfigError(
                "Both continuous_projection and continuous_soft_embeddings are given. Leave out "
                "one: numbers go through layers together or become vectors each."
            )
        tables = build_tables(
            chosen.categorical,
            item=item,
            dims=dims,
            dim_default=embedding_dim_default,
            infer_sizes=infer_embedding_sizes,
            multiplier=infer_embedding_sizes_multiplier,
            initializers=initializers,
            shared=shared_tables,
        )
        layers = None
        if numbers and continuous_projection is not None:
            layers = build_continuous_projection(len(numbers), continuous_projection)
        return cls(
            item=item,
            tables=tables,
            several={name: columns for name, columns in several.items() if name in categories},
            combiner=combiner,
            continuous=numbers,
            continuous_projection=layers,
            soft_embeddings=build_soft_embeddings(
                soft_names,
                cardinalities=soft_embedding_cardinalities or {},
                cardinality_default=soft_embedding_cardinality_default,
                dims=soft_embedding_dims or {},
                dim_default=soft_embedding_dim_default,
                initializers=initializers,
                layer_norm=layer_norm,
            ),
            pretrained=pretrained_embeddings or {},
            vectors=build_vector_projections(chosen.vectors, pretrained_output_dims, normalizer),
            pre=build_pre(pre, cardinalities),
            post=build_post(post),
            aggregation=aggregation,
            projection=projection,
            d_output=d_output,
            max_sequence_length=max_sequence_length,
            masking=masking,
            masking_arguments={
                "train_on_last_item_seq_only": train_on_last_item_seq_only,
                "mlm_probability": mlm_probability,
                "plm_probability": plm_probability,
                "max_span_length": max_span_length,
                "permute_all": permute_all,
                "sample_from_batch": sample_from_batch,
                "tied_generator": tied_generator,
                "generator_loss_weight": generator_loss_weight,
                "discriminator_loss_weight": discriminator_loss_weight,
            },
        )

    @property
    def item_table(self) -> nn.Embedding:
        """(V, item width) input embeddings of the items."""
        return self.table(self.item)

    def table(self, name: str) -> nn.Embedding:
        """Input embeddings of a categorical feature."""
        table = self._tables[child_name(self._owners[name])]
        assert isinstance(table, nn.Embedding)  # noqa: S101
        return table

    @property
    def tables(self) -> dict[str, nn.Embedding]:
        """Input embeddings of all categorical features, by name."""
        return {name: self.table(name) for name in self._owners}

    def pretrained_table(self, name: str) -> nn.Embedding:
        """Vectors that stand beside the table of a categorical feature."""
        embeddings = self.pretrained[child_name(name)]
        assert isinstance(embeddings, PretrainedEmbeddings)  # noqa: S101
        return embeddings.table

    @property
    def feature_names(self) -> list[str]:
        """All features that a batch must hold: categorical ones, continuous ones, vectors."""
        return [*self.index_columns, *self.continuous, *self.vectors]

    @property
    def index_columns(self) -> dict[str, str]:
        """Columns of a batch that hold indices, with the feature whose table they are of."""
        return {column: name for name in self._owners for column in self.several.get(name, (name,))}

    def forward(self, batch: SessionBatch, items: Tensor | None = None) -> Tensor:
        """SessionBatch -> (B, L, D). DataError if it lacks a feature or has it in another shape.

        `items`: (V, d) to look the items up in, in place of their own table; its gradient is
        sparse.
        """
        batch = self._stacked(batch.read(self._axes, self.vectors))
        for noise in self.pre:
            batch = noise(batch)
        return self.combine(self._embed(batch.features, items))

    def combine(self, parts: dict[str, Tensor]) -> Tensor:
        """Vectors of the features by name, (B, L, d) each -> (B, L, D)."""
        for transformation in self.post:
            parts = transformation(parts)
        projected: Tensor = self.projection(self.aggregation(parts))
        return projected

    def _stacked(self, batch: SessionBatch) -> SessionBatch:
        """Columns of one value each as (B, L, M) of several."""
        features = dict(batch.features)
        for name, columns in self.several.items():
            features[name] = torch.stack([features.pop(column) for column in columns], -1)
        return SessionBatch(features, batch.lengths)

    def _embed(self, features: dict[str, Tensor], items: Tensor | None = None) -> dict[str, Tensor]:
        """Parts by name, (B, L, d) each."""
        width = features[self.item].size(1)
        parts = {
            name: look_up(
                table, features[name], self.combiner, items if name == self.item else None
            )
            for name, table in self.tables.items()
        }
        dtype = self.item_table.weight.dtype
        numbers = {name: features[name].to(dtype) for name in self.continuous}
        if self.continuous_projection is not None:
            together = [values.expand(-1, width) for values in numbers.values()]
            parts[PROJECTED] = self.continuous_projection(torch.stack(together, -1))
        elif len(self.soft_embeddings):
            for name, values in numbers.items():
                parts[name] = self.soft_embeddings[child_name(name)](values)
        else:
            parts |= {name: values.unsqueeze(-1) for name, values in numbers.items()}
        for name in self.pretrained_names:
            parts[f"{name}_pretrained"] = self.pretrained[child_name(name)](features[name])
        for name in self.vectors:
            vectors = features[name].to(dtype)
            parts[name] = self.vector_projections[child_name(name)](vectors)
        return {name: part.expand(-1, width, -1) for name, part in parts.items()}

    def example_parts(self) -> dict[str, Tensor]:
        """Parts of one session of two interactions of padding, for their widths."""
        where = self.item_table.weight.device
        features = {
            name: torch.zeros(1, 2, dtype=torch.int64, device=where) for name in self._owners
        }
        features |= {name: torch.zeros(1, 2, device=where) for name in self.continuous}
        for name in self.vectors:
            projection = self.vector_projections[child_name(name)]
            assert isinstance(projection, VectorProjection)  # noqa: S101
            features[name] = torch.zeros(1, 2, projection.width, device=where)
        with torch.no_grad():
            parts = self._embed(features)
        num_continuous = len(self.continuous) if self.continuous_projection is None else 1
        expected = len(self._owners) + num_continuous + len(self.pretrained_names)
        if len(parts) < expected + len(self.vectors):
            raise ConfigError(
                f"Two parts have one name among {', '.join(parts)}. Rename the column that is "
                f"called {PROJECTED} or ends in _pretrained."
            )
        return parts


def _module_dict(modules: Mapping[str, nn.Module]) -> nn.ModuleDict:
    return nn.ModuleDict({child_name(name): module for name, module in modules.items()})

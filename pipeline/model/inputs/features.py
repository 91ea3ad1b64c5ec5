"""Input block: the features of each interaction become one vector.

Shape letters: B sessions, L positions, d width of a part, D width of the interaction embedding.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from pipeline.core.errors import ConfigError
from pipeline.data.batch import SessionBatch
from pipeline.data.schema import Schema, Tags
from pipeline.model.inputs.aggregation import (
    Aggregation,
    build_aggregation,
    build_projection,
    run_example,
)
from pipeline.model.inputs.columns import (
    SelectedFeatures,
    Tagged,
    check_names,
    check_positive,
    child_name,
    merge_multi_valued,
    select_features,
)
from pipeline.model.inputs.continuous import (
    ContinuousOptions,
    build_continuous_projection,
    build_soft_embeddings,
)
from pipeline.model.inputs.pretrained import (
    PretrainedEmbeddings,
    PretrainedOptions,
    VectorProjection,
    build_vector_projections,
    check_pretrained,
)
from pipeline.model.inputs.tables import (
    Combiner,
    EmbeddingOptions,
    build_tables,
    check_combiner,
    look_up,
)
from pipeline.model.inputs.transformations import (
    TabularLayerNorm,
    Transformations,
    build_post,
    build_pre,
)
from pipeline.model.masking import ARGUMENTS, Masking, choose_masking

PROJECTED = "continuous_projection"
"""Name of the part that all continuous features make together."""
MASKING_ARGUMENTS = {name for names in ARGUMENTS.values() for name in names}

Options = TypeVar("Options")


@dataclass(frozen=True, kw_only=True)
class TagOptions:
    """Tags of the columns of each kind, as `TabularSequenceFeatures.from_schema` takes them."""

    categorical_tags: Tagged = (Tags.CATEGORICAL,)
    """Columns of indices; the item, tagged `item_id`, is always one."""
    continuous_tags: Tagged = (Tags.CONTINUOUS,)
    """Columns of numbers."""
    pretrained_embeddings_tags: Tagged = (Tags.EMBEDDING,)
    """Columns of vectors that come with the batch."""


@dataclass(frozen=True, kw_only=True)
class FeatureModules:
    """Modules that embed the features of an interaction, each by feature name."""

    item: str
    """Name of the item feature."""
    tables: Mapping[str, nn.Embedding]
    """Tables of categorical features; features that share one have the same object."""
    multi_valued: Mapping[str, Sequence[str]]
    """Columns of one value each, by multi-valued feature."""
    combiner: Combiner
    """Combination of the values of a multi-valued feature."""
    continuous: Sequence[str]
    """Continuous features."""
    continuous_projection: nn.Sequential | None
    """Layers over all continuous features together, or None."""
    soft_embeddings: Mapping[str, nn.Module]
    """Soft embeddings of continuous features."""
    pretrained: Mapping[str, PretrainedEmbeddings]
    """Vectors that are looked up by the index of a categorical feature."""
    vectors: Mapping[str, VectorProjection]
    """Projections of vectors that come with the batch."""


class TabularSequenceFeatures(nn.Module):
    """Embeddings of categorical features, numbers and vectors, aggregated per interaction.

    The order of the parts is: tables, continuous features, pretrained vectors, vectors of the
    batch, each in the order of the schema. Features of a session are repeated along its
    interactions. Make one with `from_schema`.
    """

    def __init__(
        self,
        modules: FeatureModules,
        *,
        max_sequence_length: int | None,
        pre: Sequence[nn.Module],
        post: Sequence[nn.Module],
        aggregation: Aggregation | nn.Module,
        projection: nn.Module | None,
        d_output: int | None,
        masking: str | Masking | None,
        masking_arguments: Mapping[str, Any],
    ) -> None:
        super().__init__()
        check_combiner(modules.combiner)
        if max_sequence_length is not None:
            check_positive("max_sequence_length", max_sequence_length)
        self.item = modules.item
        self.max_sequence_length = max_sequence_length
        self.combiner = modules.combiner
        # a shared table has the name of its first feature, so that it is saved once
        tables = modules.tables
        owners: dict[int, str] = {}
        self._owners = {name: owners.setdefault(id(table), name) for name, table in tables.items()}
        self._tables = nn.ModuleDict({child_name(owners[id(t)]): t for t in tables.values()})
        self.continuous = list(modules.continuous)
        self.continuous_projection = modules.continuous_projection
        self.soft_embeddings = _module_dict(modules.soft_embeddings)
        self.pretrained = _module_dict(modules.pretrained)
        self.vector_projections = _module_dict(modules.vectors)
        self.pretrained_names = list(modules.pretrained)
        self.vectors = list(modules.vectors)
        """Features that are vectors, (B, L, P) or (B, P)."""
        self.pre = nn.ModuleList(pre)
        self.post = nn.ModuleList(post)
        self.multi_valued = {name: tuple(cs) for name, cs in modules.multi_valued.items()}
        """Columns of one value each, by multi-valued feature."""
        self._axes = self._allowed_axes()
        example = self._build_post(self.example_parts())
        widths = {name: part.size(-1) for name, part in example.items()}
        self.aggregation = build_aggregation(aggregation, self.item, widths)
        combined = run_example(self.aggregation, example, Tensor)
        self.projection = build_projection(projection, d_output, combined.size(-1))
        self.output_size = int(run_example(self.projection, combined, Tensor).size(-1))
        """D of the interaction embedding."""
        self.masking: Masking | None = choose_masking(
            masking,
            self.output_size,
            masking_arguments,
            item_alone=self.feature_names == [self.item],
        )

    # Long: the docstring explains the arguments that Transformers4Rec has.
    @classmethod
    def from_schema(
        cls,
        schema: Schema | Iterable[Any],
        *,
        max_sequence_length: int | None = None,
        pre: Transformations = None,
        post: Transformations = None,
        aggregation: Aggregation | nn.Module = "concat",
        projection: nn.Module | None = None,
        d_output: int | None = None,
        masking: str | Masking | None = None,
        **options: Any,
    ) -> Self:
        """Build an input block from the features of our schema or Merlin's.

        - `max_sequence_length`: L, the newest interactions that are read at prediction.
        - `pre`, `post`: transformations of the batch, and of each part after it is embedded.
        - `aggregation` of the parts: concat, stack, element-wise-sum, element-wise-sum-item-multi,
          or a module of {name: (B, L, d)} -> (B, L, D).
        - `projection` of the result by a module, or `d_output` by a linear layer of that width.
        - `masking`: clm, mlm, plm or rtd, or a masking.

        `options` are the fields of these classes, which document them:

        - TagOptions: `categorical_tags`, `continuous_tags`, `pretrained_embeddings_tags`. A column
          tagged `target` is never read.
        - EmbeddingOptions: `embedding_dims`, `embedding_dim_default`, `infer_embedding_sizes`,
          `infer_embedding_sizes_multiplier`, `embeddings_initializers`, `shared_tables`,
          `combiner`.
        - ContinuousOptions: `continuous_projection`, `continuous_soft_embeddings`,
          `soft_embedding_cardinalities`, `soft_embedding_cardinality_default`,
          `soft_embedding_dims`, `soft_embedding_dim_default`, `layer_norm`.
        - PretrainedOptions: `pretrained_embeddings`, `pretrained_output_dims`, `normalizer`.
        - arguments of the masking: `train_on_last_item_seq_only` of clm; `mlm_probability` of mlm
          and rtd; `plm_probability`, `max_span_length`, `permute_all` of plm; `sample_from_batch`,
          `tied_generator`, `generator_loss_weight`, `discriminator_loss_weight` of rtd.

        ConfigError for options that do not fit each other or the schema, TypeError for an unknown
        one.
        """
        tags = _take(TagOptions, options)
        embedding = _take(EmbeddingOptions, options)
        continuous = _take(ContinuousOptions, options)
        pretrained = _take(PretrainedOptions, options)
        for name in options:
            if name not in MASKING_ARGUMENTS:
                raise TypeError(
                    f"{cls.__name__}.from_schema() got an unexpected keyword argument {name!r}"
                )
        whole = schema if isinstance(schema, Schema) else Schema.from_merlin(schema)
        whole, multi_valued = merge_multi_valued(whole)
        selected = select_features(
            whole, tags.categorical_tags, tags.continuous_tags, tags.pretrained_embeddings_tags
        )
        _check_names(whole, selected, embedding, continuous)
        cardinalities = {column.name: column.num_rows for column in selected.categorical}
        check_pretrained(pretrained.embeddings, cardinalities)
        modules = _build_modules(whole.item_id.name, selected, embedding, continuous, pretrained)
        read = {name: columns for name, columns in multi_valued.items() if name in cardinalities}
        return cls(
            dataclasses.replace(modules, multi_valued=read),
            max_sequence_length=max_sequence_length,
            pre=build_pre(pre, cardinalities),
            post=build_post(post),
            aggregation=aggregation,
            projection=projection,
            d_output=d_output,
            masking=masking,
            masking_arguments=options,
        )

    def _allowed_axes(self) -> dict[str, tuple[int, ...]]:
        """Numbers of axes that each column of a batch may have."""
        indices = {
            column: (1, 2, 3) if column == name else (1, 2)
            for column, name in self.index_columns.items()
        }
        numbers = dict.fromkeys(self.continuous, (1, 2))
        return indices | numbers | dict.fromkeys(self.vectors, (2, 3)) | {self.item: (2,)}

    def _build_post(self, example: dict[str, Tensor]) -> dict[str, Tensor]:
        """Build the transformations in `post`, and return the example after them."""
        for module in self.post:
            if isinstance(module, TabularLayerNorm):
                module.build({name: part.size(-1) for name, part in example.items()})
            example = run_example(module, example, dict)
        return example

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
        """Pretrained vectors beside the table of a categorical feature."""
        embeddings = self.pretrained[child_name(name)]
        assert isinstance(embeddings, PretrainedEmbeddings)  # noqa: S101
        return embeddings.table

    @property
    def feature_names(self) -> list[str]:
        """Features that a batch must hold: categorical, continuous, vectors."""
        return [*self.index_columns, *self.continuous, *self.vectors]

    @property
    def index_columns(self) -> dict[str, str]:
        """Feature of each column of indices in a batch."""
        return {
            column: name for name in self._owners for column in self.multi_valued.get(name, (name,))
        }

    def forward(self, batch: SessionBatch, items: Tensor | None = None) -> Tensor:
        """SessionBatch -> (B, L, D).

        `items` (V, d) replaces the weight of the item table in the lookup; its gradient is sparse.
        DataError if the batch lacks a feature or has it in another shape.
        """
        batch = self._stacked(batch.read(self._axes, self.vectors))
        for noise in self.pre:
            batch = noise(batch)
        return self.combine(self._embed(batch.features, items))

    def combine(self, parts: dict[str, Tensor]) -> Tensor:
        """Vectors of the features by name, (B, L, d) each -> (B, L, D)."""
        for transformation in self.post:
            parts = transformation(parts)
        return self.projection(self.aggregation(parts))

    def _stacked(self, batch: SessionBatch) -> SessionBatch:
        """Stack the columns of each multi-valued feature to (B, L, M)."""
        features = dict(batch.features)
        for name, columns in self.multi_valued.items():
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
            expanded = [values.expand(-1, width) for values in numbers.values()]
            parts[PROJECTED] = self.continuous_projection(torch.stack(expanded, -1))
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
        """Parts of a session of two padding interactions, (1, 2, d) each, to read their widths."""
        device = self.item_table.weight.device
        features = {
            name: torch.zeros(1, 2, dtype=torch.int64, device=device) for name in self._owners
        }
        features |= {name: torch.zeros(1, 2, device=device) for name in self.continuous}
        for name in self.vectors:
            projection = self.vector_projections[child_name(name)]
            assert isinstance(projection, VectorProjection)  # noqa: S101
            features[name] = torch.zeros(1, 2, projection.width, device=device)
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


def _take(options_class: type[Options], options: dict[str, Any]) -> Options:
    """Remove the fields of a class of options from `options`, and make an instance of them."""
    names = [field.name for field in dataclasses.fields(options_class)]  # type: ignore[arg-type]
    return options_class(**{name: options.pop(name) for name in names if name in options})


def _check_names(
    schema: Schema,
    selected: SelectedFeatures,
    embedding: EmbeddingOptions,
    continuous: ContinuousOptions,
) -> None:
    """ConfigError for options of features that are not embedded."""
    schema.select_by_name(*embedding.dims, *embedding.initializers)
    categories = selected.categorical.column_names
    check_names("embedding_dims", embedding.dims, categories, "categorical")
    soft = selected.continuous.column_names if continuous.continuous_soft_embeddings else []
    initializers = embedding.initializers
    check_names("embeddings_initializers", initializers, [*categories, *soft], "embedded")


def _build_modules(
    item: str,
    selected: SelectedFeatures,
    embedding: EmbeddingOptions,
    continuous: ContinuousOptions,
    pretrained: PretrainedOptions,
) -> FeatureModules:
    """Build the modules of the selected features with fresh weights."""
    numbers = selected.continuous.column_names
    tables = build_tables(selected.categorical, item, embedding)
    layers = None
    if numbers and continuous.continuous_projection is not None:
        layers = build_continuous_projection(len(numbers), continuous.continuous_projection)
    soft = numbers if continuous.continuous_soft_embeddings else []
    return FeatureModules(
        item=item,
        tables=tables,
        multi_valued={},
        combiner=embedding.combiner,
        continuous=numbers,
        continuous_projection=layers,
        soft_embeddings=build_soft_embeddings(soft, continuous, embedding.initializers),
        pretrained=pretrained.embeddings,
        vectors=build_vector_projections(selected.vectors, pretrained),
    )

"""Input block: the features of each interaction become one vector.

Shape letters: B sessions, L positions, d width of a part, D width of the interaction embedding.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Self

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
    InputOptions,
    SelectedFeatures,
    Tagged,
    check_names,
    check_positive,
    child_name,
    merge_multi_valued,
    select_features,
)
from pipeline.model.inputs.continuous import build_continuous_projection, build_soft_embeddings
from pipeline.model.inputs.pretrained import (
    build_vector_projections,
    check_pretrained,
)
from pipeline.model.inputs.tables import build_tables, look_up
from pipeline.model.inputs.transformations import (
    TabularLayerNorm,
    Transformations,
    build_post,
    build_pre,
)
from pipeline.model.masking import ARGUMENTS, Masking, choose_masking

PROJECTED = "continuous_projection"
"""Name of the part that combines all continuous features."""
MASKING_ARGUMENTS = {name for names in ARGUMENTS.values() for name in names}


class TabularSequenceFeatures(nn.Module):
    """Embeddings of categorical features, numbers and vectors, aggregated per interaction.

    - `max_sequence_length`: L, the newest interactions that are read at prediction.
    - `pre`, `post`: transformations of the batch, and of each part after it is embedded.
    - `aggregation` of the parts: concat, stack, element-wise-sum, element-wise-sum-item-multi,
      or a module of {name: (B, L, d)} -> (B, L, D).
    - `projection` of the result by a module, or `d_output` by a linear layer of that width.
    - `masking`: clm, mlm, plm or rtd, or a masking.
    - `categorical_tags` (the item, tagged `item_id`, is always one), `continuous_tags` and
      `pretrained_embeddings_tags` (vectors that come with the batch) select the columns of each
      kind. A column tagged `target` is never read.
    - `options`: the fields of InputOptions, which documents them, and the arguments of the
      masking: `train_on_last_item_seq_only` of clm; `mlm_probability` of mlm and rtd;
      `plm_probability`, `max_span_length`, `permute_all` of plm; `sample_from_batch`,
      `tied_generator`, `generator_loss_weight`, `discriminator_loss_weight` of rtd.

    The order of the parts is: tables, continuous features, pretrained vectors, vectors of the
    batch, each in the order of the schema. Features of a session are repeated along its
    interactions. ConfigError for options that do not fit each other or the schema, TypeError for
    an unknown one.
    """

    def __init__(
        self,
        schema: Schema | Iterable[Any],
        *,
        max_sequence_length: int | None = None,
        pre: Transformations = None,
        post: Transformations = None,
        aggregation: Aggregation | nn.Module = "concat",
        projection: nn.Module | None = None,
        d_output: int | None = None,
        masking: str | Masking | None = None,
        categorical_tags: Tagged = (Tags.CATEGORICAL,),
        continuous_tags: Tagged = (Tags.CONTINUOUS,),
        pretrained_embeddings_tags: Tagged = (Tags.EMBEDDING,),
        **options: Any,
    ) -> None:
        super().__init__()
        if max_sequence_length is not None:
            check_positive("max_sequence_length", max_sequence_length)
        self.max_sequence_length = max_sequence_length
        masking_arguments = {n: options.pop(n) for n in MASKING_ARGUMENTS & options.keys()}
        chosen = InputOptions(**{n: value for n, value in options.items() if value is not None})
        whole = schema if isinstance(schema, Schema) else Schema.from_merlin(schema)
        whole, multi_valued = merge_multi_valued(whole)
        selected = select_features(
            whole, categorical_tags, continuous_tags, pretrained_embeddings_tags
        )
        _check_names(whole, selected, chosen)
        cardinalities = {column.name: column.num_rows for column in selected.categorical}
        check_pretrained(chosen.pretrained_embeddings, cardinalities)
        self.item = whole.item_id.name
        self.multi_valued = {n: cs for n, cs in multi_valued.items() if n in cardinalities}
        """Columns of a multi-valued feature, each with one of its values."""
        self._build_parts(selected, chosen)
        self.pre = nn.ModuleList(build_pre(pre, cardinalities))
        self.post = nn.ModuleList(build_post(post))
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
    def from_schema(cls, schema: Schema | Iterable[Any], **options: Any) -> Self:
        """Build an input block from the features of our schema or Merlin's, see the class."""
        return cls(schema, **options)

    def _build_parts(self, selected: SelectedFeatures, options: InputOptions) -> None:
        """Build the module of each feature with fresh weights."""
        self.combiner = options.combiner
        tables = build_tables(selected.categorical, self.item, options)
        # a shared table is registered under its first feature, so that it is saved once
        owners: dict[int, str] = {}
        self._owners = {name: owners.setdefault(id(table), name) for name, table in tables.items()}
        self._tables = nn.ModuleDict({child_name(owners[id(t)]): t for t in tables.values()})
        self.continuous = selected.continuous.column_names
        self.continuous_projection: nn.Sequential | None = None
        if self.continuous and options.continuous_projection is not None:
            self.continuous_projection = build_continuous_projection(
                len(self.continuous), options.continuous_projection
            )
        soft = self.continuous if options.continuous_soft_embeddings else []
        self.soft_embeddings = _module_dict(build_soft_embeddings(soft, options))
        self.pretrained = _module_dict(options.pretrained_embeddings)
        self.vector_projections = _module_dict(build_vector_projections(selected.vectors, options))
        self.pretrained_names = list(options.pretrained_embeddings)
        self.vectors = selected.vectors.column_names
        """Features that are vectors, (B, L, P) or (B, P)."""

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
        """Embedding table of a categorical feature."""
        return self._tables[child_name(self._owners[name])]  # type: ignore[return-value]

    @property
    def tables(self) -> dict[str, nn.Embedding]:
        """Embedding tables of all categorical features, by name."""
        return {name: self.table(name) for name in self._owners}

    def pretrained_table(self, name: str) -> nn.Embedding:
        """Pretrained vectors of a categorical feature, in addition to its table."""
        return self.pretrained[child_name(name)].table  # type: ignore[return-value]

    @property
    def feature_names(self) -> list[str]:
        """Features that a batch must hold: categorical, continuous, vectors."""
        return [*self.index_columns, *self.continuous, *self.vectors]

    @property
    def index_columns(self) -> dict[str, str]:
        """Feature of each index column in a batch."""
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
        return batch._replace(features=features)

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
        """Parts of a session of two padding interactions, (1, 2, d) each, which show the widths."""
        device = self.item_table.weight.device
        features = {
            name: torch.zeros(1, 2, dtype=torch.int64, device=device) for name in self._owners
        }
        features |= {name: torch.zeros(1, 2, device=device) for name in self.continuous}
        for name in self.vectors:
            width = self.vector_projections[child_name(name)].width
            features[name] = torch.zeros(1, 2, width, device=device)  # type: ignore[call-overload]
        with torch.no_grad():
            parts = self._embed(features)
        num_continuous = len(self.continuous) if self.continuous_projection is None else 1
        expected = len(self._owners) + num_continuous + len(self.pretrained_names)
        if len(parts) < expected + len(self.vectors):
            raise ConfigError(
                f"Two parts have the same name among {', '.join(parts)}. Rename the column that is "
                f"called {PROJECTED} or ends in _pretrained."
            )
        return parts


def _module_dict(modules: Mapping[str, nn.Module]) -> nn.ModuleDict:
    return nn.ModuleDict({child_name(name): module for name, module in modules.items()})


def _check_names(schema: Schema, selected: SelectedFeatures, options: InputOptions) -> None:
    """ConfigError for options of features that are not embedded."""
    dims, initializers = options.embedding_dims, options.embeddings_initializers
    schema.select_by_name(*dims, *initializers)
    categories = selected.categorical.column_names
    check_names("embedding_dims", dims, categories, "categorical")
    soft = selected.continuous.column_names if options.continuous_soft_embeddings else []
    check_names("embeddings_initializers", initializers, [*categories, *soft], "embedded")

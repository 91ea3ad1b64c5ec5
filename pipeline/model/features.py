"""Input block: the features of each interaction become one vector."""

from typing import Literal, Self

import torch
from torch import Tensor, nn

from pipeline.core.columns import FIRST_ITEM, PADDING
from pipeline.core.errors import ConfigError
from pipeline.core.schema import ColumnSchema, Schema, Tags
from pipeline.model.batch import SessionBatch
from pipeline.model.masking import Masking, build_masking

Aggregation = Literal["concat", "element-wise-sum"]
EMBEDDING_DEVIATION = 0.05


class TabularSequenceFeatures(nn.Module):
    """Embeddings of categorical features beside continuous ones, combined per interaction.

    Features of a session, (B,), are repeated along its interactions.
    """

    def __init__(
        self,
        *,
        tables: dict[str, nn.Embedding],
        continuous: list[str],
        continuous_projection: int | None,
        aggregation: Aggregation,
        d_output: int | None,
        item: str,
        max_sequence_length: int | None,
        masking: str | None,
        mlm_probability: float,
    ) -> None:
        super().__init__()
        self.item = item
        self.max_sequence_length = max_sequence_length
        self.aggregation = aggregation
        # a prefix, since a module may have no child named `type` or `keys`
        self._tables = nn.ModuleDict({f"of_{name}": table for name, table in tables.items()})
        self.continuous = continuous
        self.continuous_projection: nn.Module | None = None
        widths = [table.embedding_dim for table in tables.values()]
        if continuous and continuous_projection is not None:
            self.continuous_projection = nn.Linear(len(continuous), continuous_projection)
            widths.append(continuous_projection)
        elif continuous:
            widths += [1] * len(continuous)
        if aggregation == "element-wise-sum" and len(set(widths)) > 1:
            raise ConfigError(
                f"element-wise-sum adds vectors of one width, found {sorted(set(widths))}. Set "
                "equal embedding_dims and continuous_projection, or use concat."
            )
        width = sum(widths) if aggregation == "concat" else widths[0]
        self.projection: nn.Module = nn.Identity()
        if d_output is not None:
            self.projection = nn.Linear(width, d_output)
            width = d_output
        self.output_size = width
        """D of the vector of an interaction."""
        self.masking: Masking | None = (
            None if masking is None else build_masking(masking, width, mlm_probability)
        )

    @classmethod
    def from_schema(
        cls,
        schema: Schema,
        *,
        max_sequence_length: int | None = None,
        embedding_dims: dict[str, int] | None = None,
        embedding_dim_default: int = 64,
        continuous_projection: int | None = None,
        aggregation: Aggregation = "concat",
        d_output: int | None = None,
        masking: str | None = None,
        mlm_probability: float = 0.2,
    ) -> Self:
        """Choose features by tag: categorical and continuous ones, the item by `item_id`.

        `max_sequence_length` is L, the newest interactions that are read at prediction.
        `embedding_dims` overrides `embedding_dim_default` for some. ConfigError for a name that
        the schema does not have and for a schema without an item.
        """
        item = schema.item_id
        dims = embedding_dims or {}
        schema.select_by_name(*dims)
        categorical = schema.select_by_tag(Tags.CATEGORICAL)
        return cls(
            tables={
                c.name: _table(c, dims.get(c.name, embedding_dim_default)) for c in categorical
            },
            continuous=schema.select_by_tag(Tags.CONTINUOUS).column_names,
            continuous_projection=continuous_projection,
            aggregation=aggregation,
            d_output=d_output,
            item=item.name,
            max_sequence_length=max_sequence_length,
            masking=masking,
            mlm_probability=mlm_probability,
        )

    @property
    def item_table(self) -> nn.Embedding:
        """(V, item width) input embeddings of the items."""
        return self.table(self.item)

    def table(self, name: str) -> nn.Embedding:
        """Input embeddings of a categorical feature."""
        table = self._tables[f"of_{name}"]
        assert isinstance(table, nn.Embedding)  # noqa: S101
        return table

    @property
    def tables(self) -> dict[str, nn.Embedding]:
        """Input embeddings of all categorical features, by name."""
        names = [key.removeprefix("of_") for key in self._tables]
        return {name: self.table(name) for name in names}

    @property
    def feature_names(self) -> list[str]:
        """All features that a batch must hold, categorical ones first."""
        return [*self.tables, *self.continuous]

    def forward(self, batch: SessionBatch) -> Tensor:
        """SessionBatch -> (B, L, D)."""
        width = batch.features[self.item].size(1)
        parts = [table(batch.features[name]) for name, table in self.tables.items()]
        if self.continuous:
            numbers = [batch.features[name].to(torch.float32) for name in self.continuous]
            numbers = [_along(n.unsqueeze(-1), width) for n in numbers]  # (B, L, 1) each
            if self.continuous_projection is not None:
                numbers = [self.continuous_projection(torch.cat(numbers, -1))]
            parts += numbers
        parts = [_along(part, width) for part in parts]
        if self.aggregation == "concat":
            combined = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
        else:
            combined = torch.stack(parts).sum(0)
        return self.projection(combined)


def _table(column: ColumnSchema, dim: int) -> nn.Embedding:
    table = nn.Embedding(column.num_rows, dim, padding_idx=PADDING)
    with torch.no_grad():
        nn.init.normal_(table.weight, std=EMBEDDING_DEVIATION)
        # training may never show an unknown value: it must then say nothing rather than noise
        table.weight[:FIRST_ITEM] = 0
    return table


def _along(values: Tensor, width: int) -> Tensor:
    """(B, D) of a session -> (B, L, D); what has an L already stays."""
    return values if values.dim() == 3 else values.unsqueeze(1).expand(-1, width, -1)

"""Features: columns that the model reads beside the item id.

The class of a feature follows from its `kind` and its source:

| source | `kind: categorical` | `kind: continuous` |
| --- | --- | --- |
| a column of the log or of a table | ColumnCategory, ColumnBucket (`buckets`) | ColumnNumber |
| an NVTabular operator (`operator`) | OperatorCategory, OperatorBucket | OperatorNumber |
| other columns (`expression`) | ExpressionCategory, ExpressionBucket | ExpressionNumber |
| a number averaged by category (`mean_of`) | | TargetEncodedFeature |
"""

import math
import re
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from pipeline.core.columns import ITEM, SESSION, TIMESTAMP
from pipeline.core.config import Config
from pipeline.recipe.feature_expressions import FeatureExpression

_RESERVED = {
    *(ITEM, SESSION, TIMESTAMP, "elapsed"),
    # tensors of the served ensemble share one name space
    *("k", "length", "item_ids", "scores", "num_items", "item_index", "item_score"),
    *("exclude", "candidates", "filter_seen", "session_ids", "num_known", "embedding"),
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_OF_CATEGORY = "categorical features without `buckets`"
_KEYS: dict[str, tuple[Any, str]] = {
    "name": (None, ""),
    "column": (None, "features without `operator` and `expression`"),
    "kind": (None, ""),
    "of": ("interaction", ""),
    "log": (False, "continuous features without `mean_of` and `expression`"),
    "buckets": ([], "categorical features"),
    "mean_of": (None, "continuous features"),
    "smoothing": (20.0, "features with `mean_of`"),
    "folds": (5, "features with `mean_of`"),
    "operator": (None, "features without `mean_of` and `expression`"),
    "inputs": ({}, "features with `operator`"),
    "expression": (None, "features without `mean_of` and `operator`"),
    "table": (False, "features of a column, without `operator`, `mean_of` and `expression`"),
    "min_count": (1, "categorical features"),
    "hash_buckets": (0, _OF_CATEGORY),
    "values_per_interaction": (1, f"{_OF_CATEGORY} and `expression`"),
    "separator": ("|", "features with `values_per_interaction` of 2 or more"),
}
"""Keys of all features: the value in a dump of a class without the key, and the features that have
it. Dumps hold all keys in this order, so that they do not depend on the classes."""


class Feature(Config):
    """Fields that all features have."""

    name: str
    """Name in the schema, in the model and in a request."""
    kind: Literal["categorical", "continuous"]
    """Categorical values get an index, numbers are standardized to mean 0 and deviation 1."""
    of: Literal["item", "interaction", "session"] = "interaction"
    """What the feature describes; a session has one value, that of its oldest interaction."""

    @property
    def source(self) -> str:
        """Column of the log."""
        return self.name

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the sessions and tensors of the model: one, or M of a multi-valued feature."""
        return (self.name,)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("a name is a letter, then letters, digits and underscores")
        if "__" in name or name.endswith("_"):
            raise ValueError("two underscores, or one at the end, have a meaning for Triton")
        if name in _RESERVED or name.startswith("encoded_"):
            raise ValueError(f"`{name}` has a meaning of its own, choose another name")
        return name

    @model_validator(mode="before")
    @classmethod
    def _drop_defaults(cls, values: Any) -> Any:
        """Drop keys of other features that have their default, as in a dump."""
        if not isinstance(values, dict):
            return values
        own = {}
        for key, value in values.items():
            if key in cls.model_fields or key not in _KEYS:  # pydantic refuses unknown keys
                own[key] = value
            elif cls is not Feature:
                default, owners = _KEYS[key]
                if default != (list(value) if isinstance(value, tuple) else value):
                    raise ValueError(f"`{key}` is for {owners}")
        return own

    @model_serializer(mode="wrap")
    def _serialize(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: default for key, (default, _) in _KEYS.items()} | handler(self)


class ColumnFeature(Feature):
    """Read from a column."""

    column: str | None = None
    """Column of the log, by default `name`."""
    table: bool = False
    """The column is in the `item_table` or the `session_table`, by `of`, and not in the log."""

    @property
    def source(self) -> str:
        """Column of the log or table."""
        return self.column or self.name

    @model_validator(mode="after")
    def _check_table(self) -> Self:
        if self.table and self.of == "interaction":
            raise ValueError("a table describes items or sessions: `of: item` or `of: session`")
        return self


class OperatorFeature(Feature):
    """Computed by an NVTabular operator."""

    operator: str
    """NVTabular operator in the file of `pipeline preprocess --operators`."""
    inputs: dict[str, Literal["number", "text"]] = Field(min_length=1)
    """Columns of the log that the operator reads, and their type; missing text is None."""


class ExpressionFeature(Feature):
    """Computed from other columns, by preprocessing and by the server alike."""

    of: Literal["interaction", "session"] = "interaction"
    """What the feature describes; a session feature reads only session features."""
    expression: str
    """Arithmetic and functions of features, columns of the log, `item_id` and `timestamp`."""

    @property
    def parsed(self) -> FeatureExpression:
        """The checked expression."""
        return FeatureExpression.parse(self.expression, "number")

    @model_validator(mode="after")
    def _check_expression(self) -> Self:
        if self.parsed.is_of_interactions and self.of == "session":
            raise ValueError(
                "`lag`, `first_seen`, `timestamp` and `item_id` are for `of: interaction`"
            )
        return self


class CategoricalFeature(Feature):
    """Index of a category."""

    kind: Literal["categorical"]
    """Values get an index."""
    min_count: int = Field(default=1, ge=1)
    """Categories with fewer training interactions are out of vocabulary."""


class HashedFeature(CategoricalFeature):
    """The categories are values; rare ones may share indices."""

    hash_buckets: int = Field(default=0, ge=0, le=10_000_000)
    """Indices that categories out of vocabulary share by a hash of their text; 0: they all have
    the index 2."""


class CategoryFeature(HashedFeature):
    """The categories are the raw values."""

    values_per_interaction: int = Field(default=1, ge=1, le=64)
    """M: the first M of several categories, such as tags; the model averages their embeddings."""
    separator: str = Field(default="|", min_length=1)
    """Separator of several categories in a text; Parquet lists are read as such a text."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the sessions and tensors of the model: one, or M of a multi-valued feature."""
        if self.values_per_interaction == 1:
            return (self.name,)
        return tuple(f"{self.name}_{n}" for n in range(1, self.values_per_interaction + 1))

    @model_validator(mode="after")
    def _check_separator(self) -> Self:
        if self.separator != "|" and self.values_per_interaction == 1:
            raise ValueError("`separator` goes with `values_per_interaction` of 2 or more")
        return self


class BucketFeature(CategoricalFeature):
    """The categories are buckets of a number."""

    buckets: tuple[float, ...] = Field(min_length=1)
    """Ascending bounds; the category of x is the number of bounds that are at most x."""

    @field_validator("buckets")
    @classmethod
    def _check_buckets(cls, bounds: tuple[float, ...]) -> tuple[float, ...]:
        if not all(low < high for low, high in pairwise((-math.inf, *bounds, math.inf))):
            raise ValueError("`buckets` are ascending numbers")
        return bounds


class NumberFeature(Feature):
    """Standardized number."""

    kind: Literal["continuous"]
    """Numbers are standardized to mean 0 and deviation 1."""
    log: bool = False
    """Take log(1 + x) first; for prices and counts, which span decades."""


class ColumnCategory(ColumnFeature, CategoryFeature):
    """Categorical feature of a column."""


class ColumnBucket(ColumnFeature, BucketFeature):
    """Bucket of a number in a column."""


class ColumnNumber(ColumnFeature, NumberFeature):
    """Continuous feature of a column."""


class OperatorCategory(OperatorFeature, CategoryFeature):
    """Categorical feature that an operator computes."""


class OperatorBucket(OperatorFeature, BucketFeature):
    """Bucket of a number that an operator computes."""


class OperatorNumber(OperatorFeature, NumberFeature):
    """Continuous feature that an operator computes."""


class ExpressionNumber(ExpressionFeature):
    """Continuous feature of an expression."""

    kind: Literal["continuous"]
    """Numbers are standardized to mean 0 and deviation 1."""


class ExpressionCategory(ExpressionFeature, HashedFeature):
    """Categorical feature of an expression: `cross`, or a category of another interaction."""

    @property
    def parsed(self) -> FeatureExpression:
        """The checked expression."""
        return FeatureExpression.parse(self.expression, "category")


class ExpressionBucket(ExpressionFeature, BucketFeature):
    """Bucket of the number that an expression has."""


class TargetEncodedFeature(Feature):
    """Mean of a number over the training interactions of a category (target encoding)."""

    kind: Literal["continuous"]
    """Means are standardized to mean 0 and deviation 1."""
    column: str | None = None
    """Column of the category, by default `name`."""
    mean_of: str
    """Column of the number. In training, the mean is taken over sessions of other folds."""
    smoothing: float = Field(default=20.0, ge=0)
    """Number of interactions with the overall mean that are added to each category."""
    folds: int = Field(default=5, ge=2, le=100)
    """Folds of the training sessions; a session reads the mean of the other folds."""

    @property
    def source(self) -> str:
        """Column of the category."""
        return self.column or self.name

    @property
    def target_column(self) -> str:
        """Internal column of the number until the sessions are encoded."""
        return f"{self.name}.target"


def _class_of(values: Any) -> str:
    """Name of the class of a feature, or of its keys in a recipe."""
    if not isinstance(values, dict):
        return type(values).__name__ if isinstance(values, Feature) else Feature.__name__
    source = "Column" if values.get("operator") is None else "Operator"
    source = source if values.get("expression") is None else "Expression"
    match values.get("kind"):
        case "categorical":
            return f"{source}Bucket" if values.get("buckets") else f"{source}Category"
        case "continuous":
            mean = values.get("mean_of") is not None
            return TargetEncodedFeature.__name__ if mean else f"{source}Number"
        case _:
            return Feature.__name__  # its validation refuses the kind


AnyFeature = Annotated[
    Annotated[ColumnCategory, Tag("ColumnCategory")]
    | Annotated[ColumnBucket, Tag("ColumnBucket")]
    | Annotated[ColumnNumber, Tag("ColumnNumber")]
    | Annotated[OperatorCategory, Tag("OperatorCategory")]
    | Annotated[OperatorBucket, Tag("OperatorBucket")]
    | Annotated[OperatorNumber, Tag("OperatorNumber")]
    | Annotated[ExpressionCategory, Tag("ExpressionCategory")]
    | Annotated[ExpressionBucket, Tag("ExpressionBucket")]
    | Annotated[ExpressionNumber, Tag("ExpressionNumber")]
    | Annotated[TargetEncodedFeature, Tag("TargetEncodedFeature")]
    | Annotated[Feature, Tag("Feature")],
    Discriminator(_class_of),
]
"""A feature of any class. The tag of a class is its name, see `core.config`."""

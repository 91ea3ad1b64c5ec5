"""The `preprocess` section of a recipe: how a log becomes sessions."""

from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.core.config import Config
from pipeline.recipe.durations import date_text, duration_microseconds
from pipeline.recipe.features import (
    AnyFeature,
    CategoricalFeature,
    CategoryFeature,
    ColumnCategory,
    ColumnFeature,
    ColumnNumber,
    ExpressionFeature,
    Feature,
    NumberFeature,
    OperatorFeature,
    TargetEncodedFeature,
)
from pipeline.recipe.split import Split
from pipeline.recipe.timestamp import Timestamp


class Table(Config):
    """Side table: features of items or sessions that are not in the log, one row per id."""

    file: str
    """CSV, TSV, JSON lines or Parquet, also compressed; relative to the working directory."""
    key: str | None = None
    """Column of the id; by default the same as in the log."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=8)
    """Delimiter of a text file, as `preprocess.delimiter`."""


class Preprocess(Config):
    """How a log of raw interactions becomes sessions."""

    format: Literal["auto", "csv", "jsonl", "parquet", "sequences"] = "auto"
    """`auto` goes by the file name (.csv, .tsv, .jsonl, .parquet, text also with .gz, .zst, .bz2,
    .xz or .zip); `sequences` is text with one session a line, items separated by spaces."""
    explode: str | None = None
    """Field with a list of objects, for JSON and Parquet: each becomes a row with the other
    fields of its line. `item: aid` names a field of such an object, `user.id` one of another."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=8)
    """Delimiter of text files, one or several characters such as `::`. By default a comma, or a tab
    for .tsv and RecBole's .inter, .item and .user."""
    quote: Literal["double", "none"] = "double"
    """Quotes around a value of text, which may hold the delimiter; `none` reads them as letters."""
    decimal: Literal[".", ","] | None = None
    """Decimal mark of numbers as text that have marks of thousands or a currency: `1.234,50 €`."""
    missing: tuple[str, ...] = ()
    """Values that count as missing, besides empty ones: `[NULL, "\\N", -1]`."""
    columns: tuple[str, ...] | None = None
    """Names of the columns of text without a header line."""
    session: str = "session_id"
    """Column of the session id; for `sequences`, the first word of a line if `session_first`."""
    session_first: bool = True
    """For `sequences`: a line begins with the id of its session (or user)."""
    item: str = "item_id"
    """Column of the item id. If it holds lists, a row is a session and other columns may too."""
    timestamp: Timestamp | None = None
    """Time of an interaction. Without it, interactions are in the order of the rows."""
    order: tuple[str, ...] = ()
    """Columns of numbers that order interactions at the same time, the smallest first."""
    features: tuple[AnyFeature, ...] = ()
    """Features that the model reads beside the item."""
    item_table: Table | None = None
    """Table of the features with `of: item` and `table: true`."""
    session_table: Table | None = None
    """Table of the features with `of: session` and `table: true`; requests send their values."""
    max_sequence_length: int = Field(default=20, ge=1, le=4096)
    """L: number of newest interactions that the model reads; a training row has one more."""
    min_session_length: int = Field(default=2, ge=2)
    """Shorter sessions are not trained on; they are evaluated and served."""
    longest_session: int | None = Field(default=None, ge=2)
    """Sessions with more interactions, such as those of bots, are dropped from all parts."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Rows that repeat an earlier one in session, item, time and all features."""
    min_item_count: int = Field(default=1, ge=1)
    """Items with fewer training interactions are out of vocabulary."""
    split: Split = Split()
    """Validation and test parts."""
    session_gap: str | None = None
    """Begin a new session after this duration without an interaction: `30m`, `2h`. For logs with
    users instead of sessions: `session` is the user column. A server reads the newest session."""
    drop_repeats: bool = False
    """Drop interactions with the same item as the one before, such as reloads of a page."""
    filter_seen: bool = False
    """Exclude items of the session from its ranking in evaluation; for logs in which no item
    occurs twice in a session."""

    @field_validator("split", mode="before")
    @classmethod
    def _empty_split(cls, value: Any) -> Any:
        return {} if value is None else value  # `split:` without keys is None in YAML

    @field_validator("missing", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        # YAML reads NULL without quotes as None
        words = [["null", "NULL", "Null"] if word is None else [str(word)] for word in value]
        return [word for each in words for word in each]

    @field_validator("delimiter")
    @classmethod
    def _check_delimiter(cls, value: str | None) -> str | None:
        if value is not None and (not value.isascii() or set(value) & set('"\r\n')):
            raise ValueError("expected ASCII characters, no quote and no line end")
        return value

    _dates = field_validator("session_gap", mode="before")(date_text)

    @field_validator("session_gap")
    @classmethod
    def _check_gap(cls, value: str | None) -> str | None:
        if value is not None:
            duration_microseconds(value)
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        for of, table in (("item", self.item_table), ("session", self.session_table)):
            if (table is None) == bool(self.table_features(of)):
                raise ValueError(
                    f"`{of}_table` goes with features that say `of: {of}` and `table: true`"
                )
        if self.session_gap is not None and self.timestamp is None:
            raise ValueError("`session_gap` needs a `timestamp`")
        if self.order and self.timestamp is None:
            raise ValueError("`order` is for interactions at the same time and needs a `timestamp`")
        if self.format == "sequences" and (self.features or self.timestamp):
            raise ValueError("sequences hold item ids alone: no timestamp and no features")
        if self.split.held_out and self.min_item_count > 1:
            raise ValueError(
                f"{self.split.by} ranks the items of all interactions: `min_item_count` 1"
            )
        if self.split.by == "user" and self.split_column is None:
            raise ValueError("`split: {by: user}` needs `column`, the column of the user")
        if self.split_column is not None and self.format == "sequences":
            raise ValueError("sequences hold item ids alone: no `split.column`")
        self._check_names()
        for feature in self.expression_features:
            self._check_inputs(feature)
        return self

    def _check_inputs(self, feature: ExpressionFeature) -> None:
        """ValueError unless an expression reads features and columns of its kinds and its scope."""
        features = {f.name: f for f in (*self.features, *self.expression_inputs)}
        if feature.parsed.reads_time and self.timestamp is None:
            raise ValueError(f"the expression of `{feature.name}` needs a `timestamp`")
        for kind, names in (
            ("continuous", feature.parsed.numbers),
            ("categorical", feature.parsed.categories),
        ):
            for name in names:
                read = features[name]
                if read is feature:
                    raise ValueError(
                        f"the expression of `{name}` reads the feature itself: give it another "
                        "name than the column"
                    )
                if read.kind != kind or not _is_single_value(read):
                    article = "number" if kind == "continuous" else "category"
                    raise ValueError(
                        f"the expression of `{feature.name}` reads `{name}` as a {article}, but "
                        f"that feature is not a column with one {article} per row"
                    )
                if (feature.of == "session") != (read.of == "session"):
                    raise ValueError(
                        f"the expression of `{feature.name}` is `of: {feature.of}` and reads "
                        f"`{name}`, which is `of: {read.of}`"
                    )

    def _check_names(self) -> None:
        names = [feature.name for feature in self.features]
        if repeated := _first_repeated(names):
            raise ValueError(f"two features are named {repeated!r}")
        if clash := set(names) & set(self.time_feature_names):
            raise ValueError(f"{sorted(clash)[0]!r} is the name of a time feature, choose another")
        names += [c for f in self.features for c in f.columns if c != f.name]
        if repeated := _first_repeated([*names, *self.time_feature_names]):
            raise ValueError(
                f"{repeated!r} is the name of a column of a multi-valued feature, choose another"
            )
        taken = {*names, *self.time_feature_names}
        for name in (feature.name for feature in self.expression_inputs):
            if name in taken:
                raise ValueError(
                    f"an expression reads the column {name!r}, which is a name of the model: read "
                    f"it by a feature with another name and `column: {name}`"
                )

    @property
    def split_column(self) -> str | None:
        """Column of the log that decides the part of a session; None if no column does."""
        if self.split.by == "user" and self.split.column is None:
            return None if self.session_gap is None else self.session
        return self.split.column

    @property
    def expression_features(self) -> tuple[ExpressionFeature, ...]:
        """Features with `expression`."""
        return tuple(f for f in self.features if isinstance(f, ExpressionFeature))

    @property
    def expression_inputs(self) -> tuple[ColumnNumber | ColumnCategory, ...]:
        """Columns of the log that expressions read and that are no features, as features."""
        names = {feature.name for feature in self.features}
        inputs: dict[str, ColumnNumber | ColumnCategory] = {}
        for feature in self.expression_features:
            expression = feature.parsed
            for name in {*expression.numbers} - names:
                number = ColumnNumber(name=name, kind="continuous", of=feature.of)
                inputs.setdefault(name, number)
            for name in {*expression.categories} - names:
                category = ColumnCategory(name=name, kind="categorical", of=feature.of)
                inputs.setdefault(name, category)
        return tuple(inputs[name] for name in sorted(inputs))

    @property
    def read_features(self) -> tuple[Feature, ...]:
        """Features without `expression`, and further columns that expressions read."""
        read = (f for f in self.features if not isinstance(f, ExpressionFeature))
        return (*read, *self.expression_inputs)

    def table_features(self, of: str) -> tuple[ColumnFeature, ...]:
        """Features in the `item_table` (`of` is item) or the `session_table` (session)."""
        columns = (f for f in self.features if isinstance(f, ColumnFeature))
        return tuple(f for f in columns if f.table and f.of == of)

    @property
    def target_encoded_features(self) -> tuple[TargetEncodedFeature, ...]:
        """Features with `mean_of`."""
        return tuple(f for f in self.features if isinstance(f, TargetEncodedFeature))

    @property
    def categorical_features(self) -> tuple[CategoricalFeature, ...]:
        """Categorical features, multi-valued ones once; the item is not one of them."""
        return tuple(f for f in self.features if isinstance(f, CategoricalFeature))

    @property
    def multi_valued_features(self) -> tuple[CategoryFeature, ...]:
        """Categorical features with `values_per_interaction` above 1."""
        categories = (f for f in self.features if isinstance(f, CategoryFeature))
        return tuple(f for f in categories if f.values_per_interaction > 1)

    @property
    def log_features(self) -> tuple[NumberFeature, ...]:
        """Continuous features of which log(1 + x) is taken."""
        return tuple(f for f in self.features if isinstance(f, NumberFeature) and f.log)

    @property
    def operator_features(self) -> tuple[OperatorFeature, ...]:
        """Features with `operator`."""
        return tuple(f for f in self.features if isinstance(f, OperatorFeature))

    @property
    def scalar_features(self) -> tuple[Feature, ...]:
        """Features with one value each: a multi-valued one becomes M of them."""
        return _scalar(self.features)

    @property
    def read_scalar_features(self) -> tuple[Feature, ...]:
        """`read_features` with one value each."""
        return _scalar(self.read_features)

    @property
    def tables(self) -> list[Table]:
        """Side tables."""
        return [table for table in (self.item_table, self.session_table) if table is not None]

    @property
    def target_positions(self) -> Literal["all", "last"]:
        """Targets of an evaluated session: all interactions but the first, or the last one."""
        return "last" if self.split.held_out else "all"

    @property
    def feature_meanings(self) -> list[dict[str, Any]]:
        """Settings of the features that decide what their indices and numbers mean, by name."""
        sources = {"column", "inputs", "min_count", "separator", "table"}
        dumps = sorted((f.model_dump() for f in self.features), key=lambda dump: dump["name"])
        return [{k: value for k, value in dump.items() if k not in sources} for dump in dumps]

    def other_sessions(self, other: Self) -> list[str]:
        """Return the keys by which a log has other sessions than with the recipe `other`."""
        keys = ("session_gap", "drop_repeats", "duplicates", "longest_session")
        return [key for key in keys if getattr(self, key) != getattr(other, key)]

    @property
    def time_feature_names(self) -> tuple[str, ...]:
        """Names of the continuous features of the timestamp."""
        names: list[str] = []
        for feature in self.timestamp.features if self.timestamp else ():
            names += [feature] if feature == "elapsed" else [f"{feature}_sin", f"{feature}_cos"]
        return tuple(names)


def _scalar(features: Iterable[Feature]) -> tuple[Feature, ...]:
    return tuple(
        f if c == f.name else f.model_copy(update={"name": c}) for f in features for c in f.columns
    )


def _is_single_value(feature: Feature) -> bool:
    """Whether an expression can read the values of a feature as they are in a column."""
    if isinstance(feature, CategoryFeature):
        return feature.values_per_interaction == 1
    return isinstance(feature, NumberFeature)


def _first_repeated(names: list[str]) -> str | None:
    return min((name for name in names if names.count(name) > 1), default=None)

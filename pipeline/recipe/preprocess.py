"""A recipe: one YAML file that says how a log becomes sessions and which model learns from them."""

import math
import re
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.core.columns import ITEM, SESSION, TIMESTAMP
from pipeline.core.config import Config
from pipeline.recipe.durations import gap_microseconds, split_seconds
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.train import TrainConfig

__all__ = [
    "Feature",
    "ModelConfig",
    "Preprocess",
    "Recipe",
    "Split",
    "Table",
    "Timestamp",
    "TrainConfig",
]

TimeUnit = Literal["s", "ms", "us", "ns", "iso"]
TimeFeature = Literal["hour", "weekday", "elapsed"]
_TAKEN = {
    *(ITEM, SESSION, TIMESTAMP, "elapsed"),
    # tensors of the served ensemble share one name space
    *("k", "length", "item_ids", "scores", "num_items", "item_index", "item_score"),
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class Feature(Config):
    """One column that the model reads beside the item id."""

    name: str
    """Name in the schema, in the model and in a request."""
    column: str | None = None
    """Column of the log; `name` where it is not given."""
    kind: Literal["categorical", "continuous"]
    """Categorical values get an index, numbers are standardized to mean 0 and deviation 1."""
    of: Literal["item", "interaction", "session"] = "interaction"
    """What it describes; a session has one value, that of its oldest interaction."""
    log: bool = False
    """Take log(1 + x) of a number first; for prices and counts, which spread over decades."""
    buckets: tuple[float, ...] = ()
    """Of a categorical feature whose column holds numbers: the category of x is how many of these
    bounds are at most x. They rise."""
    mean_of: str | None = None
    """Column of numbers: a continuous feature is then their mean over the training interactions
    that have its category (target encoding), in training over those of other sessions."""
    smoothing: float = Field(default=20.0, ge=0)
    """Interactions with the mean of all that a category's `mean_of` counts beside its own."""
    folds: int = Field(default=5, ge=2, le=100)
    """In training a session reads the `mean_of` that the other folds have."""
    operator: str | None = None
    """NVTabular operator of the file that `pipeline preprocess --operators` names, which makes it
    of `inputs`."""
    inputs: dict[str, Literal["number", "text"]] = Field(default_factory=dict)
    """Columns of the log that the operator gets, and as what; those of text missing as None."""
    table: bool = False
    """It stands in the `item_table` or the `session_table`, by `of`, and not in the log."""
    min_count: int = Field(default=1, ge=1)
    """Categories seen less often in training count as out of vocabulary."""
    hash_buckets: int = Field(default=0, ge=0, le=10_000_000)
    """Categories that are out of vocabulary share so many indices, by a hash of their text, in
    place of one."""
    values_per_interaction: int = Field(default=1, ge=1, le=64)
    """M: the first M of several categories, such as tags; the model takes the mean of theirs."""
    separator: str = Field(default="|", min_length=1)
    """Between several categories in a text; lists of Parquet are read as such a text."""

    @property
    def source(self) -> str:
        """Column of the log."""
        return self.column or self.name

    @property
    def target_column(self) -> str:
        """Where the numbers of `mean_of` stand until the sessions are encoded."""
        return f"{self.name}.target"

    @property
    def columns(self) -> tuple[str, ...]:
        """Of sessions and of tensors: one, or M of one value each."""
        if self.values_per_interaction == 1:
            return (self.name,)
        return tuple(f"{self.name}_{n}" for n in range(1, self.values_per_interaction + 1))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not _NAME.fullmatch(self.name):
            raise ValueError("a name is a letter, then letters, digits and underscores")
        if "__" in self.name or self.name.endswith("_"):
            raise ValueError("two underscores, or one at the end, have a meaning for Triton")
        if self.name in _TAKEN or self.name.startswith("encoded_"):
            raise ValueError(f"`{self.name}` has a meaning of its own, choose another name")
        if self.kind == "categorical" and self.log:
            raise ValueError("`log` is for continuous features")
        if self.buckets and self.kind == "continuous":
            raise ValueError("`buckets` make a number a category: `kind: categorical`")
        if not all(low < high for low, high in pairwise((-math.inf, *self.buckets, math.inf))):
            raise ValueError("`buckets` are numbers that rise")
        if self.table and self.of == "interaction":
            raise ValueError("a table describes items or sessions: `of: item` or `of: session`")
        for field, unset in (("min_count", 1), ("hash_buckets", 0), ("values_per_interaction", 1)):
            if self.kind == "continuous" and getattr(self, field) != unset:
                raise ValueError(f"`{field}` is for categorical features")
        if self.buckets and (self.hash_buckets or self.values_per_interaction > 1):
            raise ValueError("`buckets` make one category of a number: no hash, no several values")
        if self.mean_of is not None and (self.kind != "continuous" or self.log):
            raise ValueError("`mean_of` makes a number of a category: `kind: continuous`, no `log`")
        if self.mean_of is not None and (self.table or self.operator is not None):
            raise ValueError("`mean_of` reads two columns of the log: no `table`, no `operator`")
        if self.mean_of is None and (self.smoothing, self.folds) != (20.0, 5):
            raise ValueError("`smoothing` and `folds` go with `mean_of`")
        if (self.operator is None) != (not self.inputs):
            raise ValueError("`operator` goes with `inputs`, such as {price: number}")
        if self.operator is not None and (self.table or self.column is not None):
            raise ValueError("`operator` makes the feature: it has no `column` and no `table`")
        if self.separator != "|" and self.values_per_interaction == 1:
            raise ValueError("`separator` goes with `values_per_interaction` of 2 or more")
        return self


class Table(Config):
    """Features of items, or of sessions or users, that the log does not hold; one row each."""

    file: str
    """CSV, TSV or Parquet, also .gz; where the command runs, if it is not absolute."""
    key: str | None = None
    """Column of the id; the one that the log has it in, where it is not given."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Between columns of text, as for the log."""


class Timestamp(Config):
    """When an interaction happened."""

    column: str
    """Column of the log."""
    unit: TimeUnit = "iso"
    """Unit of a number since 1970 UTC, or `iso` for text such as `2019-10-01 00:00:00 UTC`."""
    earliest: str | None = None
    """Rows before this moment are dropped: a date, or date and time (UTC where no zone stands)."""
    latest: str | None = None
    """Rows after this moment are dropped; a date alone stands for the whole of that day."""
    features: tuple[TimeFeature, ...] = ()
    """`hour` and `weekday` as sine and cosine; `elapsed`: log seconds since the one before."""

    @field_validator("features")
    @classmethod
    def _check(cls, value: tuple[TimeFeature, ...]) -> tuple[TimeFeature, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a time feature is named twice")
        return value

    @field_validator("earliest", "latest", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return value.isoformat() if isinstance(value, date) else value  # as YAML reads them

    @field_validator("earliest", "latest")
    @classmethod
    def _check_moment(cls, value: str | None) -> str | None:
        if value is not None:
            _moment(value)
        return value

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        first, last = self.bounds
        if first is not None and last is not None and first > last:
            raise ValueError("`earliest` is after `latest`")
        return self

    @property
    def bounds(self) -> tuple[int | None, int | None]:
        """First and last microsecond that are kept; None for no bound."""
        first = None if self.earliest is None else _moment(self.earliest)
        if self.latest is None:
            return first, None
        whole_day = 0 if ":" in self.latest else 86_400 * 10**6 - 1
        return first, _moment(self.latest) + whole_day


def _moment(text: str) -> int:
    """Microseconds since 1970 UTC."""
    try:
        found = datetime.fromisoformat(re.sub(r" ?UTC$", "+00:00", text))
    except ValueError:
        raise ValueError("expected a date or a time such as `2019-10-01 00:00:00 UTC`") from None
    found = found.replace(tzinfo=UTC) if found.tzinfo is None else found
    return (found - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


class Split(Config):
    """Newest sessions kept apart: `2d` (days), `6h` (hours) or a fraction such as 0.1.

    A session belongs to the part in which it ends, so that training holds nothing that happened
    after the cut. `split: leave-one-out` or `leave-last-out` in place of a section holds out the
    last interactions of each session.
    """

    by: Literal["time", "leave-one-out", "leave-last-out"] = "time"
    """leave-one-out: the last interaction of a session is for the test, the one before it for
    validation, and the catalogue holds the items of all interactions. leave-last-out: the same
    without validation, so that all but the last are for training, once the settings are chosen."""
    valid: str | float | None = None
    """Newest part of what is left for training; chooses the best epoch."""
    test: str | float | None = None
    """Newest part of the whole log; only `evaluate` reads it."""

    @field_validator("valid", "test")
    @classmethod
    def _check(cls, value: str | float | None) -> str | float | None:
        if value is not None:
            split_seconds(value)
        return value

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        return {"by": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_by(self) -> Self:
        if self.by != "time" and (self.valid is not None or self.test is not None):
            raise ValueError(f"{self.by} takes no `valid` and no `test`: leave them out")
        return self

    @property
    def held_out(self) -> int:
        """Interactions at the end of each session that are kept from training."""
        return {"time": 0, "leave-last-out": 1, "leave-one-out": 2}[self.by]


class Preprocess(Config):
    """How raw interactions become sessions."""

    format: Literal["auto", "csv", "parquet", "sequences"] = "auto"
    """`auto` goes by the file's name (.csv, .tsv, .parquet, with or without .gz); `sequences` is
    text with one session a line, its items separated by spaces."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Between columns of text; a comma, or a tab for .tsv, where it is not given."""
    columns: tuple[str, ...] | None = None
    """Names of the columns of text without a header line."""
    session: str = "session_id"
    """Column of the session's id; for `sequences`, the first word of a line if `session_first`."""
    session_first: bool = True
    """For `sequences`: a line begins with the id of its session (or user)."""
    item: str = "item_id"
    """Column of the item's id. A list column holds whole sessions, as may every other one then."""
    timestamp: Timestamp | None = None
    """Where it is missing, the order of the rows is the order of the interactions."""
    features: tuple[Feature, ...] = ()
    """What the model reads beside the item."""
    item_table: Table | None = None
    """Holds the features `of: item` that say `table: true`."""
    session_table: Table | None = None
    """Holds those `of: session` that do. A request sends them itself."""
    max_sequence_length: int = Field(default=20, ge=1, le=4096)
    """L: newest interactions that the model reads. A training row keeps one more, the target."""
    min_session_length: int = Field(default=2, ge=2)
    """Shorter sessions are left out of training; never out of what is evaluated or served."""
    longest_session: int | None = Field(default=None, ge=2)
    """Sessions with more interactions, such as those of bots, are left out of all parts."""
    duplicates: Literal["keep", "drop"] = "keep"
    """Rows equal to one before in session, item, time and all features."""
    min_item_count: int = Field(default=1, ge=1)
    """Items seen less often in training get no index of their own."""
    split: Split = Split()
    """Parts kept apart for validation and test."""
    session_gap: str | None = None
    """Begin a new session after so long without an interaction: `30m`, `2h`. For logs that have
    users and no sessions; `session` is then the user's column. A server reads the newest one."""
    drop_repeats: bool = False
    """Leave out an interaction whose item is that of the one before, as reloads of a page are."""
    filter_seen: bool = False
    """Evaluation ranks no item that came before in the session; for logs in which none comes
    twice."""

    @field_validator("split", mode="before")
    @classmethod
    def _no_split(cls, value: Any) -> Any:
        return {} if value is None else value  # as YAML reads `split:`

    @field_validator("delimiter")
    @classmethod
    def _check_delimiter(cls, value: str | None) -> str | None:
        if value is not None and (not value.isascii() or value in '"\r\n'):
            raise ValueError("expected one ASCII character, no quote and no line end")
        return value

    @field_validator("session_gap")
    @classmethod
    def _check_gap(cls, value: str | None) -> str | None:
        if value is not None:
            gap_microseconds(value)
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        for of, table in (("item", self.item_table), ("session", self.session_table)):
            if (table is None) == any(f.table and f.of == of for f in self.features):
                raise ValueError(
                    f"`{of}_table` goes with features that say `of: {of}` and `table: true`"
                )
        if self.session_gap is not None and self.timestamp is None:
            raise ValueError("`session_gap` needs a `timestamp`")
        names = [feature.name for feature in self.features]
        double = {name for name in names if names.count(name) > 1}
        if double:
            raise ValueError(f"two features are named {sorted(double)[0]!r}")
        clash = set(names) & set(self.time_feature_names)
        if clash:
            raise ValueError(f"{sorted(clash)[0]!r} is the name of a time feature, choose another")
        columns = [*names, *(c for f in self.features for c in f.columns if c != f.name)]
        columns += self.time_feature_names
        double = {name for name in columns if columns.count(name) > 1}
        if double:
            raise ValueError(
                f"{sorted(double)[0]!r} is what one value of several is called, choose another name"
            )
        if self.format == "sequences" and (self.features or self.timestamp):
            raise ValueError("sequences hold item ids alone: no timestamp and no features")
        if self.split.held_out and self.min_item_count > 1:
            raise ValueError(
                f"{self.split.by} ranks the items of all interactions: `min_item_count` 1"
            )
        return self

    @property
    def scalar_features(self) -> tuple[Feature, ...]:
        """Features of one value each: one of M values is M of them."""
        return tuple(
            f if c == f.name else f.model_copy(update={"name": c})
            for f in self.features
            for c in f.columns
        )

    @property
    def tables(self) -> list[Table]:
        """Those beside the log."""
        return [table for table in (self.item_table, self.session_table) if table is not None]

    @property
    def target_positions(self) -> Literal["all", "last"]:
        """Which interactions of a held-out session are targets: all but the first, or the last."""
        return "last" if self.split.held_out else "all"

    @property
    def feature_meanings(self) -> list[dict[str, Any]]:
        """What indices and numbers of the features depend on, wherever they come from; by name."""
        place = {"column", "inputs", "min_count", "separator", "table"}
        return sorted((f.model_dump(exclude=place) for f in self.features), key=lambda f: f["name"])

    def other_sessions(self, other: Self) -> list[str]:
        """Keys by which a log becomes other sessions than with the recipe `other`."""
        keys = ("session_gap", "drop_repeats", "duplicates", "longest_session")
        return [key for key in keys if getattr(self, key) != getattr(other, key)]

    @property
    def time_feature_names(self) -> tuple[str, ...]:
        """Names of the continuous features that come from the timestamp."""
        chosen = self.timestamp.features if self.timestamp else ()
        names: list[str] = []
        for feature in chosen:
            names += [feature] if feature == "elapsed" else [f"{feature}_sin", f"{feature}_cos"]
        return tuple(names)


class Recipe(Config):
    """The whole way of one data set."""

    preprocess: Preprocess = Preprocess()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()

    @field_validator("model", "train", mode="before")
    @classmethod
    def _fill_empty(cls, section: Any) -> Any:
        """Read a section with no key under it, which YAML reads as None, as all defaults."""
        return {} if section is None else section

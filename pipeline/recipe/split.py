"""Training, validation and test sessions, as a recipe describes them."""

from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.core.config import Config
from pipeline.recipe.durations import date_text, split_seconds


class Split(Config):
    """Split into training, validation and test sessions.

    By time, the size of the newest parts is `2d`, `6h` or a fraction such as 0.1. A session belongs
    to the part in which it ends, so that no training interaction is newer than the cut.
    `split: leave-one-out` and `split: leave-last-out` are short for `by`.
    """

    by: Literal["time", "random", "user", "column", "leave-one-out", "leave-last-out"] = "time"
    """random: by a hash of the session id. user: all sessions of a user in one part, by a hash of
    `column`. column: `column` has the name of the part. leave-one-out: the last interaction of each
    session is the test target, the one before it the validation target, and the catalogue has the
    items of all interactions. leave-last-out: without validation, to train on all but the last
    interaction once the settings are chosen."""
    column: str | None = None
    """Column of the log. With `by: user`, by default `session` if there is a `session_gap`."""
    valid: str | float | None = None
    """Part that chooses the best epoch: a share of the sessions outside the test part, the newest
    by time; with `by: column`, the value of the column that marks it."""
    test: str | float | None = None
    """Part that only `evaluate` reads: a share of the log, the newest by time; with `by: column`,
    the value of the column that marks it."""
    seed: int = Field(default=0, ge=0)
    """Seed that draws sessions or users; with the same seed, each stays in its part while the log
    grows."""

    @field_validator("valid", "test", mode="before")
    @classmethod
    def _as_in_logs(cls, value: Any, info: ValidationInfo) -> Any:
        """Text of a value of the column, which YAML reads as a number, true or false."""
        if info.data.get("by") == "column":
            if isinstance(value, bool):
                return str(value).lower()
            if isinstance(value, float):
                return f"{value:.0f}" if value.is_integer() else str(value)
            return str(value) if isinstance(value, int) else date_text(value)
        return date_text(value)

    @field_validator("valid", "test")
    @classmethod
    def _check(cls, value: str | float | None, info: ValidationInfo) -> str | float | None:
        by = info.data.get("by")
        if value is None or by == "column":
            return value
        seconds, _ = split_seconds(value)
        if seconds is not None and by in ("random", "user"):
            raise ValueError(f"by {by}, a part is a fraction between 0 and 1, as 0.1")
        return value

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        return {"by": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_by(self) -> Self:
        shares = [share for share in (self.valid, self.test) if share is not None]
        if self.held_out and shares:
            raise ValueError(f"{self.by} takes no `valid` and no `test`: leave them out")
        if self.column is not None and self.by not in ("user", "column"):
            raise ValueError("`split.column` goes with `by: user` or `by: column`")
        if self.seed and self.by not in ("random", "user"):
            raise ValueError("`split.seed` goes with `by: random` or `by: user`")
        if self.by == "column":
            self._check_column()
            return self
        if self.by in ("random", "user") and not shares:
            raise ValueError(f"by {self.by}, set `valid`, `test` or both to a fraction")
        return self

    def _check_column(self) -> None:
        if self.column is None:
            raise ValueError("`by: column` needs `column`, the column that names the parts")
        if self.valid is None and self.test is None:
            raise ValueError("`by: column` needs `valid`, `test` or both: values of the column")
        if self.valid == self.test:
            raise ValueError("`valid` and `test` are the same value of the column")

    @property
    def held_out(self) -> int:
        """Number of interactions at the end of each session that are not trained on."""
        return {"leave-last-out": 1, "leave-one-out": 2}.get(self.by, 0)

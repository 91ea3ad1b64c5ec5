"""The time of an interaction, as a recipe describes it."""

import re
from datetime import UTC, datetime, timedelta
from typing import Literal, Self

from pydantic import field_validator, model_validator

from pipeline.core.config import Config
from pipeline.recipe.durations import date_text

TimeUnit = Literal["s", "ms", "us", "ns", "iso"]
TimeFeature = Literal["hour", "weekday", "elapsed"]


class Timestamp(Config):
    """Time of an interaction."""

    column: str
    """Column of the log."""
    unit: TimeUnit = "iso"
    """Unit of a number since 1970 UTC, or `iso` for text: ISO 8601, RFC 2822 and the like."""
    format: str | None = None
    """Format of other text, as in Python's `strptime`: `%d.%m.%Y %H:%M`. UTC without a zone."""
    earliest: str | None = None
    """Rows before this moment are dropped: a date, or date and time (UTC without a zone)."""
    latest: str | None = None
    """Rows after this moment are dropped; a date alone is the end of that day."""
    features: tuple[TimeFeature, ...] = ()
    """`hour` and `weekday` as sine and cosine; `elapsed`: log seconds since the previous one."""

    @field_validator("features")
    @classmethod
    def _check(cls, value: tuple[TimeFeature, ...]) -> tuple[TimeFeature, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a time feature is named twice")
        return value

    @field_validator("format")
    @classmethod
    def _check_format(cls, value: str | None) -> str | None:
        if value is not None:
            moment = datetime(2020, 12, 31, tzinfo=UTC)
            try:
                date_read = datetime.strptime(moment.strftime(value), value)
            except (ValueError, re.error):
                raise ValueError("expected a format such as `%d.%m.%Y %H:%M`") from None
            if date_read.date() != moment.date():
                raise ValueError("a format has the year, the month and the day: `%d.%m.%Y %H:%M`")
        return value

    _dates = field_validator("earliest", "latest", mode="before")(date_text)

    @field_validator("earliest", "latest")
    @classmethod
    def _check_moment(cls, value: str | None) -> str | None:
        if value is not None:
            _moment(value)
        return value

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.format is not None and self.unit != "iso":
            raise ValueError("`format` is for text; leave out `unit`, which is for numbers")
        first, last = self.bounds
        if first is not None and last is not None and first > last:
            raise ValueError("`earliest` is after `latest`")
        return self

    @property
    def bounds(self) -> tuple[int | None, int | None]:
        """First and last microsecond to keep; None for no bound."""
        first = None if self.earliest is None else _moment(self.earliest)
        if self.latest is None:
            return first, None
        whole_day = 0 if ":" in self.latest else 86_400 * 10**6 - 1
        return first, _moment(self.latest) + whole_day


def _moment(text: str) -> int:
    """Microseconds since 1970 UTC."""
    try:
        moment = datetime.fromisoformat(re.sub(r" ?UTC$", "+00:00", text))
    except ValueError:
        raise ValueError("expected a date or a time such as `2019-10-01 00:00:00 UTC`") from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)

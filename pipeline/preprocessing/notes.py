"""Notes on suspicious values of a log, which are read unchanged."""

import re
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.columns import ITEM
from pipeline.data.fitted import Fitted
from pipeline.data.times import is_plausible
from pipeline.preprocessing.report.counts import PartCounts
from pipeline.preprocessing.sorting.log import Log
from pipeline.recipe.features import CategoryFeature
from pipeline.recipe.preprocess import Preprocess
from pipeline.recipe.timestamp import Timestamp

_WIDE_MICROSECONDS = 10 * 365 * 86_400 * 10**6
"""Distance from the median at which a note reports the first or last time."""
_DAY_MICROSECONDS = 86_400 * 10**6
_LARGE_SESSION = 1_000
_LARGE_SHARE = 0.01
"""A session that exceeds both is reported: rows, and share of all rows."""
_TIED_SHARE = 0.01
_SINGLE_SHARE = 0.9
"""Share of sessions of one interaction above which they are reported."""
_NULL_WORDS = pa.array(
    ["null", "NULL", "Null", "None", "NaN", "nan", "\\N", "NA", "N/A", "n/a", "undefined", "(null)"]
)
_LIST = re.compile(
    r"\[.*\]|\{.*\}|[^|]+(?:\|[^|]+)+|[^\s,]+(?:,[^\s,]+)+|[^\s;]+(?:;[^\s;]+)+", re.DOTALL
)
"""Text that looks like several values: ['a', 'b'], {a,b}, a|b, a,b, a;b."""
_ROUNDED = r"^-?[0-9]\.[0-9]+[eE]\+?[0-9]+$"
"""Long number in the rounded notation of a spreadsheet."""
_DECIMAL_COMMA = re.compile(r"'[^',]*\d,\d+[^',]*'")
_NUM_SAMPLES = 1_000


def notes(recipe: Preprocess, log: Log, fitted: Fitted, base: Fitted | None) -> list[str]:
    """Sentences on times, sessions and ids that look wrong, each with advice."""
    of_base = [] if base is None else _base_notes(recipe, base)
    of_time = (
        []
        if recipe.timestamp is None
        else [*_time_notes(recipe.timestamp, log), *_order_notes(recipe, log)]
    )
    of_numbers = _decimal_notes(recipe, log)
    return [*of_time, *of_base, *_session_notes(recipe, log), *_id_notes(fitted), *of_numbers]


def _base_notes(recipe: Preprocess, base: Fitted) -> list[str]:
    """Session rules that differ from those of the earlier data."""
    keys = recipe.other_sessions(base.recipe)
    names = ", ".join(f"`{key}`" for key in keys)
    text = f"The earlier data were made with other {names}: their sessions are others."
    return [text] if keys else []


def unknown_notes(base: Fitted, counts: Mapping[str, PartCounts]) -> list[str]:
    """A sentence on columns whose values are all unknown to the earlier data."""
    unknown = []
    for name, earlier in base.vocabularies.items():
        indices = slice(earlier.first, earlier.first + len(earlier.values))
        totals = [of_part.categories[name].counts for of_part in counts.values()]
        if len(earlier.values) and not sum(int(each[indices].sum()) for each in totals):
            unknown.append(name)
    if not unknown:
        return []
    names = ", ".join(unknown)
    return [
        f"No value of {names} in this log is known to the earlier data. If they are of the same "
        "shop, write ids alike and check the recipe; if not, preprocess without --from."
    ]


def _time_notes(timestamp: Timestamp, log: Log) -> Iterator[str]:
    """First or last times far from the median, as of a wrong clock, and an implausible median."""
    first, median, last = log.first, int(np.median(log.ends)), int(log.ends.max())
    if max(last - median, median - first) > _WIDE_MICROSECONDS:
        yield (
            f"Times go from {date(first)} to {date(last)}, while half of the sessions end before "
            f"{date(median)}. One wrong clock moves a split by time: set `timestamp.earliest` and "
            "`timestamp.latest` to drop such rows."
        )
    if timestamp.bounds == (None, None) and not is_plausible(median):
        yield (
            f"Half of the sessions end by {date(median)}. If that is wrong, correct "
            "`timestamp.unit` or `timestamp.format`; if it is right, set `timestamp.earliest`."
        )


def _order_notes(recipe: Preprocess, log: Log) -> Iterator[str]:
    """Interactions of equal time, ordered by the rows of the log."""
    tied = sum(shard.tied for shard in log.shards)
    if tied > _TIED_SHARE * log.rows and not recipe.order:
        yield (
            f"{tied:,} of {log.rows:,} interactions share their time with another of their "
            "session and keep the order of the rows. If a column orders them, name it in "
            "`preprocess.order`."
        )


def _session_notes(recipe: Preprocess, log: Log) -> Iterator[str]:
    """A session with an unusual share of the rows, sessions of one row, visitors as sessions."""
    shard = max(log.shards, key=lambda shard: int(shard.lengths.max()))
    longest = int(shard.lengths.max())
    if longest > max(_LARGE_SESSION, _LARGE_SHARE * log.rows):
        session = shard.session(int(shard.lengths.argmax()))
        yield (
            f"Session {session!r} has {longest:,} of {log.rows:,} rows. If it means no "
            "session, name it in `preprocess.missing`; `longest_session` drops those of robots."
        )
    num_sessions = sum(len(shard.lengths) for shard in log.shards)
    num_single = sum(int((shard.lengths == 1).sum()) for shard in log.shards)
    if num_single > _SINGLE_SHARE * num_sessions:
        gap = "" if recipe.session_gap is None else ", or a longer `session_gap`"
        yield (
            f"{num_single:,} of {num_sessions:,} sessions have one interaction, from which no "
            f"model learns. If `session: {recipe.session}` is not the id of a session or visitor, "
            f"name another column{gap}."
        )
    if recipe.timestamp is None or recipe.session_gap is not None or recipe.split.held_out:
        return
    durations = np.concatenate([shard.ends - shard.begins for shard in log.shards])
    durations = durations[durations > 0]
    if len(durations) and np.median(durations) > _DAY_MICROSECONDS:
        yield (
            "Half of the sessions last more than a day. If "
            f"`session: {recipe.session}` is the id of a visitor, set `session_gap: 30m`."
        )


def _id_notes(fitted: Fitted) -> Iterator[str]:
    """Ids and categories that look like missing values, notations of one value, or lists."""
    columns = {ITEM: fitted.recipe.item} | {f.name: f.source for f in fitted.categorical}
    for name, vocabulary in fitted.vocabularies.items():
        column, values = columns[name], vocabulary.values
        if vocabulary.type == "string" and len(values):
            yield from _null_notes(column, values.filter(pc.is_in(values, _NULL_WORDS)).to_pylist())
            yield from _notation_notes(column, values)
            yield from _list_notes(fitted, name, column, values)
        elif vocabulary.type == "int64":
            negative = values.filter(pc.less(values, 0)).to_pylist()
            yield from _null_notes(column, negative if negative == [-1] else [])


def _decimal_notes(recipe: Preprocess, log: Log) -> Iterator[str]:
    """Columns whose numbers have a decimal comma, which is read only where `decimal` says so."""
    for feature in recipe.read_features if recipe.decimal is None else ():
        reason = f"values of {feature.source} that are no usable number"
        value = _DECIMAL_COMMA.match(log.report.examples.get(reason, ""))
        if value and 2 * log.report.repaired[reason] > log.report.rows:
            yield (
                f"{feature.source} has numbers such as {value[0]}, with a decimal comma. Set "
                '`decimal: ","` in `preprocess`.'
            )


def _null_notes(column: str, words: list[int | str]) -> Iterator[str]:
    if words:
        yield (
            f"{column} is {', '.join(map(repr, words))} in some rows, read as any other value. If "
            f"that means nothing, write `missing: [{', '.join(map(str, words))}]` into "
            "`preprocess`."
        )


def _notation_notes(column: str, values: pa.Array) -> Iterator[str]:
    """Values that differ in blanks, `.0`, leading zeros or the form of Unicode alone."""
    plain = pc.replace_substring_regex(values, r"\p{Cf}", "")  # a zero-width space, for example
    plain = pc.utf8_normalize(pc.utf8_trim_whitespace(plain), "NFKC")
    plain = pc.replace_substring_regex(plain, r"\s+", " ")
    plain = pc.replace_substring_regex(plain, r"^0*(\d+)(?:\.0+)?$", r"\1")
    encoded = plain.dictionary_encode()
    counts = np.bincount(encoded.indices.to_numpy(), minlength=len(encoded.dictionary))
    if (counts > 1).any():
        same = encoded.indices.to_numpy() == int(counts.argmax())
        examples = values.filter(pa.array(same)).slice(0, 2).to_pylist()
        yield (
            f"{int(counts[counts > 1].sum()):,} values of {column} differ from another in blanks, "
            "`.0`, leading zeros or the form of Unicode alone, such as "
            f"{' and '.join(map(repr, examples))}. They are different values here."
        )
    rounded = values.filter(pc.match_substring_regex(values, _ROUNDED))
    if len(rounded):
        yield (
            f"{len(rounded):,} values of {column} are rounded numbers, such as "
            f"{rounded[0].as_py()!r}, as a spreadsheet writes long ids. Different ids may have "
            "become the same: export the log without it."
        )


def _list_notes(fitted: Fitted, name: str, column: str, values: pa.Array) -> Iterator[str]:
    """Categories whose text looks like a list."""
    feature = next((f for f in fitted.categorical if f.name == name), None)
    if not isinstance(feature, CategoryFeature) or feature.values_per_interaction > 1:
        return
    sample = values.slice(0, _NUM_SAMPLES).to_pylist()
    lists = [text for text in sample if _LIST.fullmatch(text)]
    if 2 * len(lists) > len(sample):
        yield (
            f"Values of {column} look like lists, such as {lists[0]!r}, and each text is one "
            "category. For several categories set `values_per_interaction` and `separator`."
        )


def date(microseconds: int) -> str:
    """Date and time in UTC."""
    return f"{np.datetime64(int(microseconds), 'us').astype('datetime64[s]')}Z"

"""The report of data as JSON: what was counted, part by part, and what drifts."""

from itertools import pairwise
from typing import Any

import numpy as np

from pipeline import __version__
from pipeline.core.columns import ITEM, NULL, OUT_OF_VOCABULARY
from pipeline.data.fitted import Fitted
from pipeline.preprocessing.report import popularity
from pipeline.preprocessing.report.counting import Column, Totals, columns_of, is_targets
from pipeline.preprocessing.report.drifting import drifts
from pipeline.preprocessing.report.numbers import Numbers
from pipeline.preprocessing.report.periods import periods, weekly_and_daily
from pipeline.preprocessing.report.values import texts

WRITTEN_BY = f"pipeline {__version__}"
_TOP_VALUES = 10
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_LENGTH_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def report_of(
    fitted: Fitted,
    facts: dict[str, Any],
    totals: dict[str, Totals],
    left_out: dict[str, int],
) -> dict[str, Any]:
    """All that the page shows, by part.

    `facts` are those of the manifest so far (rows, notes, sessions), `left_out` counts the sessions
    that are in no part.
    """
    recipe = fitted.recipe
    columns = columns_of(recipe)
    parts = {}
    for name, found in totals.items():
        of_part = facts["sessions"][name]
        parts[name] = {
            **of_part,
            "counted": "targets" if is_targets(recipe, name) else "interactions",
            "values": found.interactions,
            "lengths": _lengths(found),
            "popularity": popularity.summary(found.categories[ITEM].known),
            "sessions_with_unknown_item": found.with_unknown,
            "columns": {column.name: _column(fitted, found, column) for column in columns},
            **weekly_and_daily(found),
        }
    return {
        "written_by": WRITTEN_BY,
        "rows": facts["rows"],
        "notes": facts["notes"] + _useless(fitted, parts["train"]["columns"]),
        "split": recipe.split.by,
        "max_sequence_length": recipe.max_sequence_length,
        "min_session_length": recipe.min_session_length,
        "left_out": left_out,
        "parts": parts,
        "time": periods(totals),
        "drift": {
            name: drifts(fitted, columns, totals["train"], found, name)
            for name, found in totals.items()
            if name != "train"
        },
    }


def _useless(fitted: Fitted, columns: dict[str, Any]) -> list[str]:
    """What to do about features that have no value in training."""
    notes = []
    for feature in fitted.recipe.features:
        column = columns[feature.name]
        if feature.mean_of is not None:
            useless = not fitted.target_encodings[feature.name].counts.any()
        elif feature.kind == "continuous":
            useless = column["missing"] == column["counted"]
        else:
            useless = not column["seen"] and not (feature.hash_buckets and column["unknown"])
        if useless:
            seldom = f" that is seen {feature.min_count} times" if column.get("unknown") else ""
            notes.append(
                f"{feature.name} has no usable value{seldom} in training, so that a model learns "
                "nothing from it. Check its column, or leave the feature out."
            )
    return notes


def _lengths(found: Totals) -> dict[str, Any]:
    """Of whole sessions, before any is cut."""
    return {
        **found.lengths.summary(_LENGTH_QUANTILES),
        "longer": found.longer,
        "histogram": _histogram(found.lengths),
    }


def _histogram(lengths: Numbers) -> list[dict[str, int]]:
    """By 1 up to 8, then in two steps from each power of two to the next."""
    starts = list(range(1, 8))
    while starts[-1] <= lengths.high:
        power = 1 << starts[-1].bit_length()
        starts += [power, power + power // 2]
    sums = np.append(0, np.cumsum(lengths.counts))
    bins = [lengths.bin_of(float(start)) for start in starts]
    found = [
        {"from": one, "to": other - 1, "sessions": int(sums[end] - sums[begin])}
        for (one, begin), (other, end) in pairwise(zip(starts, bins, strict=True))
    ]
    while found and not found[-1]["sessions"]:
        found.pop()
    return found


def _column(fitted: Fitted, found: Totals, column: Column) -> dict[str, Any]:
    known = {
        "kind": column.kind,
        "of": column.of,
        "counted": found.sessions if column.of == "session" else found.interactions,
    }
    if column.kind == "continuous":
        numbers = found.numbers[column.name]
        return {**known, "missing": numbers.missing, **numbers.summary(_QUANTILES)}
    counts = found.categories[column.name]
    seen = counts.known
    candidates = np.flatnonzero(seen >= _least_of_top(seen))
    top = candidates[np.argsort(-seen[candidates], kind="stable")][:_TOP_VALUES]
    return {
        **known,
        "missing": int(counts.counts[NULL]),
        "unknown": int(counts.counts[OUT_OF_VOCABULARY]),
        "cardinality": len(fitted.vocabularies[column.name].values),
        "seen": int(np.count_nonzero(seen)),
        "top": [
            {"value": text, "count": int(seen[place])}
            for text, place in zip(texts(fitted, column.name, top), top, strict=True)
        ],
    }


def _least_of_top(seen: np.ndarray) -> int:
    """Count of the last of the most frequent values, 1 where there are few."""
    if len(seen) <= _TOP_VALUES:
        return 1
    return max(1, int(np.partition(seen, -_TOP_VALUES)[-_TOP_VALUES]))

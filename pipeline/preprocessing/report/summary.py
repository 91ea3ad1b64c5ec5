"""Content of the data report as JSON: counts of each part, and drift."""

from itertools import pairwise
from typing import Any

import numpy as np

from pipeline import __version__
from pipeline.core.columns import ITEM, NULL, OUT_OF_VOCABULARY
from pipeline.data.fitted import Fitted
from pipeline.preprocessing.report.counts import Column, PartCounts, columns_of, counts_targets
from pipeline.preprocessing.report.drift import drift_rows
from pipeline.preprocessing.report.histogram import Histogram
from pipeline.preprocessing.report.periods import by_hour, by_period, by_weekday
from pipeline.preprocessing.report.values import labels_of, most_frequent, popularity
from pipeline.recipe.features import CategoricalFeature, TargetEncodedFeature

WRITTEN_BY = f"pipeline {__version__}"
_TOP_VALUES = 10
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_LENGTH_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def summarize(
    fitted: Fitted, facts: dict[str, Any], counts: dict[str, PartCounts]
) -> dict[str, Any]:
    """The data report.

    `facts` are those of the manifest: "rows", "notes", "sessions" and "left_out". `counts` are
    those of each part.
    """
    recipe = fitted.recipe
    parts = {
        name: facts["sessions"][name] | _part(fitted, name, of_part)
        for name, of_part in counts.items()
    }
    return {
        "written_by": WRITTEN_BY,
        "rows": facts["rows"],
        "notes": facts["notes"] + _useless_features(fitted, parts["train"]["columns"]),
        "split": recipe.split.by,
        "max_sequence_length": recipe.max_sequence_length,
        "min_session_length": recipe.min_session_length,
        "left_out": facts["left_out"],
        "parts": parts,
        "time": by_period(counts),
        "drift": {
            name: drift_rows(fitted, counts["train"], of_part, name)
            for name, of_part in counts.items()
            if name != "train"
        },
    }


def _part(fitted: Fitted, name: str, counts: PartCounts) -> dict[str, Any]:
    recipe, window = fitted.recipe, counts.window
    hours = weekdays = None
    if window is not None and window.is_calendar:
        hours = by_hour(counts.hours, window).astype(int).tolist()
        weekdays = by_weekday(counts.hours, window).astype(int).tolist()
    return {
        "counted": "targets" if counts_targets(recipe, name) else "interactions",
        "values": counts.interactions,
        "lengths": {  # of whole sessions, before training cuts them
            **counts.lengths.summary(_LENGTH_QUANTILES),
            "longer": counts.long_sessions,
            "histogram": _length_histogram(counts.lengths),
        },
        "popularity": popularity(counts.categories[ITEM].values),
        "sessions_with_unknown_item": counts.unknown_item_sessions,
        "columns": {column.name: _column(fitted, counts, column) for column in columns_of(recipe)},
        "hours": hours,
        "weekdays": weekdays,
    }


def _length_histogram(lengths: Histogram) -> list[dict[str, int]]:
    """Sessions by length: single lengths up to 8, then two ranges per power of two."""
    starts = list(range(1, 8))
    while starts[-1] <= lengths.high:
        power = 1 << starts[-1].bit_length()
        starts += [power, power + power // 2]
    counts = np.trim_zeros(lengths.counts_from(starts)[:-1], "b").tolist()
    return [
        {"from": first, "to": following - 1, "sessions": count}
        for (first, following), count in zip(pairwise(starts), counts, strict=False)
    ]


def _column(fitted: Fitted, counts: PartCounts, column: Column) -> dict[str, Any]:
    summary = {
        "kind": column.kind,
        "of": column.of,
        "counted": counts.sessions if column.of == "session" else counts.interactions,
    }
    if column.kind == "continuous":
        numbers = counts.numbers[column.name]
        return {**summary, "missing": numbers.missing, **numbers.summary(_QUANTILES)}
    totals = counts.categories[column.name]
    top = most_frequent(totals.values, 1, _TOP_VALUES)
    return {
        **summary,
        "missing": int(totals.counts[NULL]),
        "unknown": int(totals.counts[OUT_OF_VOCABULARY]),
        "cardinality": len(fitted.vocabularies[column.name].values),
        "seen": int(np.count_nonzero(totals.values)),
        "top": [
            {"value": label, "count": int(totals.values[position])}
            for label, position in zip(labels_of(fitted, column.name, top), top, strict=True)
        ],
    }


def _useless_features(fitted: Fitted, columns: dict[str, Any]) -> list[str]:
    """A warning for each feature without a value in training."""
    notes = []
    for feature in fitted.recipe.features:
        column = columns[feature.name]
        if isinstance(feature, TargetEncodedFeature):
            is_useless = not fitted.target_encodings[feature.name].counts.any()
        elif feature.kind == "continuous":
            is_useless = column["missing"] == column["counted"]
        else:
            vocabulary = fitted.vocabularies[feature.name]
            is_useless = not column["seen"] and not (vocabulary.hash_buckets and column["unknown"])
        if is_useless:
            min_count = feature.min_count if isinstance(feature, CategoricalFeature) else 1
            rare = f" that is seen {min_count} times" if column.get("unknown") else ""
            notes.append(
                f"{feature.name} has no usable value{rare} in training, so that a model learns "
                "nothing from it. Check its column, or leave the feature out."
            )
    return notes

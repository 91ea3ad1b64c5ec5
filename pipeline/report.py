"""What the commands print for people."""

from pathlib import Path
from typing import Any


def data_text(facts: dict[str, Any], out: Path) -> str:
    """Outcome of preprocessing."""
    lines = []
    for source, rows in facts["rows"].items():
        others = [f"{n:,} {reason}" for reason, n in rows.items() if reason not in ("read", "kept")]
        kept = f"{rows['kept']:,} of {rows['read']:,} rows kept"
        lines.append(f"{source:>6}  {'; '.join([kept, *others])}")
    for part, counts in facts["sessions"].items():
        span = f", {counts['first']} to {counts['last']}" if counts["first"] else ""
        lines.append(
            f"{part:>6}  {counts['sessions']:,} sessions, {counts['interactions']:,} interactions"
            f"{span}"
        )
    lines.append(f"Wrote {out}: {facts['catalogue_items']:,} items, on {facts['engine']}.")
    return "\n".join(lines)


def run_text(facts: dict[str, Any], out: Path) -> str:
    """Outcome of training."""
    best = ""
    if "best_epoch" in facts:
        metric = facts["train"]["metric"]
        best = f" Best epoch {facts['best_epoch']:g}: {metric} {facts[f'valid_{metric}']:.4f}."
    return (
        f"Trained {facts['parameters']:,} parameters in {facts['seconds']:.0f} s on "
        f"{facts['device']}, loss {facts['train_loss']:.3f}.{best}\nWrote {out}."
    )


def tuning_text(facts: dict[str, Any], out: Path) -> str:
    """Table of trials, best first, and what the best one set."""
    rows = sorted(
        facts["trials"], key=lambda row: (row["state"] != "complete", -(row["value"] or 0))
    )
    keys = sorted({key for row in rows for key in row["settings"]})
    head = ["trial", "state", facts["metric"], "epochs", "seconds", *keys]
    table = [head]
    for row in rows:
        values = [_short(row["settings"].get(key)) for key in keys]
        value = "-" if row["value"] is None else f"{row['value']:.4f}"
        counts = [str(row["epochs"]), _short(row["seconds"])]
        table.append([str(row["trial"]), row["state"], value, *counts, *values])
    widths = [max(len(line[place]) for line in table) for place in range(len(head))]
    lines = [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True))
        for line in table
    ]
    reasons = [f"Trial {row['trial']}: {row['reason']}" for row in rows if row["reason"]]
    best = facts["best"]
    if best is None:
        end = f"No trial was completed. Wrote {out}/trials.json."
    else:
        end = (
            f"Best: trial {best['trial']}, {facts['metric']} {best['value']:.4f} on validation.\n"
            f"Wrote {out}/best.yaml; its run is {out}/runs/{best['trial']}."
        )
    return "\n".join([*lines, *reasons, end])


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_COLUMNS = {
    **{name: name for name in ("recall", "ndcg", "mrr", "precision", "coverage", "popularity")},
    "popularity_bias": "bias",
}
"""Metrics of the table with their headings. What repeats another stands in the JSON alone."""
_LEGEND = """\
coverage: share of the items that some list holds; popularity: training interactions of what
is recommended, on average; bias: that over the same of the targets. With one target each,
dcg is ndcg and map is mrr."""


def evaluation_text(result: dict[str, Any]) -> str:
    """Table of models and metrics."""
    models = result["results"]
    width = max(len(model) for model in models)
    cutoffs = sorted({int(name.split("@")[1]) for name in next(iter(models.values()))})
    lines = [
        f"{result['targets']:,} targets ({result['positions']} positions of the {result['part']} "
        f"sessions), {result['catalogue_items']:,} items ranked"
        f"{', those seen left out' if result['filter_seen'] else ''}, "
        f"{result['unknown_targets']:,} targets unknown"
    ]
    for cutoff in cutoffs:
        columns = {f"{name}@{cutoff}": f"{head}@{cutoff}" for name, head in _COLUMNS.items()}
        lines.append("")
        lines.append("  ".join([" " * width, *columns.values()]))
        for model, values in models.items():
            cells = [f"{_cell(name, values[name]):>{len(head)}}" for name, head in columns.items()]
            lines.append("  ".join([f"{model:<{width}}", *cells]))
    return "\n".join([*lines, "", _LEGEND])


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if name.startswith("popularity@") else f"{value:.4f}"


def prediction_text(facts: dict[str, Any], out: Path) -> str:
    """Outcome of offline prediction."""
    if "items" in facts:
        return f"Wrote {out}: {facts['items']:,} items, vectors of {facts['width']} numbers."
    of = f"{facts['sessions']:,} {facts['part']} sessions"
    if "width" in facts:
        return f"Wrote {out}: {of}, vectors of {facts['width']} numbers."
    lines = []
    for name in ("blocked", "candidates"):
        if unknown := facts[f"unknown_{name}"]:
            lines.append(f"{unknown:,} ids of --{name} are not in the catalogue.")
    if facts["short_lists"]:
        lines.append(f"{facts['short_lists']:,} lists are shorter: the filters left no more items.")
    return "\n".join([*lines, f"Wrote {out}: {of}, lists of {facts['k']}."])


def recommendations_text(records: list[dict[str, Any]]) -> str:
    """Lists of sessions, best first."""
    blocks = []
    for record in records:
        lines = [] if record["session_id"] is None else [f"session {record['session_id']}"]
        for rank, entry in enumerate(record["recommendations"], start=1):
            lines.append(f"{rank:>4}  {entry['item_id']!s:<24} {entry['score']:>9.4f}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)

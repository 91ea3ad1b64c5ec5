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


def evaluation_text(result: dict[str, Any]) -> str:
    """Table of models and metrics."""
    models = result["results"]
    names = list(next(iter(models.values())))
    width = max(len(model) for model in models)
    cutoffs = sorted({int(name.split("@")[1]) for name in names})
    lines = [
        f"{result['targets']:,} targets ({result['positions']} positions of the {result['part']} "
        f"sessions), {result['catalogue_items']:,} items ranked, {result['unknown_targets']:,} "
        "targets unknown"
    ]
    for cutoff in cutoffs:
        columns = [name for name in names if name.endswith(f"@{cutoff}")]
        lines.append("")
        lines.append(" ".join([" " * width, *(f"{name:>12}" for name in columns)]))
        for model, values in models.items():
            lines.append(" ".join([f"{model:<{width}}", *(f"{values[n]:>12.4f}" for n in columns)]))
    return "\n".join(lines)


def recommendations_text(records: list[dict[str, Any]]) -> str:
    """Lists of sessions, best first."""
    blocks = []
    for record in records:
        lines = [] if record["session_id"] is None else [f"session {record['session_id']}"]
        for rank, entry in enumerate(record["recommendations"], start=1):
            lines.append(f"{rank:>4}  {entry['item_id']!s:<24} {entry['score']:>9.4f}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)

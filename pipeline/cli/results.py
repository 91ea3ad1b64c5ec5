"""What the commands print for people."""

from pathlib import Path
from typing import Any

from pipeline.reports.names import PAGE_FILE

_NAMED = 3
"""Columns that drift and are named; the page has all."""


def data_text(facts: dict[str, Any], out: Path) -> str:
    """Outcome of preprocessing."""
    lines = []
    for source, rows in facts["rows"].items():
        lines.append(f"{source:>6}  {rows['kept']:,} of {rows['read']:,} rows kept")
        for group in ("dropped", "repaired", "counted"):
            if reasons := rows.get(group):
                told = "; ".join(f"{count:,} {reason}" for reason, count in reasons.items())
                lines.append(f"        {group}: {told}")
    lines += [f"  note  {note}" for note in facts["notes"]]
    for part, counts in facts["sessions"].items():
        span = f", {counts['first']} to {counts['last']}" if counts["first"] else ""
        lines.append(
            f"{part:>6}  {counts['sessions']:,} sessions, {counts['interactions']:,} interactions"
            f"{span}"
        )
    if facts["left_out"]["sessions"]:
        sessions, interactions = facts["left_out"]["sessions"], facts["left_out"]["interactions"]
        lines.append(
            f"  none  {sessions:,} sessions, {interactions:,} interactions: too short to train on"
        )
    new = f", {facts['new_items']:,} of them new" if "new_items" in facts else ""
    for part, columns in facts.get("drift", {}).items():
        if columns:
            more = f" and {len(columns) - _NAMED} more" if len(columns) > _NAMED else ""
            lines.append(
                f" drift  much between train and {part}: {', '.join(columns[:_NAMED])}{more}"
            )
    lines.append(f"Wrote {out}: {facts['catalogue_items']:,} items{new}, on {facts['engine']}.")
    lines.append(f"Its report is {out / PAGE_FILE}.")
    return "\n".join(lines)


def run_text(facts: dict[str, Any], out: Path) -> str:
    """Outcome of training."""
    best = ""
    if "best_epoch" in facts:
        metric = facts["train"]["metric"]
        best = f" Best epoch {facts['best_epoch']:g}: {metric} {facts[f'valid_{metric}']:.4f}."
    lines = _windows_text(facts["windows"]) if "windows" in facts else []
    lines += [
        f"Trained {facts['parameters']:,} parameters in {facts['seconds']:.0f} s on "
        f"{facts['device']}, loss {facts['train_loss']:.3f}.{best}",
        f"Wrote {out}.",
    ]
    return "\n".join(lines)


_OF_WINDOWS = {"model": ("recall@20", "mrr@20"), "popularity": ("recall@20",),
               "sequential-rules": ("recall@20",)}  # fmt: skip
"""Columns of the table by model; all others stand in windows.json."""


def _windows_text(windows: dict[str, Any]) -> list[str]:
    """Table of the windows, each evaluated before it was trained on, and their mean."""
    names = [(model, name) for model, metrics in _OF_WINDOWS.items() for name in metrics]
    heads = ["recall@20", "mrr@20", "popular", "rules"]
    first = f"{'from':<20}  {'sessions':>8}  {'new items':>9}  {'targets':>8}  {'unknown':>7}"
    lines = ["  ".join([first, *(f"{head:<13}" for head in heads)]).rstrip()]
    for window in windows["windows"]:
        found = window["evaluation"]
        cells = f"{window['from']:<20}  {window['sessions']:>8,}  {window['new_items']:>9,}"
        if found is not None:
            counts = f"{found['targets']:>8,}  {found['unknown_targets']:>7,}"
            cells = "  ".join([cells, counts, *_window_cells(found, names)])
        lines.append(cells.rstrip())
    if windows["mean"] is not None:
        mean = "  ".join([f"{'mean of the windows':<60}", *_window_cells(windows["mean"], names)])
        lines.append(mean.rstrip())
    return [
        *lines,
        "Each window was evaluated before it was trained on; popular and rules are the recall@20",
        "of popularity and sequential rules. ±: half the 95 % interval. The run learned from all",
        "sessions of the data, so evaluate it on later ones.",
    ]


def _window_cells(found: dict[str, Any], names: list[tuple[str, str]]) -> list[str]:
    results, margins = found["results"], found["margins"]
    return [f"{_with_margin(results[m][n], margins[m][n]):<13}" for m, n in names]


def tuning_text(facts: dict[str, Any], out: Path) -> str:
    """Table of trials, best first, and what the best one set."""
    sign = 1 if facts["metric"] == "loss" else -1
    rows = sorted(
        facts["trials"], key=lambda row: (row["state"] != "complete", sign * (row["value"] or 0))
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


_SURE = ("recall", "ndcg", "mrr")
"""Metrics of the table that come with their margin."""
_LISTS = {"coverage": "coverage", "popularity": "popularity", "popularity_bias": "bias"}
"""Metrics of the lists with their headings. What repeats another stands in the JSON alone."""
_LEGEND = """\
±: half the 95 % interval, over sessions. coverage: share of the items that some list holds;
popularity: training interactions of what is recommended, on average; bias: that over the same
of the targets. With one target each, recall is the hit rate, dcg is ndcg and map is mrr."""
_SHORT = {
    "popularity": "popular",
    "recent-popularity": "recent",
    "co-visitation": "co-visit",
    "sequential-rules": "rules",
    "session-knn": "knn",
}
"""Headings of the baselines where many columns stand side by side."""


def evaluation_text(result: dict[str, Any], *, breakdown: bool = False) -> str:
    """Table of models and metrics, and of groups of targets where that is asked for."""
    models = result["results"]
    width = max(len(model) for model in models)
    cutoffs = sorted({int(name.split("@")[1]) for name in next(iter(models.values()))})
    lines = [
        f"{result['targets']:,} targets ({result['positions']} positions of the {result['part']} "
        f"sessions), {result['catalogue_items']:,} items ranked"
        f"{', those seen left out' if result['filter_seen'] else ''}, "
        f"{result['unknown_targets']:,} targets unknown"
    ]
    if result["other_data"]:
        lines += _other_data_text(result)
    for cutoff in cutoffs:
        sure = [f"{name}@{cutoff}" for name in _SURE]
        lists = {f"{name}@{cutoff}": f"{head}@{cutoff}" for name, head in _LISTS.items()}
        lines.append("")
        heads = [f"{name:<13}" for name in sure]
        lines.append("  ".join([" " * width, *heads, *lists.values()]))
        for model, values in models.items():
            margins = result["margins"][model]
            cells = [f"{_with_margin(values[name], margins[name]):<13}" for name in sure]
            cells += [f"{_cell(name, values[name]):>{len(head)}}" for name, head in lists.items()]
            lines.append("  ".join([f"{model:<{width}}", *cells]))
    lines += _differences_text(result["differences"], cutoffs[-1])
    if breakdown:
        lines += _breakdown_text(result, f"recall@{cutoffs[-1]}")
    return "\n".join([*lines, "", _LEGEND])


def _other_data_text(result: dict[str, Any]) -> list[str]:
    count = result["new_items"]
    new = f", and does not know {count:,} of their items" if count else ""
    lines = [f"The run was trained on other sessions than the data have{new}."]
    if result["part"] == "train":
        lines.append("Baselines could learn from these same sessions alone, so there are none.")
    elif len(result["results"]) > 1:
        lines.append("The baselines have learned from the train part of the data, the run has not.")
    return lines


def _differences_text(differences: dict[str, Any], cutoff: int) -> list[str]:
    """The run less the best baseline, on the same targets."""
    lines = []
    for name in (f"{metric}@{cutoff}" for metric in _SURE):
        if name in differences:
            found = differences[name]
            value = f"{found['difference']:+.4f} {_margin(found['margin'])}"
            lines.append(f"{name} less that of {found['baseline']}, the best baseline: {value}")
    return ["", *lines] if lines else []


def _breakdown_text(result: dict[str, Any], metric: str) -> list[str]:
    """A table for each way to group the targets: groups by models."""
    run, *baselines = result["results"]
    heads = [_SHORT.get(name, name) for name in baselines]
    lines = []
    for by, groups in result["breakdowns"].items():
        width = max(len(by), *(len(group["group"]) for group in groups))
        first = f"{by:<{width}}  {'targets':>9}  {run[:13]:<13}"
        lines += ["", f"{metric} by {by}", "  ".join([first, *heads]).rstrip()]
        for group in groups:
            own = _with_margin(group["results"][run][metric], group["margins"][run][metric])
            cells = [
                f"{group['results'][name][metric]:>{len(head)}.3f}"
                for name, head in zip(baselines, heads, strict=True)
            ]
            first = f"{group['group']:<{width}}  {group['targets']:>9,}  {own:<13}"
            lines.append("  ".join([first, *cells]).rstrip())
    return lines


def _with_margin(value: float, margin: float | None) -> str:
    return f"{value:.4f} {_margin(margin)}".rstrip()


def _margin(margin: float | None) -> str:
    """±.0123, without the zero that every margin begins with."""
    return "" if margin is None else f"±{margin:.4f}".replace("±0", "±")


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if name.startswith("popularity@") else f"{value:.4f}"


def report_text(facts: dict[str, Any]) -> str:
    """Where the page went."""
    return f"Wrote {facts['page']}, and the same numbers to {facts['json']}."


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

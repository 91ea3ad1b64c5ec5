"""What `python -m benchmarks preprocess` shows."""

from typing import Any

from benchmarks.text import machine_line

_LABELS = {"ours": "pipeline", "polars": "Polars", "nvtabular": "NVTabular, stock"}


def preprocessing_text(result: dict[str, Any]) -> str:
    """The table: one line a side, then the ratios, then whether the outputs agree."""
    lines = [machine_line(result["machine"], result["cores"])]
    for side, found in result["versions"].items():
        lines.append(f"{_LABELS[side]}: " + ", ".join(f"{name} {v}" for name, v in found.items()))
    turns = max(len(cost["turns"]) for cost in result["sides"].values())
    lines += [
        f"{result['rows']:,} interactions of {result['items']:,} items, three features, newest "
        f"{result['newest']} kept" + (f"; medians of {turns} turns" if turns > 1 else ""),
        "",
        f"{'':<18}{'seconds':>10}{'without imports':>18}{'CPU s':>10}{'peak MB':>10}",
    ]
    for side, cost in result["sides"].items():
        lines.append(
            f"{_LABELS[side]:<18}{cost['seconds']:>10.2f}{cost['work_seconds']:>18.2f}"
            f"{cost['cpu_seconds']:>10.2f}{cost['peak_bytes'] / 1e6:>10,.0f}"
        )
    lines.append("")
    for side, ratio in result["ratios"].items():
        lines.append(
            f"pipeline over {_LABELS[side]}: {ratio['seconds']:.3f} times the seconds "
            f"({1 / ratio['seconds']:.2f} times as fast), {ratio['work_seconds']:.3f} without "
            f"imports, {ratio['peak']:.2f} times the memory"
        )
    lines += [_comparison(side, found) for side, found in result["comparisons"].items()]
    lines += [
        "",
        "seconds: of the whole process, imports included; peak MB: resident, of the same.",
    ]
    if "ours" in result["sides"]:
        lines.append(
            "without imports: as the program says; of pipeline the seconds less those of a log of "
            f"{result['small_rows']:,} rows."
        )
    return "\n".join(lines)


def _comparison(side: str, found: dict[str, Any]) -> str:
    names = f"{_LABELS[side]} and {_LABELS[found['with']]}"
    if found["same"]:
        return f"{names} wrote the same {found['sessions']:,} sessions."
    difference = found["difference"]
    if difference["session_id"] is None:
        where = f"the vocabulary of {difference['column']}"
    else:
        where = f"{difference['column']} of session {difference['session_id']}"
    return (
        f"{names} DIFFER in {where}: {_short(difference['other'])} and {_short(difference['one'])}."
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 300 else text[:300] + " ..."

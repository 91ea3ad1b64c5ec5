"""The report of data beside the data: a page, and the same numbers as JSON."""

import json
from pathlib import Path
from typing import Any

from pipeline.data.fitted import Fitted
from pipeline.preprocessing.report.counting import Totals
from pipeline.preprocessing.report.drifting import drifting
from pipeline.preprocessing.report.facts import report_of
from pipeline.reports.names import JSON_FILE, PAGE_FILE


def write_report(
    directory: Path,
    fitted: Fitted,
    facts: dict[str, Any],
    totals: dict[str, Totals],
    left_out: dict[str, int],
) -> dict[str, Any]:
    """Write report.html and report.json into an artifact that is being made.

    Returns for the manifest {"drift", "notes"}: the columns that drift much, by part, and what a
    person should do. For the arguments see `facts.report_of`.
    """
    report = report_of(fitted, facts, totals, left_out)
    text = json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    (directory / JSON_FILE).write_text(text, encoding="utf-8")
    from pipeline.preprocessing.report.page import render  # jinja2 takes its time

    (directory / PAGE_FILE).write_text(render(report), encoding="utf-8")
    return {"drift": drifting(report), "notes": report["notes"]}

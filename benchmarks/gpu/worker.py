"""Process of one part: `python -m benchmarks.gpu.worker PART PLAN OUT PARENT`."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import Plan
from benchmarks.turns import end_with

# Module, function and further arguments of each part; modules import torch and more.
PARTS: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "stack": ("stack", "check", ()),
    "tests marked gpu": ("stack", "run_tests", ()),
    "log": ("preprocessing", "write_logs", ()),
    "preprocess ours": ("preprocessing", "measure_ours", ("ours",)),
    "preprocess ours on the CPU": ("preprocessing", "measure_ours", ("ours-cpu",)),
    "preprocess sessions of both": ("preprocessing", "compare_ours", ()),
    "preprocess cuDF by hand": ("preprocessing", "measure_by_hand", ()),
    "preprocess stock NVTabular": ("preprocessing", "measure_nvtabular", ()),
    "evaluate": ("inference", "measure_evaluation", ()),
    "export": ("inference", "measure_export", ()),
    "serve": ("inference", "measure_serving", ()),
}


def rows_of(part: str, plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield names and figures of the rows of a part."""
    titles = [each.title for each in plan.training]
    title = part.removeprefix("train ").removeprefix("compiled ")
    if title in titles:
        function = "measure_compiled" if part.startswith("train compiled") else "measure"
        module, arguments = "training", (titles.index(title),)
    else:
        module, function, arguments = PARTS[part]
    measure = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)
    yield from measure(plan, *arguments)


def main(part: str, plan: Plan, out: Path) -> None:
    """Write all rows as JSON after each one, as the process may be killed before the last."""
    rows = {}
    for name, figures in rows_of(part, plan):
        rows[name] = figures
        partial = out.with_suffix(".partial")
        partial.write_text(json.dumps(rows), encoding="utf-8")
        partial.rename(out)


if __name__ == "__main__":
    end_with(int(sys.argv[4]))
    main(sys.argv[1], Plan.from_json(sys.argv[2]), Path(sys.argv[3]))

"""Checks of each part of the GPU stack, and the tests marked `gpu`."""

import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.plan import Plan
from benchmarks.gpu.profile import Figures, figures_or_error
from pipeline.core.errors import PipelineError

ROOT = Path(__file__).resolve().parents[2]


def check(plan: Plan) -> Iterator[tuple[str, Figures]]:
    """Yield the versions of each part of the stack that runs, the errors of the others."""
    checks: dict[str, Callable[[Plan], str]] = {
        "torch": check_torch,
        "torch.compile": check_compile,
        "arrays": check_arrays,
        "data frames": check_frames,
        "NVTabular": check_nvtabular,
        "dataloader": check_loader,
    }
    for name, run in checks.items():
        yield name, figures_or_error(partial(_note, run, plan))


def _note(run: Callable[[Plan], str], plan: Plan) -> Figures:
    return {"note": run(plan)}


def check_torch(plan: Plan) -> str:
    """Multiply in bf16 with a float32 result, as the loss over the catalogue does."""
    from pipeline.model.ops.catalogue_scan_device import product

    device = torch.device(plan.device)
    ones = torch.ones(64, 64, dtype=torch.bfloat16, device=device)
    result = product(ones, ones, torch.float32)
    _expect(float(result.sum()), 64.0**3)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{torch.__version__}, CUDA {torch.version.cuda}, {name}"


def check_compile(plan: Plan) -> str:
    """Compile a function for the device."""
    backend = "inductor" if plan.device == "cuda" else "aot_eager"
    compiled = torch.compile(lambda x: (x.exp() + 1).sum(), backend=backend)
    _expect(round(float(compiled(torch.zeros(8, device=plan.device)))), 16)
    return backend


def check_arrays(plan: Plan) -> str:
    """Compute with CuPy, or NumPy on a CPU."""
    arrays = array_module(plan)
    _expect(float((arrays.arange(10.0) * 2 + 1).sum()), 100.0)
    return f"{arrays.__name__} {arrays.__version__}"


def check_frames(plan: Plan) -> str:
    """Group lists with cuDF, or pandas on a CPU."""
    frames = frame_module(plan)
    log = frames.DataFrame({"session": [1, 1, 2], "item": ["a", "b", "c"], "price": [1.0, 2.0, 3]})
    lists = log.groupby("session", sort=True).agg({"item": list, "price": list})
    _expect(as_pandas(lists)["price"].map(list).tolist(), [[1.0, 2.0], [3.0]])
    return f"{frames.__name__} {frames.__version__}"


def check_nvtabular(plan: Plan) -> str:
    """Encode text and group it with a workflow of stock operators."""
    from pipeline.core.merlin import has_cudf

    # isort: split
    import nvtabular
    from merlin.io import Dataset
    from nvtabular import ops

    log = frame_module(plan).DataFrame({"s": [1, 1, 2, 2], "i": list("abac"), "t": [1, 2, 3, 4]})
    with tempfile.TemporaryDirectory(dir=plan.scratch) as folder:
        encoded = ["i"] >> ops.Categorify(out_path=folder)
        columns = encoded + ["s", "t"]  # noqa: RUF005  a node of the graph, no list
        grouped = columns >> ops.Groupby(groupby_cols=["s"], sort_cols=["t"], aggs={"i": ["list"]})
        workflow = nvtabular.Workflow(grouped)
        sessions = workflow.fit_transform(Dataset(log, cpu=plan.device == "cpu"))
        lists = as_pandas(sessions.to_ddf().compute())["i_list"].map(list).tolist()
    _expect(lists, [[3, 4], [3, 5]])
    if plan.device == "cuda" and not has_cudf():
        raise PipelineError("Merlin sees no GPU.")
    return f"{nvtabular.__version__}"


def check_loader(plan: Plan) -> str:
    """Read lists with the Merlin dataloader into tensors of the device."""
    import pipeline.core.merlin  # noqa: F401  before Merlin

    # isort: split
    from merlin.dataloader.torch import Loader
    from merlin.io import Dataset

    table = frame_module(plan).DataFrame({"item": [[1, 2], [3], [4, 5, 6]], "price": [1.0, 2, 3]})
    batch, _ = next(iter(Loader(Dataset(table, cpu=plan.device == "cpu"), batch_size=3)))
    values = batch["item__values"]
    _expect(values.cpu().tolist(), [1, 2, 3, 4, 5, 6])
    _expect(values.device.type, plan.device)
    return f"tensors on {values.device}"


def run_tests(plan: Plan) -> Iterator[tuple[str, Figures]]:
    """Run the tests marked `gpu`; yield the numbers of outcomes."""
    files = [str(file) for file in sorted((ROOT / "tests").rglob("test_*.py")) if _is_marked(file)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    *lines, summary = done.stdout.strip().splitlines() or [done.stderr[-300:]]
    summary = summary.strip("= ")
    if done.returncode:
        failed = [line.split()[1] for line in lines if line.startswith(("FAILED ", "ERROR "))]
        raise PipelineError(f"pytest: {summary}: {', '.join(failed)}")
    outcomes = re.findall(r"(\d+) (passed|skipped)", summary)
    yield "outcomes", {"note": ", ".join(f"{number} {name}" for number, name in outcomes)}


def frame_module(plan: Plan) -> Any:
    """Return the module cudf, or on a CPU pandas, which has the same names."""
    import pipeline.core.merlin  # noqa: F401  mends cuDF

    return importlib.import_module("cudf" if plan.device == "cuda" else "pandas")


def array_module(plan: Plan) -> Any:
    """Return the module cupy, or on a CPU numpy, which has the same names."""
    return importlib.import_module("cupy" if plan.device == "cuda" else "numpy")


def as_pandas(frame: Any) -> Any:
    """Convert a data frame of cuDF or pandas to pandas."""
    return frame.to_pandas() if hasattr(frame, "to_pandas") else frame


def _is_marked(file: Path) -> bool:
    text = file.read_text(encoding="utf-8")
    return bool(re.search(r"^@pytest\.mark\.gpu$", text, re.MULTILINE))


def _expect(result: object, expected: object) -> None:
    if result != expected:
        raise PipelineError(f"It gave {result}, expected {expected}.")

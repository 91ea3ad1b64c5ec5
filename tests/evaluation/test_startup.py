"""Commands that need a trained run start without the libraries of the stages before."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Shop

HEAVY = (
    *("nvtabular", "merlin", "dask", "distributed", "numba"),
    *("transformers.trainer", "transformers.training_args"),
)
"""Modules of NVTabular and of Hugging Face's Trainer."""
RUN_COMMAND = f"""
import sys
from pipeline.cli.main import main
sys.argv = ["pipeline", *sys.argv[1:]]
try:
    main()
except SystemExit as exit:
    assert not exit.code, exit.code
print("modules:", *[name for name in {HEAVY} if name in sys.modules])
"""


@pytest.mark.parametrize("command", ["evaluate", "predict", "recommend"])
def test_commands_of_a_run_import_neither_nvtabular_nor_the_trainer(
    shop: Shop, tmp_path: Path, command: str
) -> None:
    run, data = str(shop.run), str(shop.data)
    arguments = {
        "evaluate": [run, "--data", data],
        "predict": [run, "--data", data, "--out", str(tmp_path / "lists.parquet")],
        "recommend": [run, "--items", "sku-00001"],
    }[command]
    done = subprocess.run(
        [sys.executable, "-c", RUN_COMMAND, command, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    assert done.stdout.splitlines()[-1] == "modules:"

"""Stages of the matrix, what each writes, and what two runs of a stage have in common."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.artifact import read_manifest
from pipeline.core.manifest import MANIFEST, parse_manifest
from pipeline.serve.request_log.exchange import Row
from pipeline.serve.request_log.files import to_batch, write_file
from tests.conftest import ROOT
from tests.faults.commands import Fault, ForkServer, Outcome

RECIPE = str(ROOT / "configs" / "demo.yaml")
MODEL = ["--set", "model.d_model=8", "--set", "model.n_layer=1", "--set", "train.batch_size=32"]
STEPS = ["--set", "train.epochs=2", "--set", "train.checkpoint_steps=2"]
TRAIN = ["--recipe", RECIPE, *MODEL, *STEPS]
SPLIT = ["--set", "preprocess.split={valid: 0.1, test: 0.25}"]


@dataclass(frozen=True)
class Stage:
    """A command that writes `out`, in a folder that holds nothing else."""

    command: list[str]
    """`IN/` in it is the folder of the inputs."""
    earlier: list[str] = field(default_factory=list)
    """Command that wrote what the folder holds before; nothing where it is empty."""
    is_many: bool = False
    """Whether `out` is a folder of several artifacts, of which each is old or new by itself."""


def update_of(log: str) -> list[str]:
    """Return the command that learns from a log."""
    update = ["update", "--from", "out", "--input", f"IN/{log}.csv.gz", "--recipe", RECIPE]
    return [*update, *MODEL, *STEPS, *SPLIT]


STAGES = {
    "synthesize": Stage(
        ["synthesize", "--out", "out.csv.gz", "--sessions", "150", "--seed", "7", "--overwrite"],
        ["synthesize", "--out", "out.csv.gz", "--sessions", "20"],
    ),
    "preprocess": Stage(
        ["preprocess", "IN/clicks.csv.gz", "--recipe", RECIPE, "--out", "out", "--if-needed"],
        ["preprocess", "IN/early.csv.gz", "--recipe", RECIPE, "--out", "out"],
    ),
    "preprocess, nothing before": Stage(
        ["preprocess", "IN/clicks.csv.gz", "--recipe", RECIPE, "--out", "out"],
    ),
    "preprocess --from": Stage(
        [*["preprocess", "IN/clicks.csv.gz", "--recipe", RECIPE, "--from", "IN/early"],
         *["--out", "out"]],
        ["preprocess", "IN/early.csv.gz", "--recipe", RECIPE, "--out", "out"],
    ),
    "train": Stage(
        ["train", "IN/data", *TRAIN, "--out", "out"],
        ["train", "IN/data", "--set", "model.architecture=popularity", "--out", "out"],
    ),
    "train, counting": Stage(
        ["train", "IN/data", "--set", "model.architecture=popularity", "--out", "out"],
        ["train", "IN/data", "--set", "model.architecture=co-visitation", "--out", "out"],
    ),
    "train --windows": Stage(["train", "IN/data", *TRAIN, "--windows", "7d", "--out", "out"]),
    "train --seeds": Stage(
        ["train", "IN/data", *TRAIN, "--seeds", "2", "--if-needed", "--out", "out"], is_many=True
    ),
    "tune": Stage(
        [*["tune", "IN/data", *TRAIN, "--set", "train.epochs=1", "--space", "IN/space.yaml"],
         *["--trials", "2", "--out", "out"]],
        is_many=True,
    ),
    "evaluate --ranks": Stage(
        ["evaluate", "IN/run", "--data", "IN/data", "--ranks", "out.parquet"],
        ["evaluate", "IN/counting", "--data", "IN/data", "--ranks", "out.parquet"],
    ),
    "compare": Stage(
        [*["compare", "IN/run", "IN/counting", "--data", "IN/data", "--out", "out.html"],
         *["--overwrite", "--no-baselines", "--cutoffs", "5", "--figures", "figures"]],
        ["compare", "IN/counting", "--data", "IN/data", "--out", "out.html"],
        is_many=True,
    ),
    "report": Stage(
        ["report", "IN/run", "--data", "IN/data", "--out", "out.html"],
        ["report", "IN/counting", "--data", "IN/data", "--out", "out.html"],
        is_many=True,
    ),
    "predict": Stage(
        ["predict", "IN/run", "--data", "IN/data", "--out", "out.parquet"],
        ["predict", "IN/counting", "--data", "IN/data", "--out", "out.parquet"],
    ),
    "predict --embeddings": Stage(
        [*["predict", "IN/run", "--data", "IN/data", "--embeddings", "items"],
         *["--out", "out.parquet"]],
    ),
    "export": Stage(
        ["export", "IN/run", "--out", "out", "--if-needed"],
        ["export", "IN/counting", "--out", "out"],
    ),
    "export, nothing before": Stage(["export", "IN/run", "--out", "out"]),
    "export --format onnx": Stage(["export", "IN/run", "--format", "onnx", "--out", "out"]),
    "rollback": Stage(["rollback", "out"], ["two versions"]),
    "update, first": Stage(update_of("early"), is_many=True),
    "update": Stage(update_of("clicks"), update_of("early"), is_many=True),
    "monitor": Stage(
        ["monitor", "IN/log", "--data", "IN/data", "--out", "out.html"],
    ),
}  # fmt: skip
NOT_REPEATED = {"rollback", "export, nothing before"}
"""Stages of which a second call does something else once the first has done its work."""

_VARYING = {
    *("seconds", "sessions_per_second", "peak_memory_mb", "superseded", "sha256", "fingerprint"),
    *("bytes", "files", "timing", "memory", "train_runtime", "train_samples_per_second"),
    *("train_steps_per_second", "evaluation_seconds", "training_seconds", "cost"),
}
"""Keys in JSON that differ between two runs of a stage, or are digests of such files."""
_NOT_COMPARED = re.compile(r"report\.html|out\.html|study\.db|.*\.(png|svg)")
"""Files with times in them: pages, the database of trials, and plots."""


def _row(item: str, second: int) -> Row:
    """A logged request."""
    at = 1_767_600_000_000_000 + second * 1_000_000
    return Row(at, f"s{second}", "recommender", 1, None, None, 2, [item], ["sku-00002", item])


class Bench:
    """Inputs of all stages, and what an undisturbed run of each leaves."""

    def __init__(self, server: ForkServer, folder: Path) -> None:
        """Write the inputs."""
        self.server, self.folder, self.inputs = server, folder, folder / "inputs"
        self._undisturbed: dict[str, tuple[Path, dict[str, str]]] = {}
        self.inputs.mkdir()
        (self.inputs / "space.yaml").write_text("train.learning_rate: {log: [0.001, 0.01]}\n")
        (self.inputs / "log").mkdir()
        batch = to_batch([_row("sku-00001", at) for at in range(20)])
        write_file(self.inputs / "log", [batch], {})
        for name, seed, sessions in (("early", 1, 100), ("clicks", 2, 150)):
            log = [f"{name}.csv.gz", "--seed", str(seed), "--sessions", str(sessions)]
            self.prepare(["synthesize", "--items", "40", "--out", *log])
        for log, data in (("early", "early"), ("clicks", "data")):
            preprocess = ["preprocess", f"{log}.csv.gz", "--recipe", RECIPE, "--out", data]
            self.prepare(preprocess)
        self.prepare(["train", "data", *TRAIN, "--out", "run"])
        counting = ["--set", "model.architecture=popularity"]
        self.prepare(["train", "data", *counting, "--out", "counting"])

    def prepare(self, command: list[str], folder: Path | None = None) -> None:
        """Run a command that must succeed."""
        outcome = self.run(command, folder or self.inputs)
        assert outcome.status == 0, outcome.stderr

    def run(
        self, command: list[str], folder: Path, fault: Fault | None = None, **limits: Any
    ) -> Outcome:
        """Run a command of a stage in `folder`."""
        words = [word.replace("IN/", f"{self.inputs}/") for word in command]
        return self.server.run(words, folder, fault, **limits)

    def fresh(self, name: str, case: str = "case") -> Path:
        """Return a folder as it is before the stage."""
        stage = STAGES[name]
        before = self.folder / f"before {name}"
        if not before.exists():
            before.mkdir()
            if stage.earlier == ["two versions"]:
                self.prepare(["export", "IN/run", "--out", "out"], before)
                self.prepare(["export", "IN/counting", "--out", "out"], before)
            elif stage.earlier:
                self.prepare(stage.earlier, before)
        folder = self.folder / case
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder)
        return folder

    def undisturbed(self, name: str) -> dict[str, str]:
        """Return the content of a folder after an undisturbed run."""
        if name not in self._undisturbed:
            folder = self.fresh(name, f"after {name}")
            self.prepare(STAGES[name].command, folder)
            self._undisturbed[name] = folder, contents(folder)
        return self._undisturbed[name][1]

    def before(self, name: str) -> dict[str, str]:
        """Return the content of a folder before the stage."""
        self.fresh(name)
        return contents(self.folder / f"before {name}")


def contents(folder: Path) -> dict[str, str]:
    """Return digests of the files below a folder, without what varies between two runs."""
    return {
        file.relative_to(folder).as_posix(): _digest(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def visible(files: dict[str, str]) -> dict[str, str]:
    """Return the files that are not below a hidden directory, nor hidden."""
    return {
        name: digest
        for name, digest in files.items()
        if not any(part.startswith(".") for part in name.split("/"))
    }


def check_whole(folder: Path) -> int:
    """Check each artifact below a folder that is not hidden; return their number."""
    number = 0
    for path in _artifacts(folder):
        read_manifest(path, parse_manifest(path).kind)
        number += 1
    return number


def _artifacts(folder: Path) -> Iterator[Path]:
    for manifest in folder.rglob(MANIFEST):
        if not any(part.startswith(".") for part in manifest.relative_to(folder).parts):
            yield manifest.parent


def _digest(file: Path) -> str:
    if _NOT_COMPARED.fullmatch(file.name):
        return "written"
    content = file.read_bytes()
    if file.suffix in (".json", ".jsonl"):
        try:
            values = [json.loads(line) for line in content.splitlines() if line]
        except ValueError:
            try:
                values = json.loads(content)
            except ValueError:  # half of a file
                return "half"
        content = json.dumps(_constant(values)).encode()
    return hashlib.sha256(content).hexdigest()


def _constant(value: Any) -> Any:
    """Return JSON without the keys that vary."""
    if isinstance(value, dict):
        return {k: _constant(v) for k, v in value.items() if k not in _VARYING}
    if isinstance(value, list):
        return [_constant(v) for v in value]
    return value

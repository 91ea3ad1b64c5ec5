"""Fixtures of all tests: one small shop through every stage, made once a test run."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe.recipe import Recipe

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does
# each of pytest-xdist's processes takes its share of the cores
os.environ.setdefault(
    "OMP_NUM_THREADS",
    str(max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))),
)

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = ROOT.parent / "shared" / "data"


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name bytes by their number.

    The processes of pytest-xdist must agree on every name, and compressed bytes may hold the time.
    """
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


_STARTS_TRITON = re.compile(r"\b(TritonServer|running_server)\b")
_RUNS_STAGES = re.compile(
    r"\bpipeline\.(training|cli|exporting|preprocessing\.(run|workflow))\b|\bbenchmarks\b|make_shop"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what their module uses: `server` starts Triton, `train` runs a whole stage.

    What is left is the unit tier: `-m "not server and not train"`.
    """
    sources: dict[Path, str] = {}
    for item in items:
        source = sources.setdefault(item.path, item.path.read_text(encoding="utf-8"))
        fixtures = getattr(item, "fixturenames", ())
        if "server" in fixtures or _STARTS_TRITON.search(source):
            item.add_marker("server")
        if "shop" in fixtures or _RUNS_STAGES.search(source):
            item.add_marker("train")


SESSION: dict[str, list[Any]] = {
    "item_id": ["sku-00001", "sku-00002"],
    "timestamp": ["2026-01-05 00:00:00 UTC", "2026-01-05 00:00:09 UTC"],
    "category": ["category-01", "category-02"],
    "action": ["view", "cart"],
    "price": [10.0, 20.5],
    "device": ["phone"],
}
"""Raw interactions by tensor name, as a client gives them."""


@dataclass(frozen=True)
class Shop:
    """Directories that the stages wrote for one small shop, and its recipe."""

    recipe: Recipe
    clicks: Path
    data: Path
    run: Path
    repository: Path


def small_recipe() -> Recipe:
    """The recipe of the demo, with a model that trains in seconds."""
    return Recipe.load(
        ROOT / "configs" / "demo.yaml",
        ("model.d_model=32", "model.n_layer=1", "train.epochs=2", "train.seed=3"),
    )


def make_shop(directory: Path, recipe: Recipe, sessions: int = 1_500) -> Shop:
    """Run every stage for a synthetic log."""
    from pipeline.exporting.run import export
    from pipeline.preprocessing.run import preprocess
    from pipeline.preprocessing.synthetic import synthesize
    from pipeline.training.run import train

    shop = Shop(
        recipe,
        directory / "clicks.csv.gz",
        directory / "data",
        directory / "run",
        directory / "repository",
    )
    synthesize(shop.clicks, sessions=sessions, items=200, seed=1)
    preprocess(recipe.preprocess, [shop.clicks], [], shop.data)
    train(shop.data, recipe.model, recipe.train, shop.run)
    export(shop.run, shop.repository)
    return shop


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A shop with all kinds of features and text ids."""
    return make_shop(tmp_path_factory.mktemp("shop"), small_recipe())


@pytest.fixture(scope="session")
def server(shop: Shop) -> Iterator[object]:
    """A real Triton on the shop's repository. Where it cannot start, tests fail."""
    from pipeline.serve.run import running_server
    from pipeline.serve.triton.ports import free_ports

    with running_server(shop.repository, ports=free_ports()) as running:
        yield running


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Public logs beside the checkout, whose licences do not allow redistribution."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"the real logs are not here: {REAL_DATA.name}/ is missing beside the checkout")
    return REAL_DATA

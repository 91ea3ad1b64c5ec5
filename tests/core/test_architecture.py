"""What may import what, and what nobody may use."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "pipeline"
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "triton_models").rglob("*.py")])

MAY_IMPORT = {
    "core": set(),
    "reports": set(),
    "recipe": {"core"},
    "data": {"core", "recipe"},
    "logs": {"core", "recipe", "data"},
    "preprocessing": {"core", "recipe", "data", "logs", "reports"},
    "model": {"core", "recipe", "data"},
    "evaluation": {"core", "recipe", "data", "logs", "model", "reports"},
    "training": {"core", "recipe", "data", "logs", "model", "reports", "evaluation"},
    "exporting": {"core", "recipe", "data", "model"},
    "serve": {"core", "recipe", "logs", "data"},
}
COMMANDS = {"cli", "in_process"}
"""They may use every package, inside a function; no package uses them."""
BY_ITSELF = [
    *(PACKAGE / "serve" / "runtime").rglob("*.py"),
    *(PACKAGE / "serve" / "triton" / "backends").rglob("*.py"),
    *(ROOT / "triton_models").rglob("*.py"),
]
"""Runs inside Triton, where this project is not installed."""
RUNS_CODE = {
    "pickle", "_pickle", "cPickle", "joblib", "dill", "cloudpickle", "shelve", "marshal",
}  # fmt: skip
RUNNING_CALLS = {"eval", "exec", "compile", "__import__"}
LOADERS = {
    "torch.load", "torch.save", "pandas.read_pickle", "pd.read_pickle",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load",
    "Workflow.load", "nvt.Workflow.load",
}  # fmt: skip


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def imports(node: ast.AST, file: Path) -> Iterator[tuple[str, ast.AST]]:
    """Full names of modules imported anywhere below `node`, relative imports resolved."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, child) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            parents = file.relative_to(ROOT).parts[: -child.level] if child.level else ()
            module = ".".join([*parents, *([child.module] if child.module else [])])
            # `from pipeline import model` imports pipeline.model
            yield from ((f"{module}.{alias.name}", child) for alias in child.names)
        elif isinstance(child, ast.Call) and dotted(child.func).endswith("import_module"):
            for given in child.args[:1]:
                if isinstance(given, ast.Constant):
                    yield str(given.value), child


def dotted(node: ast.AST) -> str:
    """`torch.jit.load` of an attribute, and "" of what is no plain name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else f".{node.attr}"
    return ""


def of_ours(file: Path) -> set[str]:
    """Parts of this project that a file imports."""
    found = set()
    for module, _ in imports(tree(file), file):
        if module.split(".")[0] == "pipeline" and module != "pipeline.__version__":
            found.add(module.split(".")[1])
    return found


def at_import(file: Path) -> set[str]:
    """Like `of_ours`, of what is imported when the file itself is."""
    module = tree(file)
    functions = [n for n in ast.walk(module) if isinstance(n, ast.FunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    return {
        found.split(".")[1]
        for found, node in imports(module, file)
        if found.startswith("pipeline.") and id(node) not in inside
    } - {"__version__"}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_the_table_allows(package: str) -> None:
    files = sorted((PACKAGE / package).rglob("*.py"))
    assert files
    wrong = {name(f): of_ours(f) - MAY_IMPORT[package] - {package} for f in files}
    assert {f: found for f, found in wrong.items() if found} == {}


def test_every_package_stands_in_the_table() -> None:
    parts = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert parts - {"__pycache__", "__init__", "__main__"} == set(MAY_IMPORT) | COMMANDS


@pytest.mark.parametrize("file", BY_ITSELF, ids=name)
def test_what_runs_inside_triton_imports_nothing_of_ours(file: Path) -> None:
    beside_it = ".".join(file.relative_to(ROOT).parent.parts) + "."  # copied with it
    found = {module for module, _ in imports(tree(file), file)}
    assert [m for m in found if m.startswith("pipeline.") and not m.startswith(beside_it)] == []


@pytest.mark.parametrize("file", sorted((PACKAGE / "serve" / "runtime").glob("*.py")), ids=name)
def test_what_reads_requests_imports_the_standard_library_and_numpy_alone(file: Path) -> None:
    found = {module.split(".")[0] for module, _ in imports(tree(file), file)}
    of_itself = {"pipeline"}  # as `from .encoder` is seen here; see the test above
    assert found <= {"numpy", *of_itself, *sys.stdlib_module_names}


def test_importing_core_loads_neither_torch_nor_nvtabular() -> None:
    modules = [name(f)[:-3].replace("/", ".") for f in sorted((PACKAGE / "core").rglob("*.py"))]
    code = f"""
import importlib, sys
for module in {modules}:
    importlib.import_module(module)
loaded = {{module.split(".")[0] for module in sys.modules}}
heavy = {{"torch", "nvtabular", "merlin", "dask", "transformers", "tritonclient", "numba"}}
assert not loaded & heavy, loaded & heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def dangers(module: ast.Module, file: Path) -> list[str]:
    """Uses of what can run code that stands in data."""
    found = []
    for imported, node in imports(module, file):
        if imported.split(".")[0] in RUNS_CODE or imported in LOADERS:
            found.append(f"line {node.lineno}: import {imported}")
    for call in (node for node in ast.walk(module) if isinstance(node, ast.Call)):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        called = dotted(call.func)
        if (
            called in RUNNING_CALLS | LOADERS
            or called.endswith((".read_pickle", ".to_pickle"))
            or (called in ("np.load", "numpy.load") and given.get("allow_pickle") != "False")
            or given.get("allow_pickle", "False") != "False"
            or given.get("weights_only", "True") != "True"
            or given.get("trust_remote_code", "False") != "False"
        ):
            found.append(f"line {call.lineno}: {ast.unparse(call)}")
    return found


@pytest.mark.parametrize("file", SOURCES, ids=name)
def test_no_file_uses_what_can_run_code_from_data(file: Path) -> None:
    assert dangers(tree(file), file) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import cloudpickle as c",
        "import importlib; importlib.import_module('dill')",
        "from torch import load",
        "torch.load(path, weights_only=True)",
        "frame.to_pickle(path)",
        "eval('1')",
        "exec(code)",
        "yaml.load(text, yaml.SafeLoader)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.save(path, array, allow_pickle=True)",
        "pd.read_pickle(path)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_scan_sees_what_it_looks_for(source: str) -> None:
    assert dangers(ast.parse(source), PACKAGE / "imagined.py")


@pytest.mark.parametrize(
    "source",
    ["model.eval()", "re.compile('x')", "np.load(path, allow_pickle=False)", "yaml.safe_load(x)"],
)
def test_the_scan_lets_pass_what_is_safe(source: str) -> None:
    assert dangers(ast.parse(source), PACKAGE / "imagined.py") == []


def test_torch_jit_stands_in_three_files() -> None:
    # two make programs; the third is the backend that reads them, inside Triton
    using = {
        name(file)
        for file in SOURCES
        for node in ast.walk(tree(file))
        if isinstance(node, ast.Attribute)
        and dotted(node).startswith("torch.jit.")
        and not dotted(node).endswith("ScriptModule")  # a type in an annotation
    }
    assert using <= {
        "pipeline/exporting/topk.py",
        "pipeline/exporting/torchscript.py",
        "pipeline/serve/triton/backends/pytorch/model.py",
    }

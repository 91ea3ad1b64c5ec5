"""Import table, import cycles, and code that could run what an artifact holds."""

import ast
import graphlib
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
    "sizing": {"core"},
    "recipe": {"core"},
    "data": {"core", "recipe", "serve.runtime"},
    "logs": {"core", "recipe", "data", "serve.runtime"},
    "preprocessing": {"core", "recipe", "data", "logs", "reports", "serve.runtime"},
    "model": {"core", "recipe", "data"},
    "evaluation": {"core", "recipe", "data", "logs", "model", "reports"},
    "training": {"core", "recipe", "data", "logs", "model", "reports", "evaluation"},
    "exporting": {"core", "recipe", "data", "model"},
    "updating": {
        "core",
        "recipe",
        "data",
        "logs",
        "preprocessing",
        "model",
        "evaluation",
        "training",
        "exporting",
    },
    "serve": {"core", "recipe", "data", "logs", "serve.runtime"},
    "monitoring": {
        "core",
        "recipe",
        "data",
        "logs",
        "preprocessing",
        "evaluation",
        "reports",
        "serve",
    },
    "compat": {"core", "recipe", "data", "model", "evaluation", "training"},
}
COMMANDS = {"api", "cli", "in_process", "plugins"}
"""They may use every package, inside a function; no package uses them."""
BY_ITSELF = [
    *(PACKAGE / "serve" / "runtime").rglob("*.py"),
    *(PACKAGE / "serve" / "triton" / "backends").rglob("*.py"),
    *(ROOT / "triton_models").rglob("*.py"),
    PACKAGE / "core" / "allocator.py",
    PACKAGE / "core" / "program_check.py",
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
            for argument in child.args[:1]:
                if isinstance(argument, ast.Constant):
                    yield str(argument.value), child


def dotted(node: ast.AST) -> str:
    """Dotted name of an attribute such as `torch.jit.load`; "" for other expressions."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else f".{node.attr}"
    return ""


def of_ours(file: Path) -> set[str]:
    """Packages of this project that a file imports."""
    packages = set()
    for module, _ in imports(tree(file), file):
        if module.split(".")[0] == "pipeline" and module != "pipeline.__version__":
            is_runtime = module.startswith("pipeline.serve.runtime")  # imports nothing of ours
            packages.add("serve.runtime" if is_runtime else module.split(".")[1])
    return packages


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_what_the_table_allows(package: str) -> None:
    files = sorted((PACKAGE / package).rglob("*.py"))
    assert files
    wrong = {name(f): of_ours(f) - MAY_IMPORT[package] - {package} for f in files}
    assert {file: packages for file, packages in wrong.items() if packages} == {}


def test_nothing_imports_the_names_of_the_original() -> None:
    others = [file for file in SOURCES if (PACKAGE / "compat") not in file.parents]
    assert [name(file) for file in others if "compat" in of_ours(file)] == []


def test_table_names_every_package() -> None:
    parts = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert parts - {"__pycache__", "__init__", "__main__"} == set(MAY_IMPORT) | COMMANDS


def import_graph() -> dict[str, set[str]]:
    """Modules of the package with the modules of the package that each imports, anywhere in it."""
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in PACKAGE.rglob("*.py")
        if file != PACKAGE / "__init__.py"  # imports the public names at first use
    }
    graph = {}
    for module, file in files.items():
        names = {name for name, _ in imports(tree(file), file)}
        targets = {n if n in files else n.rpartition(".")[0] for n in names}
        graph[module] = {target for target in targets if target in files} - {module}
    return graph


def test_imports_have_no_cycle() -> None:
    sorter = graphlib.TopologicalSorter(import_graph())
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("file", BY_ITSELF, ids=name)
def test_code_inside_triton_imports_nothing_of_the_project(file: Path) -> None:
    folder = PACKAGE / "serve" / "runtime"  # copied as a whole
    folder = folder if folder in file.parents else file.parent
    beside_it = ".".join(folder.relative_to(ROOT).parts) + "."
    modules = {module for module, _ in imports(tree(file), file)}
    assert [m for m in modules if m.startswith("pipeline.") and not m.startswith(beside_it)] == []


@pytest.mark.parametrize("file", sorted((PACKAGE / "serve" / "runtime").glob("*.py")), ids=name)
def test_request_runtime_imports_standard_library_and_numpy(file: Path) -> None:
    modules = {module.split(".")[0] for module, _ in imports(tree(file), file)}
    of_itself = {"pipeline"}  # as `from .encoder` is seen here; see the test above
    assert modules <= {"numpy", *of_itself, *sys.stdlib_module_names}


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


def unexplained_lengths(source: str) -> list[str]:
    """Functions of more than 60 lines that have no comment `# Long: ...` above them."""
    lines = source.splitlines()
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= 60
        and not lines[min([node, *node.decorator_list], key=lambda n: n.lineno).lineno - 2]
        .strip()
        .startswith("# Long:")
    ]


@pytest.mark.parametrize("file", SOURCES, ids=name)
def test_functions_above_60_lines_say_why(file: Path) -> None:
    assert unexplained_lengths(file.read_text(encoding="utf-8")) == []


def test_length_scan_reports_functions_without_a_reason() -> None:
    source = "def first():\n" + "    pass\n" * 60
    assert unexplained_lengths(source) == ["first"]
    assert unexplained_lengths("# Long: a table.\n" + source) == []


def dangers(module: ast.Module, file: Path) -> list[str]:
    """Calls and imports that can run code held in data, with their lines."""
    uses = []
    for imported, node in imports(module, file):
        if imported.split(".")[0] in RUNS_CODE or imported in LOADERS:
            uses.append(f"line {node.lineno}: import {imported}")
    for call in (node for node in ast.walk(module) if isinstance(node, ast.Call)):
        argument = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        called = dotted(call.func)
        if (
            called in RUNNING_CALLS | LOADERS
            or called.endswith((".read_pickle", ".to_pickle"))
            or (called in ("np.load", "numpy.load") and argument.get("allow_pickle") != "False")
            or argument.get("allow_pickle", "False") != "False"
            or argument.get("weights_only", "True") != "True"
            or argument.get("trust_remote_code", "False") != "False"
        ):
            uses.append(f"line {call.lineno}: {ast.unparse(call)}")
    return uses


@pytest.mark.parametrize("file", SOURCES, ids=name)
def test_no_module_can_run_code_from_data(file: Path) -> None:
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
def test_scan_reports_dangerous_code(source: str) -> None:
    assert dangers(ast.parse(source), PACKAGE / "imagined.py")


@pytest.mark.parametrize(
    "source",
    ["model.eval()", "re.compile('x')", "np.load(path, allow_pickle=False)", "yaml.safe_load(x)"],
)
def test_scan_passes_safe_code(source: str) -> None:
    assert dangers(ast.parse(source), PACKAGE / "imagined.py") == []


def test_torch_jit_appears_in_exporting_the_program_and_the_backend() -> None:
    # three make programs; the fourth is the backend that reads them, inside Triton
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
        "pipeline/model/program.py",
        "pipeline/serve/triton/backends/pytorch/model.py",
    }

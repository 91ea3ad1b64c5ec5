"""Programs, recipes and tables of the pages in docs/, run or compared with the code."""

import ast
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import typer
import yaml

from pipeline import compat
from pipeline import model as tr
from pipeline.cli.main import app
from pipeline.core.errors import ConfigError
from pipeline.recipe import choices as names
from pipeline.recipe.counting import COUNTING
from pipeline.recipe.recipe import Recipe
from tests.conftest import ROOT, Shop

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md")) + [ROOT / name for name in ("README.md", "SECURITY.md")]

MADE_WITH_THE_SITE = re.compile(
    r"reference/(recipe|command-line|[\w-]+-api)\.md$|examples/\w+\.md$"
)
"""Links to pages that docs/hooks makes from the code; the build of the site checks these."""


def text_of(page: str) -> str:
    """Text of a page below docs/."""
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    fenced = re.findall(rf"^( *)```{language}\n(.*?)^ *```", page, flags=re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for _, block in fenced]


def run(code: str, namespace: dict[str, object]) -> dict[str, object]:
    exec(compile(code, "docs", "exec"), namespace)  # noqa: S102
    return namespace


def test_first_program_of_building_blocks_runs(shop: Shop) -> None:
    programs = blocks(text_of("how-to/build-a-model.md"), "python")
    program = programs[0].replace("data/shop", str(shop.data))
    model = run(program, {})["model"]
    assert isinstance(model, tr.Model)
    features = {
        name: torch.zeros(1, 2, dtype=torch.int64)
        if name in model.inputs.tables
        else torch.zeros(1, 2)
        for name in model.inputs.feature_names
    }
    features["item_id"] += 5
    session_batch = tr.SessionBatch(features, torch.tensor([2]))
    namespace = {"model": model.eval(), "batch": session_batch, "blocked": None, "allowed": None}
    (prediction,) = (p for p in programs if "top_k" in p)
    result = run(prediction, namespace)
    assert result["best"].items.shape == (1, 20)  # type: ignore[attr-defined]


def test_recipes_of_the_pages_are_valid() -> None:
    recipes = 0
    for page in PAGES:
        for text in blocks(page.read_text(encoding="utf-8"), "yaml"):
            values = yaml.safe_load(text)
            if isinstance(values, dict) and values.keys() <= {"preprocess", "model", "train"}:
                Recipe.from_dict(values, str(page))
                recipes += 1
    assert recipes >= 13


def test_table_of_architectures_equals_the_code() -> None:
    page = text_of("reference/architectures.md")
    rows = re.findall(r"^\| (`.*)\|$", page, flags=re.MULTILINE)
    table = {}
    for row in rows:
        cells = [cell.strip() for cell in row.split("|")]
        if len(cells) == 6:
            result = [m for m, cell in zip(("clm", "mlm", "plm", "rtd"), cells[1:5]) if cell]  # noqa: B905
            for name in re.findall(r"`([a-z0-9]+)`", cells[0]):
                table[name] = tuple(result)
    assert table == names.ARCHITECTURES


def test_every_option_of_a_counting_model_is_in_the_table() -> None:
    page = text_of("reference/counting-models.md")
    rows = {row.split("`")[1]: row for row in re.findall(r"^\| `.*\|$", page, re.MULTILINE)}
    assert list(rows) == list(COUNTING)
    for name, options in COUNTING.items():
        assert [n for n in options.model_fields if f"`{n}" not in rows[name]] == [], name


def test_block_of_the_page_on_leaks_is_refused() -> None:
    (program,) = blocks(text_of("concepts/masking-and-leaks.md"), "python")
    (message,) = re.findall(r"# ConfigError: (.*), \.\.\.", program)
    with pytest.raises(ConfigError, match=message):
        run(program, {})


def test_every_loss_is_explained() -> None:
    page = text_of("concepts/losses.md")
    for loss in (*names.FULL_LOSSES, *names.SAMPLED_LOSSES, *names.NEGATIVES):
        assert f"`{loss}`" in page


def test_plugins_of_the_page_work_in_a_recipe(tmp_path: Path) -> None:
    (program,) = blocks(text_of("how-to/plugins.md"), "python")
    (tmp_path / "own.py").write_text(program, encoding="utf-8")
    (tmp_path / "check.py").write_text(PLUGIN_CHECK, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "check.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


PLUGIN_CHECK = """
from pathlib import Path

import torch

from pipeline import model as tr
from pipeline.cli.main import app
from pipeline.core.errors import ConfigError
from pipeline.evaluation.metrics import gains
from pipeline.model.build import build_model
from pipeline.plugins import load_plugins
from pipeline.recipe.recipe import Recipe

torch.manual_seed(0)  # a hinge loss of other weights may be 0
load_plugins(Path("own.py"))
recipe = Recipe.from_dict(
    {
        "model": {"architecture": "average", "d_model": 8, "item_vectors": "random"},
        "train": {"loss": "hinge", "num_negatives": 5, "metric": "first@3"},
    },
    "test",
)
item = tr.ColumnSchema.create_categorical("item_id", 17, tags=["item_id"])
model = build_model(tr.Schema((item,)), recipe.model, 6, recipe.train).eval()
items = torch.tensor([[4, 5, 6, 7], [8, 9, 0, 0]])
loss = model.loss(tr.SessionBatch({"item_id": items}, torch.tensor([4, 2])))
loss.backward()
assert float(loss.detach()) > 0
scores = model(tr.SessionBatch({"item_id": items}, torch.tensor([4, 2])))
alone = model(tr.SessionBatch({"item_id": items[1:, :2]}, torch.tensor([2])))
assert torch.allclose(scores[1], alone[0], atol=1e-6)
assert gains(torch.tensor([1, 2]).numpy(), (3,))["first@3"].tolist() == [1, 0]
"""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_page_has_at_most_1200_words(page: Path) -> None:
    limit = 1_300 if page.name == "README.md" else 1_200
    assert len(page.read_text(encoding="utf-8").split()) <= limit


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_and_links_of_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    package = compat if "transformers4rec" in page.stem else tr
    for name in set(re.findall(r"\btr\.(\w+)", text)):
        assert hasattr(package, name), name
    for link in re.findall(r"\]\((?!http|\.\./\.\./actions/)([^)#]+)", text):
        assert (page.parent / link).exists() or MADE_WITH_THE_SITE.search(link), link


def test_tests_that_the_pages_name_exist() -> None:
    files = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    names = {name for text in files for name in re.findall(r"^def (test_\w+)", text, re.MULTILINE)}
    named = {
        name
        for page in PAGES
        for name in re.findall(r"[` ](test_\w+)\b(?!\.py)", page.read_text(encoding="utf-8"))
    }
    assert len(named) > 15
    assert named - names == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_programs_of_a_page_are_python(page: Path) -> None:
    for code in blocks(page.read_text(encoding="utf-8"), "python"):
        compile(code, str(page), "exec")


def commands_of(text: str) -> list[list[str]]:
    """Calls of `pipeline` in the shell lines of a page, as words."""
    calls = []
    for block in blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if "pipeline" not in line:
                continue
            words = shlex.split(line, comments=True)
            for program in (["pipeline"], ["-m", "pipeline"]):
                for at in range(len(words)):
                    if words[at : at + len(program)] == program and words[at + len(program) :]:
                        calls.append(words[at + len(program) :])
                        break
    return calls


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_command_lines_of_a_page_parse(page: Path) -> None:
    root = typer.main.get_command(app)
    for name, *arguments in commands_of(page.read_text(encoding="utf-8")):
        if name.startswith("-") or "..." in arguments:
            continue
        command = root.commands[name]  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            name, *arguments = arguments
            command = command.commands[name]
        ends = [at for at, word in enumerate(arguments) if word in ("|", ">", ">>", "&&", "&")]
        command.make_context(name, arguments[: min(ends, default=None)], resilient_parsing=False)


def test_programs_of_the_filters_page_run(shop: Shop) -> None:
    _, category, quota = blocks(text_of("how-to/filters.md"), "python")
    namespace = run(category.replace("runs/shop", str(shop.run)), {})
    items = namespace["answer"].items[0].tolist()  # type: ignore[attr-defined]
    assert len(items) == 5
    assert set(items) <= set(namespace["allowed"])  # type: ignore[call-overload]
    run(quota, namespace)
    group_of, best = namespace["group_of"], namespace["best"]
    assert len(best) == 5  # type: ignore[arg-type]
    groups = [group_of[item] for item in best]  # type: ignore[index,attr-defined]
    assert max(map(groups.count, groups)) <= 2
    first_five = namespace["answer"].items[0, :5].tolist()  # type: ignore[attr-defined]
    assert best != first_five, "the quota changes nothing here"


def literals_of_the_code() -> list[str]:
    """Texts of the code's string literals, without the values in them."""
    texts = []
    for file in (ROOT / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "\0" for v in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"%[a-z]", "\0", node.value))
    return texts


def is_message(text: str, literals: list[str]) -> bool:
    """Whether a literal has the parts between the `...` of a message, in their order."""
    pattern = re.compile("[\\s\\S]+".join(map(re.escape, text.strip(".").split("..."))))
    return any(pattern.search(literal) for literal in literals)


def test_messages_of_the_troubleshooting_page_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", text_of("how-to/troubleshooting.md"), re.MULTILINE)
    literals = literals_of_the_code()
    assert len(rows) >= 25
    assert [message for message in rows if not is_message(message, literals)] == []
    assert not is_message("... has no column by the name of ...", literals)

"""Hooks of MkDocs: pages that are made from the code, and links out of docs/ to the repository."""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))

from api_reference import api_page, packages
from command_reference import command_page
from figures import figures_of_small_log
from gallery import example_page, notebook, programs
from recipe_reference import recipe_page

ROOT = Path(__file__).parents[2]
_OUTSIDE = re.compile(r"\[([^]]*)]\(((?:\.\./)+)([^)#]*)(?:#[^)]*)?\)")
"""Link from a page to a file of the repository that is no page."""


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the pages that are made from the code, and make the figures anew."""
    pages = {"recipe.md": recipe_page(), "command-line.md": command_page()}
    pages |= {package.page: api_page(package) for package in packages()}
    for name, content in pages.items():
        files.append(File.generated(config, f"reference/{name}", content=content))
    for program in programs():
        name = f"examples/{program.stem}"
        files.append(File.generated(config, f"{name}.md", content=example_page(program)))
        files.append(File.generated(config, f"{name}.ipynb", content=notebook(program)))
    for name, content in figures_of_small_log().items():
        if (committed := files.get_file_from_path(f"figures/{name}")) is not None:
            files.remove(committed)
        files.append(File.generated(config, f"figures/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Point links out of docs/ to the repository, or leave their text alone without an address."""
    depth = len(Path(page.file.src_uri).parent.parts)

    def linked(match: re.Match[str]) -> str:
        text, ups, target = match.groups()
        if ups.count("../") <= depth:  # another page
            return match[0]
        if not (ROOT / target).exists():
            raise FileNotFoundError(f"{page.file.src_uri} links {target}, which does not exist")
        return f"[{text}]({config.repo_url}/blob/main/{target})" if config.repo_url else text

    return _OUTSIDE.sub(linked, markdown)

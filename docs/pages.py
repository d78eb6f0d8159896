"""Adds pages from elsewhere in the repository to the site, and a reference made of docstrings.

A hook of MkDocs. Links in the pages are written for the repository. Here, links to pages of the
site are rewritten, and links to other files are replaced by their text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation, Section
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""File of the repository -> page of the site; `_elsewhere` adds more."""
REFERENCE = "reference"
_LINK = re.compile(r"(?P<words>!?\[[^\]]*\])\((?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")


def _elsewhere() -> dict[str, str]:
    """All files of the repository outside docs/ that are pages of the site."""
    pages = dict(ELSEWHERE)
    for file in sorted((ROOT / "clusters").rglob("*.md")):
        place = file.relative_to(ROOT).as_posix()
        pages[place] = re.sub(r"README\.md$", "index.md", place)
    for file in sorted((ROOT / "muva").rglob("*.md")):
        place = file.relative_to(ROOT)
        name = "-".join(part.lower() for part in (*place.parent.parts[1:], place.stem))
        pages[place.as_posix()] = f"notes/{name.removesuffix('-readme')}.md"
    return pages


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds these files and the reference to the site."""
    for source, page in _elsewhere().items():
        files.append(
            File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8"))
        )
    for package, modules in _packages().items():
        blocks = "\n\n".join(f"::: {module}" for module in modules)
        content = f"# {package}\n\n{blocks}\n"
        files.append(File.generated(config, f"{REFERENCE}/{package}.md", content=content))
    return files


def on_nav(nav: Navigation, *, config: MkDocsConfig, files: Files) -> Navigation:
    """Appends the notes and the reference to the pages that mkdocs.yml names."""
    named = {page.file.src_uri for page in nav.pages}
    for title, folder in (("Notes", "notes/"), ("Reference", REFERENCE)):
        pages = [
            Page(None, file, config)
            for file in files.documentation_pages()
            if file.src_uri.startswith(folder) and file.src_uri not in named
        ]
        if pages:
            nav.items.append(Section(title, pages))
            nav.pages.extend(pages)
    return nav


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites the links of a page to the places of their targets in the site."""
    pages = _elsewhere()
    origin = {there: source for source, there in pages.items()}
    here = origin.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def turned(link: re.Match[str]) -> Any:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), link["path"]))
        place = pages.get(target)
        if place is None and target.startswith("docs/"):
            place = target.removeprefix("docs/")
        if place is None:
            return link["words"].lstrip("!").strip("[]")
        start = posixpath.dirname(page.file.src_uri) or "."
        return f"{link['words']}({posixpath.relpath(place, start)}{link['anchor'] or ''})"

    return _LINK.sub(turned, markdown)


def _packages() -> dict[str, list[str]]:
    """Packages of the library -> their modules with public contents."""
    packages: dict[str, list[str]] = {}
    for file in sorted((ROOT / "muva").rglob("*.py")):
        module = file.relative_to(ROOT).with_suffix("")
        if file.name == "__init__.py" or any(part.startswith("_") for part in module.parts):
            continue
        package = ".".join(module.parts[:2]) if len(module.parts) > 2 else "muva"
        packages.setdefault(package, []).append(".".join(module.parts))
    return packages

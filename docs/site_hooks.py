"""Hooks of mkdocs: the site has the documents of the whole repository, and links between them lead to their pages.

A link to what is no page of the site, such as a folder, becomes plain text. The documents are written for the
repository; nothing in them is for the site only.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
OTHERS = {  # documents outside of docs/, by their path, and their pages
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "vulnerabilities.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
    "examples/README.md": "examples/index.md",
} | {str(path.relative_to(ROOT)): f"examples/{path.parent.name}.md" for path in ROOT.glob("examples/*/README.md")}

_LINK = re.compile(r"(?<!`)(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_CODE = re.compile(r"`[^`\n]+`")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the documents that lie elsewhere."""
    for source, page in OTHERS.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """The text with the links of the site; in code within tables without the backslashes that GitHub needs."""
    here = page.file.src_uri
    source = next((path for path, other in OTHERS.items() if other == here), f"docs/{here}")
    lines = []
    fenced = False
    for line in markdown.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        if fenced:
            lines.append(line)
            continue
        if line.startswith("|"):
            line = _CODE.sub(lambda code: code[0].replace("\\|", "|"), line)  # noqa: PLW2901
        lines.append(_LINK.sub(lambda link: _link(link, source, here), line))
    return "\n".join(lines)


def _link(link: re.Match[str], source: str, here: str) -> str:
    image, text, target = link.groups()
    path, _, anchor = target.partition("#")
    there = normpath(join(dirname(source), path))
    if "://" in target or not path or not (ROOT / there).exists():  # mkdocs says that it leads nowhere
        return link[0]
    found = _page(there)
    if found is None:
        return text
    return f"{image}[{text}]({relpath(found, dirname(here) or '.')}{f'#{anchor}' if anchor else ''})"


def _page(path: str) -> str | None:
    """The page, or the file of the site, that shows a file or a folder of the repository."""
    for one in (path, f"{path}/README.md"):
        if one in OTHERS:
            return OTHERS[one]
    inside = path.removeprefix("docs/")
    return inside if inside != path and (ROOT / path).is_file() else None

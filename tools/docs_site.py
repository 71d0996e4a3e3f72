"""Makes one site of README and docs/: `mkdocs build` calls these hooks.

The README is the front page. What pages link to outside docs/, such as model cards, pictures and source
files, comes along at its place in the repository.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()(?!\w+:|#|/)([^)#\s]+)")  # a relative address of [text](address#part)
LIVE = "live/lamp.html"  # made by `make docs`


def address(path: str) -> str:
    """Where a file of the repository lies on the site."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def linked(path: str, markdown: str) -> dict[str, str]:
    """Relative links of a page of the repository -> the files of the repository that they lead to."""
    folder = posixpath.dirname(path)
    found = {link: posixpath.normpath(posixpath.join(folder, link)) for _, link in LINK.findall(markdown)}
    return {link: target for link, target in found.items() if (ROOT / target).is_file()}


def on_files(files: Any, config: Any) -> Any:
    """Add the README and all that is linked, page by page."""
    from mkdocs.structure.files import File

    known = {f"docs/{file.src_uri}" for file in files}
    waiting = ["README.md", *(path for path in known if path.endswith(".md"))]
    while waiting:
        path = waiting.pop()
        if path not in known:
            known.add(path)
            files.append(File.generated(config, address(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            waiting += set(linked(path, (ROOT / path).read_text("utf-8")).values()) - known
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links to where the files lie on the site."""
    path = os.path.relpath(page.file.abs_src_path, ROOT).replace(os.sep, "/")
    targets = linked(path, markdown)
    folder = posixpath.dirname(address(path))

    def moved(match: re.Match[str]) -> str:
        target = targets.get(match[2])
        return match[1] + (posixpath.relpath(address(target), folder or ".") if target else match[2])

    markdown = LINK.sub(moved, markdown)
    if path == "README.md" and (ROOT / "docs" / LIVE).is_file():
        markdown = markdown.replace("## Models", f"[Turn the lamp]({LIVE})\n\n## Models", 1)
    return markdown

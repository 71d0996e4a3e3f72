"""The documentation builds without a warning, its links lead somewhere, nothing comes from elsewhere."""

import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
from stand_ins.infer_command import ROOT

from tools import docs_site


class Links(HTMLParser):
    """What a page leads to (`a`), and what a browser loads to show it (all else)."""

    def __init__(self, page):
        super().__init__()
        self.to, self.loaded, self.names = [], [], set()
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.names |= {values["id"]} if "id" in values else set()
        for name in ("href", "src"):
            if name in values:
                (self.to if tag == "a" else self.loaded).append(values[name])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: the extra 'docs'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_has_every_page_and_its_links_lead_somewhere(site):
    pages = {page: Links(page) for page in site.rglob("*.html") if "live" not in page.parts}
    names = {page.relative_to(site).as_posix() for page in pages}
    assert {"index.html", *(f"{p.stem}.html" for p in (ROOT / "docs").glob("*.md"))} <= names
    assert "dd3g/weights/nano/MODEL_CARD.html" in names
    assert (site / "assets/turntable.webp").read_bytes() == (ROOT / "assets/turntable.webp").read_bytes()
    for page, links in pages.items():
        for link in links.to + links.loaded:
            parts = urlsplit(link)
            if parts.scheme or page.name == "404.html":
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            assert target.exists(), f"{page.name} leads to {link}"
            if parts.fragment and target in pages and not parts.fragment.startswith("__"):
                assert parts.fragment in pages[target].names, f"{page.name} leads to {link}"


@pytest.mark.slow
def test_nothing_of_the_site_comes_from_elsewhere(site):
    for page in site.rglob("*.html"):
        assert [link for link in Links(page).loaded if re.match(r"(https?:)?//", link)] == []
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style.read_text("utf-8", "replace"))


def test_links_of_readme_and_docs_lead_to_files():
    """Also where mkdocs is not installed."""
    link = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
    pages = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        *ROOT.glob("*/README.md"),
    ]
    for page in pages:
        for target in link.findall(page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} leads to {target}"


def test_the_front_page_leads_to_an_object_to_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(docs_site, "ROOT", tmp_path)
    page = SimpleNamespace(file=SimpleNamespace(abs_src_path=str(tmp_path / "README.md")))

    def front():
        return docs_site.on_page_markdown("dd3g\n\n## Models\n", page, None, None)

    assert "live" not in front()
    (tmp_path / "docs/live").mkdir(parents=True)
    (tmp_path / "docs/live/lamp.html").touch()
    assert "[Turn the lamp](live/lamp.html)\n\n## Models" in front()

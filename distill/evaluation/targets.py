"""The objects of an evaluation: renders in one or more sizes, or meshes that are rendered now."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from dd3g.errors import UserError
from distill.evaluation.predictors import Target
from distill.evaluation.scores import FINE_INPUT, FINE_VIEWS
from distill.renders import RenderedObjects


class Targets(Sequence[Target]):
    """Plain variants of the rendered objects, decoded when they are asked for.

    Args:
        sources: folders of shards of the same objects and views, one a size; the smallest is the protocol's.
        limit: only the first objects; 0 for all.

    Raises:
        UserError: there is no plain variant, or the folders don't hold the same views.
    """

    def __init__(self, sources: Sequence[Path], limit: int = 0) -> None:
        found = {source: RenderedObjects(source) for source in sources}
        metas = {source: [o.meta(i) for i in range(len(o))] for source, o in found.items()}
        order = sorted(sources, key=lambda source: metas[source][0]["size"])
        self._renders = [found[source] for source in order]
        plain = [[i for i, m in enumerate(metas[s]) if m.get("variant", 0) == 0] for s in order]
        if not plain[0]:
            raise UserError(
                "there is no plain variant (variant 0) among these renders: render them with --eval"
            )
        base = [_views(metas[order[0]][i]) for i in plain[0]]
        for source, chosen in zip(order[1:], plain[1:], strict=True):
            if metas[source][0]["size"] == metas[order[0]][0]["size"]:
                raise UserError(f"{source} and {order[0]} have one size: give each size once")
            if [_views(metas[source][i]) for i in chosen] != base:
                raise UserError(
                    f"{source} does not hold the objects and views of {order[0]}: render both from the same "
                    "meshes, with the same options but for --size"
                )
        self._indices = list(zip(*plain, strict=True))[: limit or None]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Target:  # type: ignore[override]
        pairs = zip(self._renders, self._indices[index], strict=True)
        return Target.of(*(renders[i] for renders, i in pairs))


def _views(meta: dict) -> tuple:
    """What must agree between two sizes of an object."""
    return meta.get("id"), meta.get("azimuth"), meta.get("elevation"), meta.get("quads"), meta.get("novel")


@contextmanager
def opened(source: Path | Sequence[Path], size: int, limit: int) -> Iterator[tuple[Targets, dict[str, str]]]:
    """Renders as they are, or meshes rendered now with the evaluation views at `size`, 128 and 256 pixels.

    Args:
        source: a folder of meshes; or folders of renders, one a size.
        size: pixels a side of the protocol, for meshes.
        limit: only the first objects; 0 for all.

    Yields:
        targets, and reasons of the meshes that could not be drawn by key.
    """
    sources = [source] if isinstance(source, Path) else list(source)
    rendered = [next(s.glob("*.tar"), None) is not None or s.suffix == ".tar" for s in sources]
    if all(rendered):
        yield Targets(sources, limit), {}
        return
    if len(sources) > 1:
        raise UserError(
            f"{sources[rendered.index(False)]} holds no renders: give one folder of meshes, or folders of "
            "renders only, one a size"
        )
    with tempfile.TemporaryDirectory() as folder:
        sizes = sorted({size, *(fine for fine in (FINE_VIEWS, FINE_INPUT) if fine > size)})
        folders = [Path(folder) / str(s) for s in sizes]
        for s, place in zip(sizes, folders, strict=True):
            failed = _render(sources[0], place, s, limit)
        yield Targets(folders), failed


def _render(source: Path, output: Path, size: int, limit: int) -> dict[str, str]:
    # A stage of its own: it hands over files, and this package knows nothing of meshes.
    command = [sys.executable, "-m", "data_gen", "render", str(source), "-o", str(output), "--eval", "--json"]
    command += ["--size", str(size), "--limit", str(limit), "--processes", "1"]
    with Console(stderr=True).status(f"rendering the meshes at {size} pixels"):
        done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout:
        last = done.stderr.strip().rpartition("\n")[2].removeprefix("error: ")
        raise UserError(last or f"{source} was not rendered: the renderer was killed")
    return json.loads(done.stdout)["failed"]

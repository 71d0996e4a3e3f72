"""One HTML page that shows the object anywhere: no network, no installation."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from html import escape
from pathlib import Path

from dd3g.gaussians import Gaussians, framing
from dd3g.io.atomic import replacing
from dd3g.io.packed import SPZ_REACH
from dd3g.io.splats import encode


def save_viewer(
    gaussians: Gaussians, path: str | Path, title: str | None = None, antialiased: bool = True
) -> Path:
    """Write a self-contained page with the Gaussians inside: turn, move, zoom, spin, and download of a .ply.

    The page holds an .spz, and shows an object that lies elsewhere or is larger as if it were one of dd3g.
    It draws as `rasterize` does, with WebGL 2, or on a plain canvas where there is none or where that is
    quicker. It opens at the front view of the default rig; an address may end in
    `#azimuth=90&elevation=20&distance=2&x=0.1&y=0&z=0&spin=0&background=dark&draw=2d`.

    Args:
        gaussians: one object (no batch dimensions), any device.
        path: the .html file, which is returned.
        title: shown on the page; None takes the file's name.
        antialiased: as in `rasterize`.

    Raises:
        UserError: when no Gaussian is visible, or the place can't be written to.
    """
    path = Path(path)
    centre, size = framing(gaussians)
    if size != 1 or centre.any():
        place = -centre.to(gaussians.means)
        gaussians = gaussians.transformed(translation=place).transformed(scale=1 / size)
    # What no camera shows from where the object is seen; the page's format could not hold it.
    gaussians = gaussians.select((gaussians.means.abs() <= SPZ_REACH).all(-1))
    values = {
        "frame": json.dumps([*centre.tolist(), size]),
        "title": escape(path.stem if title is None else title),
        "name": escape(f"{path.stem}.ply"),
        "antialiased": str(antialiased).lower(),
        "splats": b64encode(encode(gaussians, "spz")).decode("ascii"),
    }
    template = Path(__file__).with_name("viewer.html").read_text("utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)
    with replacing(path) as partial:
        # File names may hold bytes that are not text; they become question marks.
        partial.write_bytes(page.encode("utf-8", "replace"))
    return path

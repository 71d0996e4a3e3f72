"""dd3g: one picture to 3D Gaussians in one forward pass."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dd3g.cameras import Cameras
    from dd3g.errors import UserError
    from dd3g.gaussians import Gaussians
    from dd3g.pepd import Generator
    from dd3g.picture import load_image
    from dd3g.rasterizer import rasterize

__version__ = "0.1.0"

# Libraries report their use unless this is set before they are imported; nothing leaves the machine unasked.
for _name in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
    os.environ.setdefault(_name, "1")
# Without a home, libraries would keep their caches in a folder called ~ wherever the user is.
if os.path.expanduser("~") == "~" and not os.environ.get("XDG_CACHE_HOME") and os.name == "posix":
    try:
        os.environ["XDG_CACHE_HOME"] = import_module("dd3g.homeless").cache_folder()
    except OSError:
        pass  # a place among temporary files would be no use either
__all__ = ["Cameras", "Gaussians", "Generator", "UserError", "load_image", "rasterize"]

_HOME = {
    "Cameras": "dd3g.cameras",
    "Gaussians": "dd3g.io.splats",  # with `save` and `load`
    "Generator": "dd3g.pepd",
    "UserError": "dd3g.errors",
    "load_image": "dd3g.picture",
    "rasterize": "dd3g.rasterizer",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: the command line answers `--help` and bad input without waiting for torch.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'dd3g' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})

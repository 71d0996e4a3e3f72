"""PEPD: pattern extraction and progressive decoding, the one-pass generator.

Noise, cameras and a picture come in, Gaussians go out. Read `Generator.forward` in `generator.py` first.
"""

from typing import TYPE_CHECKING, Any

from dd3g.pepd.config import GeneratorConfig

if TYPE_CHECKING:
    from dd3g.pepd.generator import Generator

__all__ = ["Generator", "GeneratorConfig"]


def __getattr__(name: str) -> Any:
    # Loaded on first use, as in `dd3g`: configurations are read without torch.
    if name == "Generator":
        from dd3g.pepd.generator import Generator

        return Generator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

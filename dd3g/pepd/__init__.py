"""PEPD: pattern extraction and progressive decoding, the one-pass generator.

Noise, cameras and a picture come in, Gaussians go out. Read `Generator.forward` in `generator.py` first.
"""

from dd3g.pepd.config import GeneratorConfig
from dd3g.pepd.generator import Generator

__all__ = ["Generator", "GeneratorConfig"]

"""PEPD: pattern extraction and progressive decoding, the one-pass generator."""

from dd3g.pepd.generator import Generator, GeneratorConfig

__all__ = ["Generator", "GeneratorConfig"]

"""Module name in pipelines that were saved before `picture_models` existed; they still load."""

from data_gen.picture_models.tiny import TinyDenoiser, TinyRgbaPipeline

__all__ = ["TinyDenoiser", "TinyRgbaPipeline"]

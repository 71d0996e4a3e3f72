"""Load the picture model that a configuration names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from data_gen.picture_models.protocol import SHAPES, ModelConfig, PictureModel

if TYPE_CHECKING:
    import torch


def load_model(config: ModelConfig, device: torch.device) -> PictureModel:
    """The model that `config` describes, ready to draw on a device.

    Raises:
        UserError: when it is not a text-to-image pipeline, lacks weights, cannot be had, or does not take a
            key that is set.
    """
    if config.path == SHAPES:
        from data_gen.picture_models.shapes import Shapes

        return Shapes.from_config(config)
    from data_gen.picture_models.pipelines import load_pipeline

    return load_pipeline(config, device)

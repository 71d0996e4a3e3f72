"""How the networks of the pose methods are kept: a folder with config.json and model.safetensors."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from dd3g.nn.checkpoint import build, load_weights, read_config, save_folder

WEIGHTS = Path(__file__).parents[2] / "weights"


class PoseNetwork(nn.Module):
    """A network that is made from a config and shipped as `WEIGHTS / kind`."""

    kind: ClassVar[str]
    config_class: ClassVar[type]
    config: Any

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = torch.float16) -> Path:
        """Write config.json and model.safetensors; half precision unless `dtype` says otherwise."""
        return save_folder(folder, self, {"kind": self.kind, **asdict(self.config)}, dtype)

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None) -> Self:
        """Read a folder that `save_pretrained` wrote; the shipped one by default.

        Raises:
            UserError: when it is missing, broken or of another kind.
        """
        folder = folder or WEIGHTS / cls.kind
        network = build(folder, read_config(folder, cls.kind), cls.config_class, cls)
        load_weights(folder, network)
        return network.eval()

    @classmethod
    @cache
    def shipped(cls) -> Self:
        """The shipped network, read once; do not change it."""
        return cls.from_pretrained()

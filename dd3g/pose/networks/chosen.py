"""Which networks the methods run: those that ship, or others of the same kinds from folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from dd3g.errors import UserError
from dd3g.nn.checkpoint import read_config
from dd3g.pose.networks.difficulty import Difficulty
from dd3g.pose.networks.lifter import GraphLifter
from dd3g.pose.networks.pretrained import PoseNetwork
from dd3g.pose.networks.prior import Prior
from dd3g.pose.networks.rotation_denoiser import RotationDenoiser

Network = TypeVar("Network", bound=PoseNetwork)
KINDS: dict[str, type[PoseNetwork]] = {
    network.kind: network for network in (Prior, GraphLifter, Difficulty, RotationDenoiser)
}


class Networks:
    """Networks by their class: `networks[Prior]`.

    Args:
        folders: that `train-pose` or `pose convert` wrote, at most one of each kind; of all other kinds the
            shipped ones are taken.

    Raises:
        UserError: no folder of a pose network, a broken one, or two of one kind.
    """

    def __init__(self, folders: Sequence[str | Path] = ()) -> None:
        self.given: dict[type[PoseNetwork], PoseNetwork] = {}
        for folder in folders:
            kind = KINDS[read_config(folder, *KINDS)["kind"]]
            if kind in self.given:
                raise UserError(f"{folder} is a second {kind.kind}: give one")
            self.given[kind] = kind.from_pretrained(folder)

    def __getitem__(self, kind: type[Network]) -> Network:
        found = self.given.get(kind)
        return found if isinstance(found, kind) else kind.shipped()


SHIPPED = Networks()

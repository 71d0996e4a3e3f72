"""The methods by name, for `dd3g.pose.estimate` and the command: each is a file of this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.detection.people import Detection
from dd3g.pose.hypotheses import PersonHypotheses
from dd3g.pose.methods import guided, recovery, restoration
from dd3g.pose.networks.chosen import Networks
from dd3g.pose.networks.difficulty import Difficulty
from dd3g.pose.networks.lifter import GraphLifter
from dd3g.pose.networks.pretrained import PoseNetwork
from dd3g.pose.networks.prior import Prior
from dd3g.pose.networks.rotation_denoiser import RotationDenoiser


class Method(NamedTuple):
    """From 2D to 3D, everyone in one batch."""

    # Takes people in 2D, at least one, for a video one person in its frames; how many hypotheses a person;
    # the seed of all random numbers; seconds (B,) of a video's frames, rising, which are tied together, None
    # for pictures; and the networks to run. Raises UserError where these need what is not known of the people
    lift_people: Callable[[Sequence[Detection], int, int, Tensor | None, Networks], list[PersonHypotheses]]
    networks: tuple[type[PoseNetwork], ...]  # what it runs; `advice` adds the lifter and the prior


METHODS = {
    "guided": Method(guided.lift_people, (Prior,)),
    "restoration": Method(restoration.lift_people, (GraphLifter, Difficulty)),
    "recovery": Method(recovery.lift_people, (RotationDenoiser,)),
}


def load_networks(method: str, folders: Sequence[str | Path] = ()) -> Networks:
    """The networks of a method and of the advice, loaded now.

    Raises:
        UserError: weights that are missing, broken or of no use to the method.
    """
    used: dict[type[PoseNetwork], None] = dict.fromkeys([*METHODS[method].networks, GraphLifter, Prior])
    networks = Networks(folders)
    for kind in networks.given:
        if kind not in used:
            names = ", ".join(network.kind for network in used)
            raise UserError(f"--weights of {kind.kind} are of no use to {method}, which runs {names}")
    for kind in used:
        networks[kind]
    return networks

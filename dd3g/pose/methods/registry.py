"""The methods by name, for `dd3g.pose.estimate` and the command: each is a file of this package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.detection.people import Detection
from dd3g.pose.hypotheses import PersonHypotheses
from dd3g.pose.methods import guided, recovery, restoration
from dd3g.pose.networks.chosen import Networks
from dd3g.pose.networks.lifter import GraphLifter
from dd3g.pose.networks.pretrained import PoseNetwork
from dd3g.pose.networks.prior import Prior


class Method(Protocol):
    """What the file of a method has."""

    @property
    def NETWORKS(self) -> Sequence[type[PoseNetwork]]:  # noqa: N802
        """What it runs; `advice` adds the lifter and the prior."""

    def lift_people(
        self,
        people: Sequence[Detection],
        m: int,
        seed: int,
        times: Tensor | None,
        networks: Networks,
    ) -> list[PersonHypotheses]:
        """2D to 3D, everyone in one batch.

        Args:
            people: in 2D, at least one; for a video, one person in its frames.
            m: hypotheses a person.
            seed: of all random numbers.
            times: (B,) seconds of the frames of a video, rising, which are tied together; None for pictures.
            networks: to run.

        Raises:
            UserError: networks that need what is not known of the people.
        """


METHODS: dict[str, Method] = {"guided": guided, "restoration": restoration, "recovery": recovery}


def load_networks(method: str, folders: Sequence[str | Path] = ()) -> Networks:
    """The networks of a method and of the advice, loaded now.

    Raises:
        UserError: weights that are missing, broken or of no use to the method.
    """
    used: dict[type[PoseNetwork], None] = dict.fromkeys([*METHODS[method].NETWORKS, GraphLifter, Prior])
    networks = Networks(folders)
    for kind in networks.given:
        if kind not in used:
            names = ", ".join(network.kind for network in used)
            raise UserError(f"--weights of {kind.kind} are of no use to {method}, which runs {names}")
    for kind in used:
        networks[kind]
    return networks

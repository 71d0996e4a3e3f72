"""The methods by name, for `dd3g.pose.estimate` and the command: each is a file of this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from dd3g.pose.detection.people import Detection
from dd3g.pose.hypotheses import PersonHypotheses
from dd3g.pose.methods import guided, recovery, restoration


class Method(Protocol):
    """What the file of a method has."""

    def load_networks(self) -> None:
        """Load the shipped networks now.

        Raises:
            UserError: when weights are missing.
        """

    def lift_people(
        self, people: Sequence[Detection], m: int, seed: int, times: Tensor | None
    ) -> list[PersonHypotheses]:
        """2D to 3D by the shipped networks, everyone in one batch.

        Args:
            people: in 2D, at least one; for a video, one person in its frames.
            m: hypotheses a person.
            seed: of all random numbers.
            times: (B,) seconds of the frames of a video, rising, which are tied together; None for pictures.
        """


METHODS: dict[str, Method] = {"guided": guided, "restoration": restoration, "recovery": recovery}

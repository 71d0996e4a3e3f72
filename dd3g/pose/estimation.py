"""The whole way from a picture to 3D hypotheses for each person in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.detection.keypoints import Keypoints
from dd3g.pose.detection.people import Detection, detect, load, stacked
from dd3g.pose.hypotheses import Hypotheses, PersonHypotheses
from dd3g.pose.methods import guided
from dd3g.pose.methods.advice import advise, agreed
from dd3g.pose.methods.registry import METHODS
from dd3g.pose.networks.chosen import SHIPPED, Networks
from dd3g.pose.networks.lifter import GraphLifter
from dd3g.pose.networks.prior import Prior
from dd3g.whole import whole, whole_seed

FARTHEST = 200.0  # metres at which a person is a few pixels high, or their keypoints are in other units


@torch.inference_mode(False)
def estimate(
    picture: str | Path | Image.Image | np.ndarray | None,
    method: str = "guided",
    m: int = 20,
    *,
    keypoints: Keypoints | None = None,
    focal: float | None = None,
    height: float | None = None,
    seed: int = 0,
    weights: Sequence[str | Path] = (),
) -> list[PersonHypotheses]:
    """3D hypotheses for each person in a picture.

    Args:
        picture: a file, a PIL picture or a uint8 array (H, W, 3 or 4); None with keypoints alone.
        method: one of `METHODS`.
        m: hypotheses a person.
        keypoints: of another detector, see `detection.reading.read_keypoints`; None runs BlazePose.
        focal: px; None looks at the keypoints' file, then at EXIF, then takes the picture's diagonal.
        height: metres, how tall the people are; None takes a grown person's.
        seed: of all random numbers; same picture, same seed, same answer.
        weights: folders of networks that take the place of shipped ones, see `Networks`.

    Returns:
        People, largest first for BlazePose, else in the file's order.

    Raises:
        UserError: a picture that cannot be read, nobody in it, missing weights, or an unknown method.
    """
    m, seed = whole(m, "m", 1), whole_seed(seed)
    image = None if picture is None else load(picture)
    name = f"{picture}" if isinstance(picture, str | Path) else "the picture"
    people = detect(image, keypoints, focal)
    if not people:
        raise UserError(f"no person was found in {name}: give a clearer picture, or --keypoints")
    return lift(people, method, m, seed, height=height, networks=Networks(weights))


def generate(n: int, *, seed: int = 0, **options: Any) -> Tensor:
    """Random poses (n, 17, 3), metres, root-relative, from the shipped prior; options of `sample_poses`."""
    return guided.generate(Prior.shipped(), whole(n, "n", 0), seed=whole_seed(seed), **options)


@torch.inference_mode(False)
def complete(
    joints: Tensor, known: Tensor, m: int = 20, *, K: Tensor | None = None, seed: int = 0, **options: Any
) -> Hypotheses:
    """Whole poses from any subset of joints by the shipped prior; see `dd3g.pose.methods.guided.complete`."""
    m, seed = whole(m, "m", 1), whole_seed(seed)
    # Guidance needs gradients, and tensors of inference mode know none: copies do.
    joints, known, K = joints.clone(), known.clone(), None if K is None else K.clone()
    return guided.complete(Prior.shipped(), joints, known, m, K=K, seed=seed, **options)


def lift(
    people: Sequence[Detection],
    method: str = "guided",
    m: int = 20,
    seed: int = 0,
    times: Tensor | None = None,
    height: float | None = None,
    networks: Networks = SHIPPED,
) -> list[PersonHypotheses]:
    """2D to 3D by one of `METHODS`, everyone in one batch, with the one answer to give.

    Arguments as for `registry.Method`, and `height` as for `estimate`.

    Raises:
        UserError: unknown method, weights that are missing, or a height that nobody has.
    """
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}: choose from {', '.join(METHODS)}")
    m, seed = whole(m, "m", 1), whole_seed(seed)
    if not people:
        return []
    given = [person.start is not None for person in people]
    if any(given) and not all(given):  # each as well as it can be told
        alike = {one: [p for p, g in zip(people, given, strict=True) if g == one] for one in (True, False)}
        parts = {one: iter(lift(p, method, m, seed, None, height, networks)) for one, p in alike.items()}
        return [next(parts[one]) for one in given]
    found = METHODS[method].lift_people(people, m, seed, times, networks)
    keypoints, confidence, K = (stacked(people, name) for name in ("keypoints", "confidence", "K"))
    width = torch.tensor([float(person.size[0]) for person in people])
    hypotheses = Hypotheses.joined([person.hypotheses for person in found])
    if all(given):
        advised = agreed(hypotheses, height)  # a regressor looked at the picture, the lifter does not
    else:
        advised = advise(
            hypotheses, keypoints, confidence, K, width, height=height, lifter=networks[GraphLifter],
            prior=networks[Prior],
        )  # fmt: skip
    answers = [replace(person, hypotheses=advised[i : i + 1]) for i, person in enumerate(found)]
    nearest = min(float(person.translation[2]) for person in answers)
    if nearest > FARTHEST:
        raise UserError(
            f"everyone would stand {nearest:,.0f} m away or farther: keypoints and K must be in pixels of "
            "the same picture"
        )
    return answers

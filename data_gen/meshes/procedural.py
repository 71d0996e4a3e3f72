"""Made-up household objects: random assemblies of simple solids, as signed distances on a grid.

They stand in for meshes where there are none; beside scans and game art they made nano no better (its card).
Lengths are such that objects reach about 1 from the centre; y is up, z the front, x = 0 the plane that most
are mirrored at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from dd3g.meshes.mesh import normalised
from dd3g.pepd.surface import surface_nets, surface_quads, unambiguous

Distance = NDArray[np.float32]  # (n, n, n) signed, negative inside, roughly in world units
REACH = 1.15  # half the side of the cube of the grid
SIDES = (-1, 1)


class Space:
    """Solids as distances at the points of a grid."""

    def __init__(self, resolution: int) -> None:
        axis = ((np.arange(resolution) + 0.5) / resolution * 2 - 1).astype(np.float32) * REACH
        self.points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)  # (n, n, n, 3)
        self.x, self.y, self.z = np.moveaxis(self.points, -1, 0)
        self.around = np.hypot(self.x, self.z)  # distance from the upright axis

    def ball(self, centre: ArrayLike, radii: ArrayLike) -> Distance:
        """An ellipsoid."""
        radii = np.asarray(radii, np.float32)
        offset = (self.points - np.asarray(centre, np.float32)) / radii
        return (np.linalg.norm(offset, axis=-1) - 1) * radii.min()

    def box(self, centre: ArrayLike, half: ArrayLike, rounding: float = 0.02) -> Distance:
        """A box of these half sides, with round edges."""
        inner = np.asarray(half, np.float32) - rounding
        offset = np.abs(self.points - np.asarray(centre, np.float32)) - inner
        return np.linalg.norm(offset.clip(0), axis=-1) + offset.max(-1).clip(max=0) - rounding

    def rod(self, start: ArrayLike, end: ArrayLike, radius: float, last: float | None = None) -> Distance:
        """A rod with round ends, whose radius goes from `radius` to `last`."""
        a, b = np.asarray(start, np.float32), np.asarray(end, np.float32)
        along = ((self.points - a) @ (b - a) / max(float((b - a) @ (b - a)), 1e-6)).clip(0, 1)
        thick = radius + ((radius if last is None else last) - radius) * along
        return np.linalg.norm(self.points - a - along[..., None] * (b - a), axis=-1) - thick

    def wire(self, places: Sequence[ArrayLike], radius: float) -> Distance:
        """Rods from each place to the next."""
        return np.minimum.reduce([self.rod(a, b, radius) for a, b in zip(places, places[1:], strict=False)])

    def turned(self, radii: NDArray, heights: NDArray, corners: float = 2.0) -> Distance:
        """A solid of revolution of these radii at these heights; `corners` above 2 makes it square."""
        from_axis = self.around
        if corners > 2:
            from_axis = (np.abs(self.x) ** corners + np.abs(self.z) ** corners) ** (1 / corners)
        beside = from_axis - np.interp(self.y, heights, radii)
        return 0.8 * np.maximum(beside, np.maximum(heights[0] - self.y, self.y - heights[-1]))


def melted(a: Distance, b: Distance, width: float) -> Distance:
    """The union of two solids, whose seam is rounded over this width (the polynomial smooth minimum)."""
    share = (0.5 + 0.5 * (b - a) / width).clip(0, 1)
    return b * (1 - share) + a * share - width * share * (1 - share)


def vessel(s: Space, rng: np.random.Generator) -> Distance:
    """Bottles, cups, vases, bowls: turned, half of them hollow, some with handle, saucer, spout or knob."""
    top = rng.uniform(0.25, 0.95)
    heights = np.linspace(-top, top, int(rng.integers(3, 9)))
    widest = rng.uniform(0.3, 0.8)
    radii = rng.uniform(0.35 * widest, widest, len(heights))
    for _ in range(int(rng.integers(0, 3))):
        radii = np.convolve(np.pad(radii, 1, mode="edge"), [0.25, 0.5, 0.25], "valid")
    body = s.turned(radii, heights, float(rng.choice([2, 2, 2, 4, 8])))
    if rng.random() < 0.5:
        wall = rng.uniform(0.05, 0.09)
        inner = np.append(radii, radii[-1]) - wall  # goes on above the rim
        body = np.maximum(body, -s.turned(inner.clip(0.02), np.append(heights.clip(wall - top), top + 0.3)))
    if rng.random() < 0.5:
        low = rng.uniform(-0.8, 0.5) * top
        high = max(rng.uniform(low, 0.9 * top), low + 0.3)
        r_low, r_high = np.interp([low, high], heights, radii)
        out, middle = max(r_low, r_high) + rng.uniform(0.15, 0.35), (low + high) / 2
        bow = [(0.95 * out, 0.9 * low + 0.1 * high), (out, middle), (0.95 * out, 0.9 * high + 0.1 * low)]
        ends = (r_low - 0.03, low), (r_high - 0.03, high)
        places = [(x, y, 0.0) for x, y in (ends[0], *bow, ends[1])]
        body = melted(body, s.wire(places, rng.uniform(0.04, 0.08)), 0.03)
    if rng.random() < 0.2:  # a spout
        low = rng.uniform(-0.2, 0.3) * top
        r = float(np.interp(low, heights, radii))
        end = (-r - 0.3, low + rng.uniform(0.1, 0.5), 0.0)
        body = melted(body, s.rod((0.05 - r, low, 0.0), end, 0.1, 0.05), 0.05)
    if rng.random() < 0.3:  # a saucer
        rim, rise, foot = radii.max() * rng.uniform(1.1, 2.0), rng.uniform(0, 0.15), radii[0]
        slope = ((s.around - foot) / (rim - foot + 0.01)).clip(0, 1) * rise - top
        plate = np.maximum(np.abs(s.y - slope) - rng.uniform(0.03, 0.06), s.around - rim)
        body = np.minimum(body, 0.8 * plate)
    if rng.random() < 0.2:  # a knob
        body = melted(body, s.ball([0, top + 0.06, 0], np.full(3, rng.uniform(0.06, 0.12))), 0.03)
    return body


def package(s: Space, rng: np.random.Generator) -> Distance:
    """Boxes and appliances: a block with a few blocks or balls on it or cut out, some with a handle."""
    half = rng.uniform(0.12, 1, 3)
    half[int(rng.integers(3))] *= rng.uniform(0.3, 1)
    body = s.box([0, 0, 0], half, rng.uniform(0.005, 0.4) * half.min())
    for _ in range(int(rng.integers(0, 4))):
        centre, axis = rng.uniform(-1, 1, 3), int(rng.integers(3))
        centre[axis] = np.sign(centre[axis])
        if rng.random() < 0.5:
            centre[2 if axis == 0 else 0] = 0
        size = half * rng.uniform(0.08, 0.45, 3)
        part = s.box(centre * half, size) if rng.random() < 0.5 else s.ball(centre * half, size)
        body = np.maximum(body, -part) if rng.random() < 0.3 else np.minimum(body, part)
    if rng.random() < 0.25:
        x, y, up = half[0] * rng.uniform(0.4, 0.9), half[1], rng.uniform(0.1, 0.35)
        places = [(-x, y, 0), (-x, y + up, 0), (x, y + up, 0), (x, y, 0)]
        body = np.minimum(body, s.wire(places, rng.uniform(0.03, 0.06)))
    return body


def animal(s: Space, rng: np.random.Generator) -> Distance:
    """Four legs, a trunk, a head with ears and a muzzle, a tail."""
    length, (wide, high), seam = rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.42, 2), rng.uniform(0.02, 0.15)
    skull, y, z = rng.uniform(0.15, 0.35), rng.uniform(0.1, 0.6), length * rng.uniform(0.6, 1.1)
    body = s.ball([0, 0, 0], [wide, high, length])
    neck = s.rod((0, 0.05, 0.5 * length), (0, y, z), 0.8 * min(wide, high), 0.6 * skull)
    body = melted(melted(body, neck, seam), s.ball([0, y, z], skull * rng.uniform(0.8, 1.3, 3)), seam)
    if rng.random() < 0.7:
        muzzle = s.ball([0, y - 0.2 * skull, z + skull], skull * rng.uniform(0.3, 0.7, 3))
        body = melted(body, muzzle, 0.5 * seam)
    leg, x, thick = rng.uniform(0.3, 0.8), wide * rng.uniform(0.4, 0.9), rng.uniform(0.06, 0.16)
    spread, taper, ears = rng.uniform(0, 0.15), rng.uniform(0.7, 1.3), rng.random() < 0.7
    ear, ear_x, ear_y = rng.uniform(0.05, 0.18, 3), skull * rng.uniform(0.4, 1), skull * rng.uniform(0.6, 1.2)
    for side in SIDES:
        for hip in (-0.6 * length, 0.6 * length):
            foot = (side * (x + spread), -leg, hip + rng.uniform(-0.05, 0.05))
            body = melted(body, s.rod((side * x, 0, hip), foot, thick, thick * taper), 0.6 * seam)
        if ears:
            body = melted(body, s.ball([side * ear_x, y + ear_y, z - 0.05], ear), 0.4 * seam)
    if rng.random() < 0.7:
        end = (rng.uniform(-0.1, 0.1), rng.uniform(-0.2, 0.5), -length - rng.uniform(0.1, 0.5))
        body = melted(body, s.rod((0, 0.1, -length), end, rng.uniform(0.03, 0.1)), 0.5 * seam)
    return body


def figure(s: Space, rng: np.random.Generator) -> Distance:
    """Two legs, two arms in some pose, a head; a third of them blocky."""
    seam, deep = rng.uniform(0.02, 0.1), rng.uniform(0.18, 0.35)
    wide, deep = deep * rng.uniform(0.7, 1.2), deep * rng.uniform(0.5, 1)
    head = rng.uniform(0.15, 0.38)
    y = 0.35 + 0.8 * head
    if rng.random() < 0.3:
        body = s.box([0, 0, 0], [wide, 0.35, deep], 0.05)
        body = melted(body, s.box([0, y, 0], [0.9 * head, head, 0.9 * head], 0.1 * head + 0.02), seam)
    else:
        body = s.ball([0, 0, 0], [wide, rng.uniform(0.3, 0.45), deep])
        body = melted(body, s.ball([0, y, 0], head * rng.uniform(0.8, 1.2, 3)), seam)
    if rng.random() < 0.6:  # a hat, or hair
        hat = head * rng.uniform(0.7, 1.4, 3) * [1, 0.5, 1]
        body = melted(body, s.ball([0, y + 0.6 * head, 0], hat), 0.3 * seam)
    leg, thick, arm = rng.uniform(0.15, 0.6), rng.uniform(0.07, 0.16), rng.uniform(0.06, 0.12)
    for side in SIDES:
        foot = np.array([side * (0.5 * wide + rng.uniform(0, 0.15)), -0.3 - leg, rng.uniform(-0.12, 0.12)])
        body = melted(body, s.rod((0.5 * side * wide, -0.25, 0), foot, thick), 0.5 * seam)
        shoe = s.ball(foot + [0, -0.02, 0.07], thick * np.array([1, 0.7, 1.6]))
        body = melted(body, shoe, 0.3 * seam)
        hand = (side * (wide + rng.uniform(0.1, 0.45)), rng.uniform(-0.4, 0.5), rng.uniform(-0.1, 0.45))
        body = melted(body, s.rod((0.85 * side * wide, 0.22, 0), hand, arm), 0.5 * seam)
    if rng.random() < 0.3:
        body = np.minimum(body, s.box(hand, rng.uniform(0.03, 0.3, 3)))
    return body


def furniture(s: Space, rng: np.random.Generator) -> Distance:
    """Stools, chairs and tables: a plate on legs or on one foot, with rungs, back and arms."""
    wide, deep = rng.uniform(0.35, 0.8, 2)
    seat, plate, floor = rng.uniform(-0.1, 0.5), rng.uniform(0.03, 0.12), -rng.uniform(0.5, 0.9)
    if rng.random() < 0.35:
        body = s.turned(np.array([wide, wide]), np.array([seat - plate, seat + plate]))
        count = int(rng.integers(3, 5))
        turns = np.arange(count) * 2 * np.pi / count + 0.4
        corners = [(0.7 * wide * np.cos(a), 0.7 * wide * np.sin(a)) for a in turns]
    else:
        body = s.box([0, seat, 0], [wide, plate, deep])
        corners = [(x * (wide - 0.06), z * (deep - 0.06)) for x, z in ((-1, -1), (-1, 1), (1, 1), (1, -1))]
    leg, spread = rng.uniform(0.035, 0.08), rng.uniform(0.9, 1.25)
    if rng.random() < 0.25:
        body = np.minimum(body, s.rod((0, seat, 0), (0, floor, 0), rng.uniform(0.05, 0.15)))
        foot = s.turned(np.array([0.8, 0.5]) * wide, np.array([floor - 0.05, floor + 0.05]))
        body = np.minimum(body, foot)
    else:
        for x, z in corners:
            body = np.minimum(body, s.rod((x, seat, z), (x * spread, floor, z * spread), leg))
        if rng.random() < 0.5:
            share = rng.uniform(0.4, 0.8)  # of the way down
            y, out = seat + (floor - seat) * share, 1 + (spread - 1) * share
            rungs = [(x * out, y, z * out) for x, z in (*corners, corners[0])]
            body = np.minimum(body, s.wire(rungs, 0.7 * leg))
    if rng.random() < 0.5:
        back = rng.uniform(0.3, 0.7) / 2
        half = [wide * rng.uniform(0.7, 1), back + plate, rng.uniform(0.03, 0.1)]
        body = np.minimum(body, s.box([0, seat + back, 0.04 - deep], half, 0.03))
        for side in SIDES if rng.random() < 0.4 else ():
            front, high = (side * wide, seat, 0.6 * deep), seat + 0.25
            places = [front, (side * wide, high, 0.6 * deep), (side * wide, high, -deep)]
            body = np.minimum(body, s.wire(places, leg))
    if rng.random() < 0.25:  # drawers
        half = [0.9 * wide, 0.4 * (seat - floor), 0.9 * deep]
        body = np.minimum(body, s.box([0, (floor + seat) / 2 + 0.05, 0], half))
    return body


def shoe(s: Space, rng: np.random.Generator) -> Distance:
    """A sole, a toe cap and a shaft that is mostly open."""
    length, wide, high = rng.uniform(0.7, 0.95), rng.uniform(0.22, 0.38), rng.uniform(0.2, 0.5)
    seam = rng.uniform(0.05, 0.12)
    sole = s.box([0, -0.3, 0], [wide, 0.06, length], 0.05)
    body = np.maximum(sole, s.ball([0, -0.3, 0], [1.15 * wide, 1, 1.02 * length]))
    toe = s.ball([0, -0.22, 0.45 * length], [0.9 * wide, rng.uniform(0.15, 0.3), 0.55 * length])
    heel = (0, -0.2, -0.6 * length)
    top = (0, 2 * high - 0.2, -0.65 * length)
    body = melted(melted(body, toe, seam), s.rod(heel, top, 0.85 * wide, wide * rng.uniform(0.6, 0.9)), seam)
    instep = s.rod((0, -0.1, -0.6 * length), (0, -0.2, 0.3 * length), 0.75 * wide, 0.6 * wide)
    body = melted(body, instep, seam)
    if rng.random() < 0.8:
        opening = s.rod((0, high - 0.1, -0.62 * length), (0, 1.5, -0.65 * length), 0.55 * wide)
        body = np.maximum(body, -opening)
    return body


def tool(s: Space, rng: np.random.Generator) -> Distance:
    """Hammers, screwdrivers, drills, spoons: a handle and what it holds."""
    length, thick = rng.uniform(0.5, 0.95), rng.uniform(0.06, 0.16)
    handle = s.rod((0, -length, 0), (0, rng.uniform(-0.2, 0.3), 0), thick, thick * rng.uniform(0.6, 1.4))
    kind = int(rng.integers(4))
    if kind == 0:
        half = [rng.uniform(0.2, 0.5), rng.uniform(0.08, 0.2), rng.uniform(0.08, 0.15)]
        head = s.box([rng.uniform(-0.1, 0.1), 0.85 * length, 0], half, 0.03)
        return np.minimum(np.minimum(handle, s.rod((0, -length, 0), (0, length, 0), 0.5 * thick)), head)
    if kind == 1:
        return np.minimum(handle, s.rod((0, -0.2, 0), (0, length, 0), rng.uniform(0.03, 0.06)))
    if kind == 2:
        front = (rng.uniform(0.4, 0.8), 0.3, 0)
        barrel = s.rod((-0.3, 0.3, 0), front, rng.uniform(0.15, 0.28), rng.uniform(0.08, 0.2))
        grip = melted(s.rod((0, -length, 0), (0, 0.3, 0), thick), barrel, 0.05)
        return melted(grip, s.box([0, -length, 0], rng.uniform(0.12, 0.3, 3), 0.05), 0.03)
    end = rng.uniform(0.12, 0.45, 3)
    return melted(
        s.rod((0, -length, 0), (0, 0.6 * length, 0), thick), s.ball([0, 0.6 * length, 0], end), 0.05
    )


def fruit(s: Space, rng: np.random.Generator) -> Distance:
    """Lumps of a few balls, half of them cut flat below."""
    body = s.ball([0, 0, 0], rng.uniform(0.5, 0.9, 3))
    for _ in range(int(rng.integers(0, 5))):
        body = melted(body, s.ball(rng.uniform(-0.5, 0.5, 3), rng.uniform(0.2, 0.5, 3)), 0.15)
    return np.maximum(body, -(s.y + rng.uniform(0.3, 0.6))) if rng.random() < 0.5 else body


def vehicle(s: Space, rng: np.random.Generator) -> Distance:
    """A hull with a cabin on four wheels."""
    length, wide, high = rng.uniform(0.7, 0.95), rng.uniform(0.28, 0.45), rng.uniform(0.12, 0.3)
    body = s.box([0, 0, 0], [wide, high, length], rng.uniform(0.03, 0.12))
    half = [wide * rng.uniform(0.7, 0.95), rng.uniform(0.12, 0.3), length * rng.uniform(0.25, 0.6)]
    cabin = s.box([0, high + 0.12, rng.uniform(-0.3, 0.2)], half, rng.uniform(0.03, 0.1))
    body, wheel = melted(body, cabin, rng.uniform(0.01, 0.1)), rng.uniform(0.12, 0.25)
    for z in (-0.6 * length, 0.6 * length):
        disc = np.hypot(s.y + high, s.z - z) - wheel
        for side in SIDES:
            body = np.minimum(body, np.maximum(disc, np.abs(s.x - side * wide) - 0.07))
    return body


# Those with more to vary come more often.
KINDS: tuple[Callable[[Space, np.random.Generator], Distance], ...] = (
    vessel, vessel, package, package, animal, animal, figure, figure, furniture, furniture,
    shoe, tool, fruit, vehicle,
)  # fmt: skip


def procedural_shape(
    space: Space, seed: int, index: int
) -> tuple[str, NDArray[np.float32], NDArray[np.int32]]:
    """Object `index` of a seed.

    Args:
        space: that it is drawn in.
        seed: of all objects.
        index: any; it also says the kind.

    Returns:
        Name of its kind; vertices (N, 3), centred, the farthest at distance 1; triangles (F, 3) of a closed
        surface, counterclockwise from outside.
    """
    make = KINDS[index % len(KINDS)]
    inside = -make(space, np.random.default_rng([seed, index]))
    field = unambiguous(torch.from_numpy(np.ascontiguousarray(inside, np.float32)), 0.0)
    points, _ = surface_nets(field, 0.0)
    quads = surface_quads(field, 0.0).numpy()
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).astype(np.int32)
    return make.__name__, normalised(points.numpy()), faces

"""A typed container of 3D Gaussians with activated values, and rotations as unit quaternions and matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussians:
    """3D Gaussians; all fields hold activated values, raw ones exist only in files."""

    means: Tensor  # (..., N, 3) centres in the world (OpenGL, y up)
    quats: Tensor  # (..., N, 4) unit rotations, wxyz
    scales: Tensor  # (..., N, 3) standard deviations along the local axes, world units, > 0
    opacities: Tensor  # (..., N) in 0..1
    colors: Tensor  # (..., N, C) sRGB in 0..1 (C = 3), or any C channels for feature rendering

    # Files are a floor above: `dd3g.io.splats` adds these.
    save: ClassVar[Callable[..., Path]]
    load: ClassVar[Callable[..., Gaussians]]

    def __post_init__(self) -> None:
        for name, given in vars(self).items():
            if not isinstance(given, Tensor):
                raise TypeError(f"{name} must be a tensor, got {type(given).__name__}")
        shape = self.opacities.shape
        for name, last in (("means", 3), ("quats", 4), ("scales", 3), ("colors", None)):
            got = getattr(self, name).shape
            if got[:-1] != shape or (last is not None and got[-1] != last):
                raise ValueError(
                    f"{name} must be {(*shape, last or 'C')} to match opacities {tuple(shape)}, "
                    f"got {tuple(got)}"
                )

    def transformed(
        self, rotation: Tensor | None = None, translation: Tensor | None = None, scale: float = 1.0
    ) -> Gaussians:
        """Apply x -> scale * rotation @ x + translation.

        Args:
            rotation: (3, 3) proper rotation; None keeps the orientation.
            translation: (3,) world units; None keeps the place.
            scale: uniform factor > 0.
        """
        means, quats = self.means * scale, self.quats
        if rotation is not None:
            means = means @ rotation.to(means).T
            quats = quaternion_multiply(matrix_to_quaternion(rotation.to(quats)), quats)
        if translation is not None:
            means = means + translation.to(means)
        return replace(self, means=means, quats=quats, scales=self.scales * scale)

    def pruned(self, min_opacity: float = 0.005) -> Gaussians:
        """Keep the finite Gaussians with an opacity of at least `min_opacity`; for one object (no batch)."""
        if self.opacities.dim() != 1:
            raise ValueError(
                f"pruned() takes one object, got batch {tuple(self.opacities.shape[:-1])}: index it first"
            )
        keep = self.opacities >= min_opacity
        for x in vars(self).values():
            keep &= x.isfinite() if x.dim() == 1 else x.isfinite().all(-1)
        return self.select(keep)

    def select(self, index: Any) -> Gaussians:
        """Gaussians by index or mask along N; a mask of the whole batch joins its items."""
        behind = self.opacities.dim()
        return Gaussians(*(x[..., index, *[slice(None)] * (x.dim() - behind)] for x in vars(self).values()))

    @staticmethod
    def cat(parts: list[Gaussians]) -> Gaussians:
        """Join along N."""
        axis = parts[0].opacities.dim() - 1
        columns = zip(*(vars(p).values() for p in parts), strict=True)
        return Gaussians(*(torch.cat(column, axis) for column in columns))

    def to(self, *args: Any, **kwargs: Any) -> Gaussians:
        """Same meaning as `Tensor.to`."""
        return Gaussians(*(x.to(*args, **kwargs) for x in vars(self).values()))

    def detach(self) -> Gaussians:
        """Cut from the autograd graph."""
        return Gaussians(*(x.detach() for x in vars(self).values()))

    def __getitem__(self, index: Any) -> Gaussians:
        """Index the batch dimensions."""
        if self.opacities.dim() == 1:
            # No IndexError, which would end a loop over them as if there were none.
            raise TypeError("these Gaussians have no batch dimension; use select() to pick along N")
        return Gaussians(*(x[index] for x in vars(self).values()))

    def __len__(self) -> int:
        """Number of Gaussians N, per batch item."""
        return self.opacities.shape[-1]


def framing(gaussians: Gaussians) -> tuple[Tensor, float]:
    """Where an object (no batch dimensions) lies and how large it is, for cameras made for those of dd3g.

    Returns:
        Its centre (3,) and the factor by which it is larger than an object of dd3g; the origin and 1 where it
        lies around the origin and has about that size. What is far from nearly all else does not count.
    """
    finite = gaussians.means.isfinite().all(-1)
    seen = finite & (gaussians.opacities > 0.05)
    seen = seen if seen.any() else finite
    if not seen.any():
        return torch.zeros(3), 1.0
    means = gaussians.means[seen]
    means = means[:: len(means) // 100_000 + 1].double()
    reach = float(means.norm(dim=-1).quantile(0.98))
    if 0.1 < reach <= 1:
        return torch.zeros(3), 1.0
    centre = means.quantile(torch.tensor([0.02, 0.98]).to(means), 0).mean(0)
    reach = float((means - centre).norm(dim=-1).quantile(0.98))
    if len(means) < 2 or reach == 0:
        reach = 3 * float(gaussians.scales[seen].nan_to_num(0, 0).max())
    return centre.float().cpu(), max(2 * reach, 1e-6)


def quaternion_multiply(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product of wxyz quaternions (..., 4); the rotation b is applied first."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        -1,
    )


def quaternion_to_matrix(quats: Tensor) -> Tensor:
    """(..., 4) wxyz, any positive length -> (..., 3, 3) rotation."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    return torch.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ],
        -1,
    ).unflatten(-1, (3, 3))  # fmt: skip


def matrix_to_quaternion(rotation: Tensor) -> Tensor:
    """(..., 3, 3) rotation -> (..., 4) unit wxyz with w >= 0."""
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in rotation.unbind(-2))
    one = torch.ones_like(a)
    products = torch.stack(
        [
            one + a + e + i, h - f, c - g, d - b,
            h - f, one + a - e - i, d + b, c + g,
            c - g, d + b, one - a + e - i, h + f,
            d - b, c + g, h + f, one - a - e + i,
        ],
        -1,
    ).unflatten(-1, (4, 4))  # fmt: skip
    # That is 4 q q^T; the row with the largest diagonal is the safest multiple of q.
    largest = products.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
    q = torch.nn.functional.normalize(products.take_along_dim(largest, -2)[..., 0, :], dim=-1)
    return torch.where(q[..., :1] < 0, -q, q)

"""A batch of pinhole cameras, orbit rigs around the object, rays and Plücker maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dd3g.errors import UserError
from dd3g.rig import ELEVATION, FAR, FOVY, NEAR, RADIUS


@dataclass(frozen=True)
class Cameras:
    """Pinhole cameras that share one image size.

    The world is right-handed OpenGL (x right, y up, the object faces +z); each camera is OpenCV (x right,
    y down, z forward). Pixel centres lie at +0.5.
    """

    viewmats: Tensor  # (..., 4, 4) world -> camera, OpenCV
    Ks: Tensor  # (..., 3, 3) intrinsics in pixels
    width: int  # of the image, in pixels
    height: int
    near: float = NEAR  # nearest depth that is drawn
    far: float = FAR  # and farthest

    def __post_init__(self) -> None:
        batch = self.viewmats.shape[:-2]
        if self.viewmats.shape != (*batch, 4, 4) or self.Ks.shape != (*batch, 3, 3):
            raise ValueError(
                f"viewmats must be (..., 4, 4) and Ks (..., 3, 3) of the same batch shape, got "
                f"{tuple(self.viewmats.shape)} and {tuple(self.Ks.shape)}"
            )

    @staticmethod
    def orbit(
        azimuths: Sequence[float] | Tensor,
        elevations: float | Sequence[float] | Tensor = ELEVATION,
        size: int = 64,
        radius: float = RADIUS,
        fovy: float = FOVY,
    ) -> Cameras:
        """Cameras on a sphere that look at the origin.

        Args:
            azimuths: (V,) degrees; 0 sees the front from +z, grows towards +x.
            elevations: degrees, one or (V,); up is positive; within (-90, 90).
            size: square image size in pixels.
            radius: distance to the origin, world units.
            fovy: vertical field of view in degrees.

        Returns:
            Cameras with batch shape (V,).

        Raises:
            UserError: when an elevation looks straight along the vertical axis, where "up" is undefined.
        """
        a = torch.deg2rad(torch.as_tensor(azimuths, dtype=torch.float64))  # (V,)
        e = torch.deg2rad(torch.as_tensor(elevations, dtype=torch.float64)).expand_as(a)  # (V,)
        wrong = torch.rad2deg(e[~(e.abs() < math.pi / 2 - 1e-6)])
        if len(wrong):
            raise UserError(f"elevation {wrong[0]:g} is out of range: give degrees between -90 and 90")
        position = radius * torch.stack([e.cos() * a.sin(), e.sin(), e.cos() * a.cos()], -1)  # (V, 3)
        forward = -position / radius
        up = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).expand_as(forward)
        right = torch.linalg.cross(forward, up)
        right = right / right.norm(dim=-1, keepdim=True)
        down = torch.linalg.cross(forward, right)
        rotation = torch.stack([right, down, forward], -2)  # (V, 3, 3), rows are the camera's axes
        viewmats = torch.eye(4, dtype=torch.float64).repeat(len(a), 1, 1)
        viewmats[:, :3, :3] = rotation
        viewmats[:, :3, 3] = -(rotation @ position[..., None])[..., 0]
        focal = 0.5 * size / math.tan(math.radians(fovy) / 2)
        K = torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], dtype=torch.float64)
        return Cameras(viewmats.float(), K.float().repeat(len(a), 1, 1), size, size)

    @staticmethod
    def all_around(
        count: int, size: int, radius: float, fovy: float, low: float = -90.0, high: float = 90.0
    ) -> Cameras:
        """(count,) cameras spread evenly on a sphere around the origin, a Fibonacci lattice; see `orbit`.

        Elevations lie between `low` and `high`, in degrees.
        """
        k = np.arange(count) + 0.5
        top, bottom = np.sin(np.radians([high, low]))
        elevation = np.degrees(np.arcsin(top - (top - bottom) * k / count)).clip(-88, 88)
        azimuth = np.degrees(math.pi * (1 + 5**0.5) * k)
        return Cameras.orbit(azimuth.tolist(), elevation.tolist(), size, radius, fovy)

    @staticmethod
    def default_rig(size: int = 64, views: int = 4) -> Cameras:
        """The canonical rig: `views` cameras at even azimuths, elevation 10 degrees; view 0 is the input."""
        return Cameras.orbit([360.0 * v / views for v in range(views)], ELEVATION, size)

    @property
    def batch_shape(self) -> torch.Size:
        """Leading dimensions shared by every field."""
        return self.viewmats.shape[:-2]

    @property
    def positions(self) -> Tensor:
        """(..., 3) camera centres in the world."""
        # Sums instead of matrix products here and in `rays`: those are rounded to bfloat16 under autocast.
        return -(self.viewmats[..., :3, :3] * self.viewmats[..., :3, 3:]).sum(-2)

    @property
    def camera_to_world(self) -> Tensor:
        """(..., 4, 4) inverse of `viewmats`, exact for rigid transforms."""
        inverse = self.viewmats.clone()
        inverse[..., :3, :3] = self.viewmats[..., :3, :3].transpose(-1, -2)
        inverse[..., :3, 3] = self.positions
        return inverse

    @property
    def azimuths(self) -> Tensor:
        """(...) azimuth of each camera centre in radians, 0 on +z, growing towards +x."""
        p = self.positions
        return torch.atan2(p[..., 0], p[..., 2])

    @property
    def elevations(self) -> Tensor:
        """(...) elevation of each camera centre in radians, up is positive."""
        p = self.positions
        return torch.atan2(p[..., 1], p[..., ::2].norm(dim=-1))

    def rays(self) -> tuple[Tensor, Tensor]:
        """Rays through the pixel centres.

        Returns:
            origins (..., 1, 1, 3) and directions (..., H, W, 3) in the world. Directions have camera depth 1,
            so `origins + depth * directions` lies at camera-space z = depth.
        """
        dtype, device = self.viewmats.dtype, self.viewmats.device  # made there, not copied there
        rows, columns = (torch.arange(n, dtype=dtype, device=device) + 0.5 for n in (self.height, self.width))
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        K = self.Ks[..., None, None, :, :]
        local = torch.stack(
            [
                (x - K[..., 0, 2]) / K[..., 0, 0],
                (y - K[..., 1, 2]) / K[..., 1, 1],
                torch.ones_like(x).expand(*self.batch_shape, -1, -1),
            ],
            -1,
        )  # (..., H, W, 3) OpenCV camera, z = 1
        right, down, forward = self.viewmats[..., None, None, :3, :3].unbind(-2)  # (..., 1, 1, 3)
        directions = local[..., :1] * right + local[..., 1:2] * down + forward
        return self.positions[..., None, None, :], directions

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Where world points (P, 3) appear in a flat batch of cameras (V,).

        Returns:
            places (V, P, 2), x to the right and y down, -1..1 from edge to edge, and camera depth (V, P).
        """
        local = points @ self.viewmats[:, :3, :3].mT + self.viewmats[:, None, :3, 3]  # (V, P, 3)
        z = local[..., 2]
        x = local[..., 0] / z * self.Ks[:, None, 0, 0] + self.Ks[:, None, 0, 2]
        y = local[..., 1] / z * self.Ks[:, None, 1, 1] + self.Ks[:, None, 1, 2]
        return torch.stack([2 * x / self.width - 1, 2 * y / self.height - 1], -1), z

    def plucker(self) -> Tensor:
        """Plücker coordinates (..., 6, H, W), moment o x d and direction d, of the pixels' unit rays."""
        origins, directions = self.rays()
        d = directions / directions.norm(dim=-1, keepdim=True)
        moment = torch.linalg.cross(origins.expand_as(d), d)
        return torch.cat([moment, d], -1).movedim(-1, -3)

    def turned(self, azimuth: float | Tensor) -> Cameras:
        """Cameras moved around the vertical axis.

        Args:
            azimuth: radians, one or (...); each camera's azimuth grows by this much. Turning by minus the
                input view's azimuth puts the input view at azimuth 0.
        """
        a = torch.as_tensor(azimuth, dtype=self.viewmats.dtype, device=self.viewmats.device)
        a = a.expand(self.batch_shape)
        turn = torch.zeros(*self.batch_shape, 4, 4, dtype=a.dtype, device=a.device)
        turn[..., 0, 0] = turn[..., 2, 2] = a.cos()
        turn[..., 0, 2] = -a.sin()
        turn[..., 2, 0] = a.sin()
        turn[..., 1, 1] = turn[..., 3, 3] = 1
        return replace(self, viewmats=self.viewmats @ turn)

    def resized(self, size: int) -> Cameras:
        """The same views at another square image size in pixels."""
        x, y, one = self.Ks.unbind(-2)
        # Of numbers, not of a tensor: that would be copied from the host at every pass of a network on a GPU.
        Ks = torch.stack([x * (size / self.width), y * (size / self.height), one], -2)
        return replace(self, Ks=Ks, width=size, height=size)

    def expand(self, *batch: int) -> Cameras:
        """Same meaning as `Tensor.expand`, of the batch shape."""
        return replace(self, viewmats=self.viewmats.expand(*batch, 4, 4), Ks=self.Ks.expand(*batch, 3, 3))

    @staticmethod
    def stack(cameras: Sequence[Cameras]) -> Cameras:
        """Put cameras of one image size behind a new leading dimension, as `torch.stack` does."""
        viewmats, Ks = (torch.stack([getattr(c, name) for c in cameras]) for name in ("viewmats", "Ks"))
        return replace(cameras[0], viewmats=viewmats, Ks=Ks)

    def pin_memory(self) -> Cameras:
        """Same meaning as `Tensor.pin_memory`."""
        return replace(self, viewmats=self.viewmats.pin_memory(), Ks=self.Ks.pin_memory())

    def to(self, *args: Any, **kwargs: Any) -> Cameras:
        """Same meaning as `Tensor.to`."""
        return replace(self, viewmats=self.viewmats.to(*args, **kwargs), Ks=self.Ks.to(*args, **kwargs))

    def __getitem__(self, index: Any) -> Cameras:
        return replace(self, viewmats=self.viewmats[index], Ks=self.Ks[index])

    def __len__(self) -> int:
        return self.viewmats.shape[0]

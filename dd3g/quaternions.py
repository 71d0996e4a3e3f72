"""Rotations as unit quaternions wxyz and as matrices."""

from __future__ import annotations

import torch
from torch import Tensor


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

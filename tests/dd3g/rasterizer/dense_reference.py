"""Gaussian splatting without tiles or culling: every pixel against every Gaussian, in torch."""

import torch
from torch import Tensor

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians, quaternion_to_matrix


def dense_render(g: Gaussians, viewmat: Tensor, K: Tensor, cameras: Cameras, antialiased: bool = False):
    """One object (N,) seen by one camera -> colours over black (C, H, W), alpha (H, W), depth (H, W)."""
    W, H = cameras.width, cameras.height
    p = g.means @ viewmat[:3, :3].T + viewmat[:3, 3]  # (N, 3)
    g, p = (x[(p[:, 2] >= cameras.near) & (p[:, 2] <= cameras.far)] for x in (_Rows(g), p))
    order = torch.argsort(p[:, 2], stable=True)
    g, p = g[order], p[order]
    x, y, z = p.unbind(-1)
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    ux = torch.minimum(torch.maximum(x / z, -(cx + 0.15 * W) / fx), (1.15 * W - cx) / fx)
    uy = torch.minimum(torch.maximum(y / z, -(cy + 0.15 * H) / fy), (1.15 * H - cy) / fy)
    J = torch.zeros(len(z), 2, 3, dtype=z.dtype)
    J[:, 0, 0], J[:, 0, 2], J[:, 1, 1], J[:, 1, 2] = fx / z, -fx * ux / z, fy / z, -fy * uy / z
    R = quaternion_to_matrix(g.quats)
    A = J @ viewmat[:3, :3]
    F = A @ R @ torch.diag_embed(g.scales)  # (N, 2, 3)
    blurred = F @ F.mT + 0.3 * torch.eye(2, dtype=z.dtype)
    opacities = g.opacities
    if antialiased:
        area2 = torch.linalg.cross(F[:, 0], F[:, 1]).square().sum(-1)  # det(F F^T) without cancellation
        opacities = opacities * (area2 / torch.det(blurred) + 1e-12).sqrt()
    v, u = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    d = torch.stack([u, v], -1).reshape(-1, 1, 2) - torch.stack([fx * x / z + cx, fy * y / z + cy], -1)
    sigma = 0.5 * torch.einsum("pni,nij,pnj->pn", d, torch.linalg.inv(blurred), d)  # (H W, N)
    alpha = torch.clamp(opacities * torch.exp(-sigma), max=0.999)
    alpha = torch.where(alpha < 1 / 255, 0.0, alpha)
    T = torch.cumprod(1 - alpha, 1)
    alpha = torch.where(T > 1e-4, alpha, 0.0)  # the Gaussian that would finish the pixel is not drawn
    T = torch.cat([torch.ones_like(T[:, :1]), torch.cumprod(1 - alpha, 1)], 1)
    image = (alpha * T[:, :-1]) @ torch.cat([g.colors, z[:, None]], 1)  # (H W, C + 1)
    image = image.T.reshape(-1, H, W)
    return image[:-1], 1 - T[:, -1].reshape(H, W), image[-1]


class _Rows:
    """Gaussians that index like a tensor."""

    def __init__(self, g):
        self.means, self.quats, self.scales = g.means, g.quats, g.scales
        self.opacities, self.colors = g.opacities, g.colors

    def __getitem__(self, index):
        return _Rows(Gaussians(*(getattr(self, k)[index] for k in vars(self))))

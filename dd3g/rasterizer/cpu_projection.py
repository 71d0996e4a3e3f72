"""`projection.project` and its gradient as two numba kernels: the same numbers, many times faster."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians
from dd3g.numba_setup import njit, prange, turn
from dd3g.rasterizer.projection import COMPENSATION_EPS, EPS2D, J_MARGIN, MAX_EXTENT, MIN_ALPHA, Projection

CHUNK = 256  # Gaussians that one task projects into all views


def project_fused(gaussians: Gaussians, cameras: Cameras, antialiased: bool = False) -> Projection:
    """Same as `projection.project`, except that cameras get no gradient and culled entries are 0."""
    tensors = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities)
    return Projection(*Project.apply(cameras, antialiased, *tensors))


class Project(torch.autograd.Function):
    """EWA projection of (B, N) Gaussians into (B, V) cameras."""

    @staticmethod
    def forward(ctx: Any, cameras: Cameras, antialiased: bool, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The fields of `projection.Projection`, of means, quats, scales and opacities."""
        saved = [t.detach().contiguous() for t in inputs]
        viewmats, Ks = (t.detach().contiguous().numpy() for t in (cameras.viewmats, cameras.Ks))
        frame = np.array([cameras.width, cameras.height, cameras.near, cameras.far], viewmats.dtype)
        ctx.cameras = [viewmats, Ks, frame, antialiased]
        shape = (*viewmats.shape[:2], inputs[0].shape[1])
        outputs = [np.zeros((*shape, *last), viewmats.dtype) for last in ((2,), (3,), (), (), (2,))]
        with turn:
            _project(*(t.numpy() for t in saved), *ctx.cameras, *outputs)
        tensors = tuple(torch.from_numpy(o) for o in outputs)
        ctx.save_for_backward(*saved, tensors[-1])
        ctx.mark_non_differentiable(tensors[-1])
        return tensors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *v: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of means, quats, scales and opacities."""
        *inputs, extents = (t.numpy() for t in ctx.saved_tensors)
        outputs = [np.zeros_like(a) for a in inputs]
        with turn:
            given = (t.contiguous().numpy() for t in v[:4])
            _project_backward(*inputs, *ctx.cameras, extents, *given, *outputs)
        return (None, None, *(torch.from_numpy(o) for o in outputs))


@njit(cache=True, nogil=True, error_model="numpy")
def _rotation(q: Any, R: Any) -> Any:
    """Fill R from a wxyz quaternion of any length; returns that length."""
    one, two = q.dtype.type(1), q.dtype.type(2)
    length = max(math.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]), q.dtype.type(1e-12))
    w, x, y, z = q[0] / length, q[1] / length, q[2] / length, q[3] / length
    R[0, 0], R[0, 1], R[0, 2] = one - two * (y * y + z * z), two * (x * y - w * z), two * (x * z + w * y)
    R[1, 0], R[1, 1], R[1, 2] = two * (x * y + w * z), one - two * (x * x + z * z), two * (y * z - w * x)
    R[2, 0], R[2, 1], R[2, 2] = two * (x * z - w * y), two * (y * z + w * x), one - two * (x * x + y * y)
    return length


@njit(cache=True, nogil=True, error_model="numpy")
def _slopes(x: Any, y: Any, z: Any, K: Any, frame: Any) -> tuple[Any, Any]:
    """x/z and y/z held within the margin around the frame, where the Jacobian is taken."""
    margin = K.dtype.type(0.5 * J_MARGIN)
    mx, my = margin * frame[0] / K[0, 0], margin * frame[1] / K[1, 1]
    ux = min(max(x / z, -K[0, 2] / K[0, 0] - mx), (frame[0] - K[0, 2]) / K[0, 0] + mx)
    uy = min(max(y / z, -K[1, 2] / K[1, 1] - my), (frame[1] - K[1, 2]) / K[1, 1] + my)
    return ux, uy


@njit(cache=True, nogil=True, error_model="numpy")
def _to_pixels(ux: Any, uy: Any, z: Any, K: Any, W: Any, S: Any, M: Any, P: Any) -> None:
    """M = J W (2, 3) and P = J W S (2, 3): the splat's covariance on the image is P P^T."""
    jx, jy = K[0, 0] / z, K[1, 1] / z
    for j in range(3):
        M[0, j] = jx * (W[0, j] - ux * W[2, j])
        M[1, j] = jy * (W[1, j] - uy * W[2, j])
    for k in range(3):
        P[0, k] = M[0, 0] * S[0, k] + M[0, 1] * S[1, k] + M[0, 2] * S[2, k]
        P[1, k] = M[1, 0] * S[0, k] + M[1, 1] * S[1, k] + M[1, 2] * S[2, k]


@njit(cache=True, nogil=True, error_model="numpy")
def _determinants(P: Any, xx: Any, yy: Any) -> tuple[Any, Any]:
    """Determinant of P P^T before and after the dilation, as a cross product to avoid cancellation."""
    eps2d = P.dtype.type(EPS2D)
    x = P[0, 1] * P[1, 2] - P[0, 2] * P[1, 1]
    y = P[0, 2] * P[1, 0] - P[0, 0] * P[1, 2]
    z = P[0, 0] * P[1, 1] - P[0, 1] * P[1, 0]
    sharp = x * x + y * y + z * z
    return sharp, sharp + eps2d * (xx + yy) + eps2d * eps2d


@njit(cache=True, nogil=True, parallel=True, error_model="numpy")
def _project(
    means: Any, quats: Any, scales: Any, opacities: Any,
    viewmats: Any, Ks: Any, frame: Any, antialiased: bool,
    means2d: Any, conics: Any, depths: Any, shown: Any, extents: Any,
) -> None:  # fmt: skip
    real = means.dtype.type
    zero, two, eps2d = real(0), real(2), real(EPS2D)
    B, N = opacities.shape
    chunks = -(-N // CHUNK)
    for task in prange(B * chunks):
        b = task // chunks
        S, M, P = np.empty((3, 3), means.dtype), np.empty((2, 3), means.dtype), np.empty((2, 3), means.dtype)
        for n in range(task % chunks * CHUNK, min(N, (task % chunks + 1) * CHUNK)):
            if not opacities[b, n] >= real(MIN_ALPHA):
                continue
            _rotation(quats[b, n], S)
            for j in range(3):
                for k in range(3):
                    S[j, k] *= scales[b, n, k]
            X, Y, Z = means[b, n, 0], means[b, n, 1], means[b, n, 2]
            for v in range(viewmats.shape[1]):
                W, K = viewmats[b, v], Ks[b, v]
                z = W[2, 0] * X + W[2, 1] * Y + W[2, 2] * Z + W[2, 3]
                if not (z >= frame[2] and z <= frame[3]):
                    continue
                x = W[0, 0] * X + W[0, 1] * Y + W[0, 2] * Z + W[0, 3]
                y = W[1, 0] * X + W[1, 1] * Y + W[1, 2] * Z + W[1, 3]
                ux, uy = _slopes(x, y, z, K, frame)
                _to_pixels(ux, uy, z, K, W, S, M, P)
                xx = P[0, 0] * P[0, 0] + P[0, 1] * P[0, 1] + P[0, 2] * P[0, 2]
                xy = P[0, 0] * P[1, 0] + P[0, 1] * P[1, 1] + P[0, 2] * P[1, 2]
                yy = P[1, 0] * P[1, 0] + P[1, 1] * P[1, 1] + P[1, 2] * P[1, 2]
                sharp, det = _determinants(P, xx, yy)
                if not det < real(np.inf):
                    continue
                xx, yy = xx + eps2d, yy + eps2d
                opacity = opacities[b, n]
                if antialiased:
                    opacity *= math.sqrt(sharp / det + real(COMPENSATION_EPS))
                if not opacity >= real(MIN_ALPHA):
                    continue
                px, py = K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]
                reach = min(real(MAX_EXTENT), math.sqrt(two * math.log(opacity / real(MIN_ALPHA))))
                hx, hy = reach * math.sqrt(xx), reach * math.sqrt(yy)
                rx, ry = math.ceil(hx), math.ceil(hy)
                if px + rx > zero and px - rx < frame[0] and py + ry > zero and py - ry < frame[1]:
                    means2d[b, v, n, 0], means2d[b, v, n, 1] = px, py
                    conics[b, v, n, 0], conics[b, v, n, 1], conics[b, v, n, 2] = yy / det, -xy / det, xx / det
                    depths[b, v, n], shown[b, v, n] = z, opacity
                    extents[b, v, n, 0], extents[b, v, n, 1] = hx, hy


@njit(cache=True, nogil=True, error_model="numpy")
def _covariance_backward(
    P: Any, opacity: Any, antialiased: bool, va: Any, vb: Any, vc: Any, v_shown: Any
) -> tuple[Any, Any, Any, Any]:
    """Gradients of the covariance entries xx, xy, yy and of the opacity, from those of conic and opacity."""
    real = P.dtype.type
    half, two, eps2d = real(0.5), real(2), real(EPS2D)
    xx = P[0, 0] * P[0, 0] + P[0, 1] * P[0, 1] + P[0, 2] * P[0, 2]
    xy = P[0, 0] * P[1, 0] + P[0, 1] * P[1, 1] + P[0, 2] * P[1, 2]
    yy = P[1, 0] * P[1, 0] + P[1, 1] * P[1, 1] + P[1, 2] * P[1, 2]
    wide, tall = xx + eps2d, yy + eps2d
    sharp, det = _determinants(P, xx, yy)
    a, b, c = tall / det, -xy / det, wide / det
    # d(X^-1) = -X^-1 dX X^-1, written out for symmetric 2x2.
    h = half * vb
    v_xx = -(a * (a * va + b * h) + b * (a * h + b * vc))
    v_yy = -(b * (b * va + c * h) + c * (b * h + c * vc))
    v_xy = -two * (a * (b * va + c * h) + b * (b * h + c * vc))
    v_opacity = v_shown
    if antialiased:
        factor = math.sqrt(sharp / det + real(COMPENSATION_EPS))
        v_opacity = v_shown * factor
        v_sharp = v_shown * opacity * half / (factor * det)
        v_det = -v_sharp * sharp / det
        v_xx += v_sharp * yy + v_det * tall
        v_yy += v_sharp * xx + v_det * wide
        v_xy -= two * xy * (v_sharp + v_det)
    return v_xx, v_xy, v_yy, v_opacity


@njit(cache=True, nogil=True, error_model="numpy")
def _rotation_backward(q: Any, length: Any, V: Any, v_q: Any) -> None:
    """Gradient of a raw quaternion from that of its rotation matrix, V."""
    two = q.dtype.type(2)
    w, x, y, z = q[0] / length, q[1] / length, q[2] / length, q[3] / length
    vw = two * (x * (V[2, 1] - V[1, 2]) + y * (V[0, 2] - V[2, 0]) + z * (V[1, 0] - V[0, 1]))
    vx = two * (y * (V[0, 1] + V[1, 0]) + z * (V[0, 2] + V[2, 0]) + w * (V[2, 1] - V[1, 2]))
    vx -= two * two * x * (V[1, 1] + V[2, 2])
    vy = two * (x * (V[0, 1] + V[1, 0]) + z * (V[1, 2] + V[2, 1]) + w * (V[0, 2] - V[2, 0]))
    vy -= two * two * y * (V[0, 0] + V[2, 2])
    vz = two * (x * (V[0, 2] + V[2, 0]) + y * (V[1, 2] + V[2, 1]) + w * (V[1, 0] - V[0, 1]))
    vz -= two * two * z * (V[0, 0] + V[1, 1])
    along = w * vw + x * vx + y * vy + z * vz
    v_q[0], v_q[1] = (vw - w * along) / length, (vx - x * along) / length
    v_q[2], v_q[3] = (vy - y * along) / length, (vz - z * along) / length


@njit(cache=True, nogil=True, parallel=True, error_model="numpy")
def _project_backward(
    means: Any, quats: Any, scales: Any, opacities: Any,
    viewmats: Any, Ks: Any, frame: Any, antialiased: bool,
    extents: Any, v_means2d: Any, v_conics: Any, v_depths: Any, v_shown: Any,
    v_means: Any, v_quats: Any, v_scales: Any, v_opacities: Any,
) -> None:  # fmt: skip
    real = means.dtype.type
    zero, two = real(0), real(2)
    B, N = opacities.shape
    chunks = -(-N // CHUNK)
    for task in prange(B * chunks):
        b = task // chunks
        R, S, vS = np.empty((3, 3), real), np.empty((3, 3), real), np.empty((3, 3), real)
        M, P, vM = np.empty((2, 3), real), np.empty((2, 3), real), np.empty((2, 3), real)
        for n in range(task % chunks * CHUNK, min(N, (task % chunks + 1) * CHUNK)):
            seen = False
            for v in range(viewmats.shape[1]):
                seen |= extents[b, v, n, 0] > zero
            if not seen:
                continue
            length = _rotation(quats[b, n], R)
            for j in range(3):
                for k in range(3):
                    S[j, k] = R[j, k] * scales[b, n, k]
                    vS[j, k] = zero
            X, Y, Z = means[b, n, 0], means[b, n, 1], means[b, n, 2]
            for v in range(viewmats.shape[1]):
                if not extents[b, v, n, 0] > zero:
                    continue
                W, K = viewmats[b, v], Ks[b, v]
                fx, fy = K[0, 0], K[1, 1]
                x = W[0, 0] * X + W[0, 1] * Y + W[0, 2] * Z + W[0, 3]
                y = W[1, 0] * X + W[1, 1] * Y + W[1, 2] * Z + W[1, 3]
                z = W[2, 0] * X + W[2, 1] * Y + W[2, 2] * Z + W[2, 3]
                ux, uy = _slopes(x, y, z, K, frame)
                _to_pixels(ux, uy, z, K, W, S, M, P)
                v_xx, v_xy, v_yy, v_opacity = _covariance_backward(
                    P, opacities[b, n], antialiased,
                    v_conics[b, v, n, 0], v_conics[b, v, n, 1], v_conics[b, v, n, 2], v_shown[b, v, n],
                )  # fmt: skip
                v_opacities[b, n] += v_opacity

                for j in range(3):
                    vM[0, j], vM[1, j] = zero, zero
                for k in range(3):
                    p0 = two * v_xx * P[0, k] + v_xy * P[1, k]
                    p1 = two * v_yy * P[1, k] + v_xy * P[0, k]
                    for j in range(3):
                        vS[j, k] += M[0, j] * p0 + M[1, j] * p1
                        vM[0, j] += p0 * S[j, k]
                        vM[1, j] += p1 * S[j, k]
                jx, jy, jxz, jyz = zero, zero, zero, zero
                for j in range(3):
                    jx += vM[0, j] * W[0, j]
                    jxz += vM[0, j] * W[2, j]
                    jy += vM[1, j] * W[1, j]
                    jyz += vM[1, j] * W[2, j]
                g0, g1 = v_means2d[b, v, n, 0], v_means2d[b, v, n, 1]
                sx, sy = fx / z, fy / z
                vx, vy = sx * g0, sy * g1
                vz = v_depths[b, v, n] - (vx * x + vy * y + sx * (jx - jxz * ux) + sy * (jy - jyz * uy)) / z
                # Through u = x/z, unless the margin holds it.
                if ux == x / z:
                    vx -= jxz * sx / z
                    vz += jxz * sx * ux / z
                if uy == y / z:
                    vy -= jyz * sy / z
                    vz += jyz * sy * uy / z
                for j in range(3):
                    v_means[b, n, j] += W[0, j] * vx + W[1, j] * vy + W[2, j] * vz
            for k in range(3):
                for j in range(3):
                    v_scales[b, n, k] += vS[j, k] * R[j, k]
                    vS[j, k] *= scales[b, n, k]
            _rotation_backward(quats[b, n], length, vS, v_quats[b, n])

"""Render meshes without a graphics stack: a supersampling z-buffer with straight alpha and depth."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dd3g.cameras import Cameras
from dd3g.meshes.mesh import Mesh
from dd3g.numba_setup import njit

NEAR = 1e-2  # camera z below which a triangle is dropped; objects stay far beyond it


@dataclass
class Light:
    """Light that is fixed in the world; shade = ambient + sum of color x max(0, n . direction), at most 1."""

    ambient: float = 0.55  # share that reaches every point
    # (L, 3) unit vectors towards the lights
    directions: NDArray[np.float64] = field(
        default_factory=lambda: np.array([[0.45, 0.7, 0.55], [-0.55, 0.3, -0.78]])
    )
    # (L, 3) RGB intensity of each
    colors: NDArray[np.float64] = field(default_factory=lambda: np.array([[0.45] * 3, [0.2] * 3]))


def render_mesh(
    mesh: Mesh,
    cameras: Cameras,
    light: Light | None = None,
    color_matrix: NDArray[np.float64] | None = None,
    supersample: int = 4,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Draw a mesh from several cameras; faces are seen from both sides.

    Args:
        mesh: what to draw.
        cameras: batch shape (V,).
        light: light in the world; None for the default.
        color_matrix: (3, 4) affine map of the surface's sRGB colour before it is lit; None keeps it.
        supersample: s x s samples per pixel.

    Returns:
        rgba (V, H, W, 4) uint8 with straight alpha (colour 0 where alpha is 0), and depth (V, H, W) float32:
        the median camera z of the covered samples, 0 where there is none.
    """
    light = light or Light()
    if color_matrix is None:
        color_matrix = np.eye(3, 4)
    texels = np.concatenate([t.reshape(-1, 3) for t in mesh.textures] or [np.zeros((1, 3), np.uint8)])
    sizes = np.array([t.shape[:2] for t in mesh.textures] or [(1, 1)], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes[:, 0] * sizes[:, 1])[:-1]])
    V, H, W = len(cameras), cameras.height, cameras.width
    rgba = np.zeros((V, H, W, 4), np.uint8)
    depth = np.zeros((V, H, W), np.float32)
    directions = light.directions / np.linalg.norm(light.directions, axis=1, keepdims=True)
    for v in range(V):
        _render_view(
            mesh.vertices, mesh.faces, mesh.normals, mesh.uvs, mesh.colors, mesh.face_texture,
            texels, sizes, starts, mesh.rest, mesh.solid,
            cameras.viewmats[v].double().numpy(), cameras.Ks[v].double().numpy(),
            light.ambient, directions, light.colors, np.ascontiguousarray(color_matrix, dtype=np.float64),
            supersample, rgba[v], depth[v],
        )  # fmt: skip
    return rgba, depth


def nearest_surface(mesh: Mesh, camera: Cameras) -> NDArray[np.float64]:
    """Inverse depth (H, W) of what one camera (batch shape ()) sees at the pixels' centres, 0 for nothing."""
    viewmat, K = camera.viewmats.double().numpy(), camera.Ks.double().numpy()
    local = mesh.vertices.astype(np.float64) @ viewmat[:3, :3].T + viewmat[:3, 3]
    z = local[:, 2]
    inverse = np.where(z < NEAR, 0.0, 1 / np.maximum(z, NEAR))
    places = local[:, :2] * inverse[:, None] * K[[0, 1], [0, 1]] + K[:2, 2]
    nearest = np.zeros((camera.height, camera.width))
    face_at = np.full(nearest.shape, -1, np.int32)
    screen = np.concatenate([places, inverse[:, None]], 1)
    _rasterize(screen, mesh.faces, camera.height, camera.width, nearest, face_at)
    return nearest


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})
def _rasterize(screen, faces, height, width, nearest, face_at):  # type: ignore[no-untyped-def]
    """Z-buffer: screen (N, 3) = sample x, sample y, 1/z -> largest 1/z and its face at each sample centre."""
    for f in range(len(faces)):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        za, zb, zc = screen[a, 2], screen[b, 2], screen[c, 2]
        if za <= 0 or zb <= 0 or zc <= 0:
            continue
        ax, ay, bx, by = screen[a, 0], screen[a, 1], screen[b, 0], screen[b, 1]
        cx, cy = screen[c, 0], screen[c, 1]
        det = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if abs(det) < 1e-12:
            continue
        scale = 1.0 / det
        # Samples lie at +0.5: x >= min means column >= ceil(min - 0.5).
        x0 = max(0, int(np.ceil(min(ax, bx, cx) - 0.5)))
        x1 = min(width - 1, int(np.floor(max(ax, bx, cx) - 0.5)))
        y0 = max(0, int(np.ceil(min(ay, by, cy) - 0.5)))
        y1 = min(height - 1, int(np.floor(max(ay, by, cy) - 0.5)))
        for y in range(y0, y1 + 1):
            py = y + 0.5
            for x in range(x0, x1 + 1):
                px = x + 0.5
                wb = ((px - ax) * (cy - ay) - (py - ay) * (cx - ax)) * scale
                wc = ((bx - ax) * (py - ay) - (by - ay) * (px - ax)) * scale
                wa = 1.0 - wb - wc
                if wa < 0 or wb < 0 or wc < 0:
                    continue
                w = wa * za + wb * zb + wc * zc
                if w > nearest[y, x]:
                    nearest[y, x] = w
                    face_at[y, x] = f


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})
def _texture(texels, start, h, w, u, v, out):  # type: ignore[no-untyped-def]
    """Bilinear, repeating, origin at the lower left; adds nothing, writes sRGB 0..1 to out."""
    x = (u - np.floor(u)) * w - 0.5
    y = (1.0 - (v - np.floor(v))) * h - 0.5
    x0, y0 = int(np.floor(x)), int(np.floor(y))
    fx, fy = x - x0, y - y0
    xa, ya = x0 if x0 >= 0 else w - 1, y0 if y0 >= 0 else h - 1
    xb, yb = x0 + 1 if x0 + 1 < w else 0, y0 + 1 if y0 + 1 < h else 0
    for k in range(3):
        top = texels[start + ya * w + xa, k] * (1 - fx) + texels[start + ya * w + xb, k] * fx
        bottom = texels[start + yb * w + xa, k] * (1 - fx) + texels[start + yb * w + xb, k] * fx
        out[k] = (top * (1 - fy) + bottom * fy) / 255.0


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})
def _solid(solid, p, out):  # type: ignore[no-untyped-def]
    """Trilinear lookup of a volume of colours that spans [-1, 1]^3."""
    S = solid.shape[0]
    i = np.empty(3, np.int64)
    f = np.empty(3)
    for k in range(3):
        x = min(max((p[k] + 1) * 0.5 * S - 0.5, 0.0), S - 1.001)
        i[k] = int(x)
        f[k] = x - i[k]
    for k in range(3):
        total = 0.0
        for corner in range(8):
            a, b, c = corner & 1, (corner >> 1) & 1, corner >> 2
            weight = (f[0] if a else 1 - f[0]) * (f[1] if b else 1 - f[1]) * (f[2] if c else 1 - f[2])
            total += weight * solid[i[0] + a, i[1] + b, i[2] + c, k]
        out[k] = total / 255.0


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})
def _render_view(  # type: ignore[no-untyped-def]
    vertices, faces, normals, uvs, colors, face_texture, texels, sizes, starts, rest, solid,
    viewmat, K, ambient, light_directions, light_colors, color_matrix, s, rgba, depth,
):  # fmt: skip
    """One view, in place: z-buffer at s x s samples per pixel, shade each covered sample, average."""
    H, W = depth.shape
    N = len(vertices)
    screen = np.empty((N, 3))  # sample x, sample y, 1 / camera z (0 = behind)
    for n in range(N):
        x, y, z = vertices[n, 0], vertices[n, 1], vertices[n, 2]
        cz = viewmat[2, 0] * x + viewmat[2, 1] * y + viewmat[2, 2] * z + viewmat[2, 3]
        if cz < NEAR:
            screen[n, 2] = 0.0
            continue
        cx = viewmat[0, 0] * x + viewmat[0, 1] * y + viewmat[0, 2] * z + viewmat[0, 3]
        cy = viewmat[1, 0] * x + viewmat[1, 1] * y + viewmat[1, 2] * z + viewmat[1, 3]
        screen[n, 0] = (K[0, 0] * cx / cz + K[0, 2]) * s
        screen[n, 1] = (K[1, 1] * cy / cz + K[1, 2]) * s
        screen[n, 2] = 1.0 / cz
    nearest = np.zeros((H * s, W * s))
    face_at = np.full((H * s, W * s), -1, np.int32)
    _rasterize(screen, faces, H * s, W * s, nearest, face_at)

    eye = np.empty(3)
    for k in range(3):
        eye[k] = -(
            viewmat[0, k] * viewmat[0, 3] + viewmat[1, k] * viewmat[1, 3] + viewmat[2, k] * viewmat[2, 3]
        )
    surface, texel, normal, place, shade = np.empty(3), np.empty(3), np.empty(3), np.empty(3), np.empty(3)
    e, h = np.empty(3, vertices.dtype), np.empty(3, vertices.dtype)  # edges of a triangle
    total = np.empty(3)
    weight = np.empty(3)
    zs = np.empty(s * s)
    last = -1  # the face that the next lines are of
    a = b = c = 0
    ax = ay = bx = by = cx = cy = scale = gx = gy = gz = towards = 0.0
    for py in range(H):
        for px in range(W):
            count = 0
            total[:] = 0.0
            for sub in range(s * s):
                y, x = py * s + sub // s, px * s + sub % s
                f = face_at[y, x]
                if f < 0:
                    continue
                if f != last:
                    last = f
                    a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
                    ax, ay, bx, by = screen[a, 0], screen[a, 1], screen[b, 0], screen[b, 1]
                    cx, cy = screen[c, 0], screen[c, 1]
                    scale = 1.0 / ((bx - ax) * (cy - ay) - (by - ay) * (cx - ax))
                    for k in range(3):
                        e[k] = vertices[b, k] - vertices[a, k]
                        h[k] = vertices[c, k] - vertices[a, k]
                    gx, gy, gz = (
                        e[1] * h[2] - e[2] * h[1],
                        e[2] * h[0] - e[0] * h[2],
                        e[0] * h[1] - e[1] * h[0],
                    )
                    towards = (
                        gx * (eye[0] - vertices[a, 0])
                        + gy * (eye[1] - vertices[a, 1])
                        + gz * (eye[2] - vertices[a, 2])
                    )
                wb = ((x + 0.5 - ax) * (cy - ay) - (y + 0.5 - ay) * (cx - ax)) * scale
                wc = ((bx - ax) * (y + 0.5 - ay) - (by - ay) * (x + 0.5 - ax)) * scale
                z = 1.0 / nearest[y, x]
                # Perspective-correct: screen weights times 1/z of the corner, times z of the sample.
                weight[0] = (1.0 - wb - wc) * screen[a, 2] * z
                weight[1] = wb * screen[b, 2] * z
                weight[2] = wc * screen[c, 2] * z
                u = v = 0.0
                for k in range(3):
                    surface[k] = normal[k] = place[k] = 0.0
                    shade[k] = ambient
                for i in range(3):
                    w, n = weight[i], faces[f, i]
                    u += w * uvs[f, i, 0]
                    v += w * uvs[f, i, 1]
                    for k in range(3):
                        surface[k] += w * colors[f, i, k]
                        normal[k] += w * normals[f, i, k]
                        if solid.shape[0] > 0:
                            place[k] += w * rest[n, k]
                t = face_texture[f]
                if t >= 0:
                    _texture(texels, starts[t], sizes[t, 0], sizes[t, 1], u, v, texel)
                elif solid.shape[0] > 0:
                    _solid(solid, place, texel)
                else:
                    texel[0] = texel[1] = texel[2] = 1.0
                for k in range(3):
                    surface[k] *= texel[k]

                # The face's own normal decides which side is seen; meshes in the wild are wound either way.
                side = 1.0 if towards >= 0 else -1.0
                if normal[0] * gx + normal[1] * gy + normal[2] * gz < 0:
                    side = -side
                length = (normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2) ** 0.5
                side /= max(length, 1e-20)
                for i in range(len(light_directions)):
                    facing = side * (
                        normal[0] * light_directions[i, 0]
                        + normal[1] * light_directions[i, 1]
                        + normal[2] * light_directions[i, 2]
                    )
                    for k in range(3):
                        shade[k] += light_colors[i, k] * max(facing, 0.0)
                for k in range(3):
                    color = color_matrix[k, 3]
                    for i in range(3):
                        color += color_matrix[k, i] * surface[i]
                    total[k] += min(max(color, 0.0), 1.0) * min(shade[k], 1.0)
                i = count  # sorted as they come: numba's own sort makes a list at each call
                while i > 0 and zs[i - 1] > z:
                    zs[i] = zs[i - 1]
                    i -= 1
                zs[i] = z
                count += 1
            if count:
                for k in range(3):
                    rgba[py, px, k] = int(255 * total[k] / count + 0.5)
                rgba[py, px, 3] = int(255 * count / (s * s) + 0.5)
                depth[py, px] = zs[count // 2]

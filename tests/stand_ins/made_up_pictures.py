"""Pictures of a disc, and where an object lies in one."""

import struct

import numpy as np
import torch


def disc(width=96, height=64, centre=(40, 30), radius=16, colour=(200, 40, 20)) -> np.ndarray:
    """(H, W, 4) uint8: an opaque disc on transparent."""
    y, x = np.mgrid[:height, :width] + 0.5
    rgba = np.zeros((height, width, 4), np.uint8)
    rgba[..., :3] = colour
    rgba[..., 3] = 255 * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2)
    return rgba


def extent(alpha: torch.Tensor) -> tuple[float, float, float, float]:
    """Left, right, top, bottom of the object in pixels, to a fraction of a pixel."""
    columns, rows = alpha.amax(0), alpha.amax(1)
    edges = []
    for profile in (columns, rows):
        inside = (profile > 0.5).nonzero()[:, 0]
        edges += [inside[0].item(), inside[-1].item() + 1]
    return tuple(edges)


def matrix_profile(primaries: tuple[tuple[float, float, float], ...], gamma: float) -> bytes:
    """An ICC profile (version 2) of a display.

    Args:
        primaries: XYZ of red, green and blue, adapted to D50.
        gamma: of all three curves.
    """

    def fixed(*values):
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"wide\0" + bytes(79),
        b"cprt": b"text" + bytes(4) + b"none\0\0\0\0",
        b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249),
        **{name + b"TRC": curve for name in (b"r", b"g", b"b")},
        **{
            name + b"XYZ": b"XYZ " + bytes(4) + fixed(*xyz)
            for name, xyz in zip((b"r", b"g", b"b"), primaries)
        },
    }
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    header = struct.pack(">I", 132 + 12 * len(tags) + len(data)) + bytes(4) + struct.pack(">I", 0x02400000)
    header += b"mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1, 0.8249)
    return header.ljust(128, b"\0") + table + data


DISPLAY_P3 = matrix_profile(
    ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407)), 2.2
)
# Linear light, whose makers call it sRGB all the same.
LINEAR = matrix_profile(
    ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141)), 1.0
).replace(b"wide\0", b"sRGB\0")

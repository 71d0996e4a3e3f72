"""Joints over time as markers and tables: .trc and .c3d for motion capture programs, .csv for the rest."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dd3g.io.atomic import replacing
from dd3g.pose.body.skeletons import H36M_17
from dd3g.pose.series import Times, Values, chunks, evenly, resampled


def save_trc(points: Values, path: str | Path, times: Times = (0.0,)) -> Path:
    """Write joints as markers for OpenSim, in millimetres.

    Args:
        points: (T, 17, 3) metres, H36M-17, y up.
        path: the .trc file.
        times: (T,) seconds; the file has as many frames a second as these on average, evenly.
    """
    fps, even = evenly(times)
    names, count = H36M_17.joints, len(H36M_17)
    lines = [
        f"PathFileType\t4\t(X/Y/Z)\t{Path(path).name}",
        "DataRate\tCameraRate\tNumFrames\tNumMarkers\tUnits\tOrigDataRate\tOrigDataStartFrame\tOrigNumFrames",
        f"{fps:.6f}\t{fps:.6f}\t{len(even)}\t{count}\tmm\t{fps:.6f}\t1\t{len(even)}",
        "Frame#\tTime\t" + "\t\t\t".join(names) + "\t\t",
        "\t\t" + "\t".join(f"{axis}{i + 1}" for i in range(count) for axis in "XYZ"),
        "",
    ]
    with written_lines(path) as write:
        write(*lines)
        for chunk, rows in resampled(points, times, even):
            for i, row in enumerate((1000 * rows).flatten(1).tolist(), chunk.start):
                write("\t".join([str(i + 1), f"{even[i]:.6f}", *(f"{v:.3f}" for v in row)]))
    return Path(path)


def save_c3d(points: Values, path: str | Path, times: Times = (0.0,)) -> Path:
    """Write joints as markers for motion capture programs, in millimetres; https://www.c3d.org/HTML.

    Arguments as for `save_trc`.
    """
    fps, even = evenly(times)
    labels, last = H36M_17.joints, len(even)
    # The counts of 16 bits end at 65,535 frames; TRIAL has the same in two halves.
    halves = [[number & 0xFFFF, number >> 16] for number in (1, last)]
    groups: list[tuple[str, list[tuple[str, Any]]]] = [
        ("POINT", [
            ("USED", len(labels)), ("SCALE", -1.0), ("RATE", fps), ("DATA_START", 0),
            ("FRAMES", min(last, 0xFFFF)), ("LABELS", labels), ("UNITS", ["mm"]),
            ("X_SCREEN", ["+X"]), ("Y_SCREEN", ["+Y"]),
        ]),
        ("ANALOG", [("USED", 0)]),
        ("TRIAL", [("ACTUAL_START_FIELD", halves[0]), ("ACTUAL_END_FIELD", halves[1])]),
    ]  # fmt: skip
    blocks = -(-len(_parameters(groups)) // 512)
    groups[0][1][3] = ("DATA_START", 2 + blocks)
    head = struct.pack(
        "<BBHHHHHfHHf", 2, 0x50, len(labels), 0, 1, min(last, 0xFFFF), 0, -1.0, 2 + blocks, 0, fps
    )
    with replacing(path) as part, part.open("wb") as file:
        file.write(head.ljust(512, b"\0"))
        file.write(_parameters(groups, blocks).ljust(512 * blocks, b"\0"))
        for frames, rows in resampled(points, times, even):
            # The fourth is for residual and cameras; below 0 it would mean not seen.
            data = torch.nn.functional.pad(1000 * rows, (0, 1))
            file.write(data.numpy().astype("<f4").tobytes())
        file.write(bytes(-16 * len(labels) * last % 512))
    return Path(path)


def _parameters(groups: Sequence[tuple[str, Sequence[tuple[str, Any]]]], blocks: int = 0) -> bytes:
    """The parameter section of a .c3d: a record a group, then a record a parameter, each with the way on."""
    records = []
    for number, (group, parameters) in enumerate(groups, 1):
        records.append((-number, group, b"\0"))
        for name, value in parameters:
            items = list(value) if isinstance(value, Sequence) else [value]
            if isinstance(items[0], str):
                width = max(map(len, items))
                kind, shape = -1, [width, len(items)]
                data = "".join(item.ljust(width) for item in items).encode("ascii")
            else:
                kind, code = (4, "f") if isinstance(items[0], float) else (2, "H")
                shape = [len(items)] if len(items) > 1 else []
                data = struct.pack(f"<{len(items)}{code}", *items)
            records.append((number, name, struct.pack("<bB", kind, len(shape)) + bytes(shape) + data + b"\0"))
    found = struct.pack("<BBBB", 1, 0x50, blocks, 84)  # 84: little-endian, as Intel's
    for i, (number, name, content) in enumerate(records):
        way = 0 if i == len(records) - 1 else 2 + len(content)
        found += struct.pack("<bb", len(name), number) + name.encode("ascii")
        found += struct.pack("<H", way) + content
    return found


def save_csv(points: Values, path: str | Path, times: Times = (0.0,)) -> Path:
    """Write a row a frame with its time in seconds and x, y, z of each joint (T, 17, 3), metres, as given."""
    header = ["time", *(f"{joint}_{axis}" for joint in H36M_17.joints for axis in "xyz")]
    with written_lines(path) as write:
        write(",".join(header))
        for chunk in chunks(len(times)):
            for time, row in zip(times[chunk], points[chunk].flatten(1).tolist(), strict=True):
                write(",".join([f"{time:.6f}", *(f"{v:.5f}" for v in row)]))
    return Path(path)


@contextmanager
def written_lines(path: str | Path) -> Iterator[Callable[..., None]]:
    """Gives what writes lines to a text file."""
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        yield lambda *lines: file.writelines(f"{line}\n" for line in lines)

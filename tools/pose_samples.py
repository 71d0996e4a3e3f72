"""How human are samples of the pose prior: `python -m tools.pose_samples motion.npz`."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from dd3g.command.run import run_command
from dd3g.io.atomic import replacing
from dd3g.pose import metrics
from dd3g.pose.body.geometry import least_turn
from dd3g.pose.body.skeletons import H36M_17

# Joint, where its limb starts and ends, and the way it bends when the limb hangs: 1 forward, -1 backward.
HINGES = {
    "left knee": ("l_knee", "l_hip", "l_ankle", -1),
    "right knee": ("r_knee", "r_hip", "r_ankle", -1),
    "left elbow": ("l_elbow", "l_shoulder", "l_wrist", 1),
    "right elbow": ("r_elbow", "r_shoulder", "r_wrist", 1),
}
BENT = 20.0  # degrees of bend from which on its direction is meaningful
RAISED = 120.0  # degrees from hanging, beyond which it is not: the limb may have come up either way
TAIL = 0.001  # share of the training data that lies beyond a limit, on either side
VIEWS = 50_000
CHUNK = 2500
ON_SHEET = 64  # poses on the contact sheet
CONVENTION = (
    "Limits are the 0.1 and 99.9 percentiles of training views (random cameras and bone lengths). Bones: "
    "share of bone lengths within. Violations: share of knees and elbows whose bend, or its direction, is "
    "beyond; those of training data are counted on other views than the limits were taken from. Spread: "
    "standard deviation of a coordinate, mean over joints. +- is one standard error."
)


def hinge_bends(poses: Tensor) -> tuple[Tensor, Tensor]:
    """How far and which way knees and elbows bend.

    The direction is that in which the lower limb leaves the line of the upper one, in a frame of the hips or
    shoulders that is turned the shortest way from a hanging limb to the one at hand. A knee that bends
    straight back, or an elbow straight forward, has 0; inward is positive, 180 is the wrong way.

    Args:
        poses: (..., 17, 3) metres.

    Returns:
        bends (..., 4) in 0..180 degrees, 0 is straight, and directions (..., 4) in -180..180 degrees, NaN
        where they are not meaningful; in the order of `HINGES`.
    """
    bends, directions = [], []
    for joint, start, end, way in HINGES.values():
        sides = [H36M_17.joints.index(side + start[2:]) for side in ("l_", "r_")]
        left = _unit(poses[..., sides[0], :] - poses[..., sides[1], :])
        spine = poses[..., H36M_17.joints.index("thorax"), :] - poses[..., 0, :]
        down = -_unit(spine - _dot(spine, left) * left)
        forward = torch.linalg.cross(down, left)
        a, b, c = (poses[..., H36M_17.joints.index(name), :] for name in (start, joint, end))
        upper, lower = _unit(b - a), _unit(c - b)
        inward = -left if joint.startswith("l_") else left
        turn = least_turn(down, upper)
        straight, medial = ((turn @ x[..., None])[..., 0] for x in (way * forward, inward))
        bend = torch.rad2deg(_dot(upper, lower)[..., 0].clamp(-1, 1).acos())
        raised = torch.rad2deg(_dot(down, upper)[..., 0].clamp(-1, 1).acos())
        direction = torch.rad2deg(torch.atan2(_dot(lower, medial), _dot(lower, straight))[..., 0])
        bends.append(bend)
        directions.append(direction.masked_fill((bend < BENT) | (raised > RAISED), torch.nan))
    return torch.stack(bends, -1), torch.stack(directions, -1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=-1)


def compare(samples: Tensor, views: Tensor, others: Tensor) -> dict[str, Any]:
    """Bone lengths and joint limits of samples (n, 17, 3), training views that set the limits, and others.

    Returns:
        Shares in 0..1 by name, see `CONVENTION`.
    """
    names = [H36M_17.joints[child] for _, child in H36M_17.bones]
    low, high = _limits(metrics.bone_lengths(views))
    limits = [_limits(values) for values in hinge_bends(views)]
    result: dict[str, Any] = {}
    for who, poses in (("samples", samples), ("training", others)):
        lengths = metrics.bone_lengths(poses)
        inside = ((lengths >= low) & (lengths <= high)).float()
        # NaN is never beyond a limit.
        bend, direction = (
            (values < least) | (values > most)
            for values, (least, most) in zip(hinge_bends(poses), limits, strict=True)
        )
        either = (bend | direction).float()
        result[who] = {
            "bones_inside": float(inside.mean()),
            "bones_inside_by_bone": dict(zip(names, inside.mean(0).tolist(), strict=True)),
            "asymmetry_mm": float(metrics.symmetry_error(poses).mean()),
            "spread_mm": 1000 * float(poses.std(0).mean()),
            "upright": float((poses[:, 10, 1] < poses[:, 0, 1]).float().mean()),
            "violations": float(either.mean()),
            "violations_error": float(either.mean(1).std()) / len(poses) ** 0.5,
            "violations_by_joint": dict(zip(HINGES, either.mean(0).tolist(), strict=True)),
            "violations_of_bend": float(bend.float().mean()),
            "violations_of_direction": float(direction.float().mean()),
        }
    pairs = [torch.stack(limit, -1).tolist() for limit in limits]
    result["limits"] = {
        f"{what}, degrees": {
            # None where nothing bends far enough to have a direction.
            name: [None if math.isnan(x) else round(x, 1) for x in pair]
            for name, pair in zip(HINGES, p, strict=True)
        }
        for what, p in zip(("bend", "direction"), pairs, strict=True)
    }
    inside, own = result["samples"]["bones_inside"], result["samples"]["violations"]
    usual = result["training"]["violations"]
    result["claims"] = {
        "bone lengths of samples within the training range": {
            "value": inside, "bound": 0.95, "holds": inside >= 0.95,
        },
        "joint-limit violations no more than in training data": {
            "value": own, "bound": usual, "holds": own <= usual,
        },
    }  # fmt: skip
    return result


def _limits(values: Tensor) -> tuple[Tensor, Tensor]:
    """Percentiles (K,) of values (N, K), NaN left out."""
    low, high = values.nanquantile(torch.tensor([TAIL, 1 - TAIL]).to(values), dim=0).unbind(0)
    return low, high


def save_contact_sheet(poses: Tensor, path: Path, side: int = 200) -> None:
    """A PNG of up to 64 poses (n, 17, 3) as their camera sees them, 2.3 m a cell."""
    from PIL import Image, ImageDraw

    from dd3g.pose.export.figures import draw_skeleton

    columns = 8
    poses = poses[:ON_SHEET]
    rows = -(-len(poses) // columns)
    image = Image.new("RGB", (2 * columns * side, 2 * rows * side), "white")  # twice as large, then reduced
    draw = ImageDraw.Draw(image)
    for i, pose in enumerate(poses):
        middle = torch.tensor([i % columns + 0.5, i // columns + 0.5]) * 2 * side
        # In the middle of its cell, wherever its root is.
        flat = pose[:, :2] - (pose[:, :2].amin(0) + pose[:, :2].amax(0)) / 2
        draw_skeleton(draw, flat * 2 * side / 2.3 + middle, 6)
    with replacing(path) as part:
        image.reduce(2).save(part, format="PNG")


def main(
    motion: Annotated[Path, typer.Argument(help="The motion archive that the prior was trained on.")],
    n: Annotated[int, typer.Option("-n", "--samples", min=2, help="Samples to draw.")] = 50_000,
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON to write.")] = Path(
        "out/pose-samples.json"
    ),
    contact_sheet: Annotated[
        Path, typer.Option("--contact-sheet", "--sheet", help="PNG of 64 samples to write.")
    ] = Path("out/pose-samples.png"),
    weights: Annotated[Path | None, typer.Option(help="Folder of a prior; default: the shipped one.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Network calls.")] = 30,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
) -> None:
    """Draw poses from the prior and compare bone lengths and joint limits with its training data."""
    from dd3g.command.progress import track
    from dd3g.machine import provenance
    from dd3g.pose.data.motion import load_cmu
    from dd3g.pose.data.synthesis import synthesise
    from dd3g.pose.methods.guided import generate
    from dd3g.pose.networks.prior import Prior

    prior = Prior.from_pretrained(weights)
    frames = replace(load_cmu(motion, "train"), rotations=None)
    indices = (torch.arange(VIEWS) * len(frames)) // VIEWS
    views, others = (synthesise(frames, indices, view_seed).pose for view_seed in (1, 2))
    samples = torch.cat(
        [
            generate(prior, min(CHUNK, n - start), seed=seed * n + start, steps=steps)
            for start in track(range(0, n, CHUNK), "batches of samples")
        ]
    )
    report = {
        **provenance("cpu"),
        "convention": CONVENTION, "n": n, "steps": steps, "seed": seed, "views": VIEWS,
        "source": str(motion), "weights": str(weights) if weights else "shipped", "sheet": str(contact_sheet),
        **compare(samples, views, others),
    }  # fmt: skip
    save_contact_sheet(samples, contact_sheet)
    with replacing(output) as part:
        part.write_text(json.dumps(report, indent=1, allow_nan=False))
    print(CONVENTION)
    for who in ("samples", "training"):
        found = report[who]
        print(
            f"{who}: bones within {100 * found['bones_inside']:.1f} %, violations "
            f"{100 * found['violations']:.3f} +- {100 * found['violations_error']:.3f} % (bend "
            f"{100 * found['violations_of_bend']:.2f}, direction "
            f"{100 * found['violations_of_direction']:.2f}), asymmetry {found['asymmetry_mm']:.1f} mm, "
            f"spread {found['spread_mm']:.0f} mm, head above hips {100 * found['upright']:.1f} %"
        )
    for text, claim in report["claims"].items():
        verdict = "holds " if claim["holds"] else "MISSED"
        print(f"{verdict} {text}: {100 * claim['value']:.3f} % against {100 * claim['bound']:.3f} %")
    print(f"wrote {output}, {contact_sheet}")


if __name__ == "__main__":
    sys.exit(run_command(main, None, "python -m tools.pose_samples"))

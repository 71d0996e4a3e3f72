"""Does a teacher still give the quadruples of a set?"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from dd3g.errors import UserError
from distill.pictures import on_white
from distill.quadruples import Quadruples, noise_of
from distill.simulation.generate_shards import missing_shards
from distill.simulation.ode import simulate
from distill.teachers import Teacher

TOLERANCE = 0.01  # mean difference that other hardware may make to a view; a step more or less makes more


def verify(output: str | Path, teacher: Teacher, samples: int = 8, device: str = "cpu") -> dict[str, Any]:
    """Recompute some quadruples and compare; every shard's index is read, so a torn one is noticed.

    Returns:
        {"quadruples", "missing", "checked", "teacher", "noise", "mean_difference", "max_difference",
        "agrees"}. `missing` names the shards of the set that are not there.
        `teacher` and `noise` say whether fingerprint and seeds match. Differences are of views over white and
        of alpha, in 0..1, the mean that of the worst item.

    Raises:
        UserError: when a shard is damaged or not of distill.simulate, or a key appears twice.
    """
    quadruples = Quadruples(output)
    twice = [k for k, n in Counter(quadruples.key(i) for i in range(len(quadruples))).items() if n > 1]
    if twice:
        raise UserError(
            f"{output}: {len(twice)} quadruples appear twice, first {twice[0]}: make the set again"
        )
    count = min(samples, len(quadruples))
    chosen = [i * len(quadruples) // count for i in range(count)]
    same_teacher = same_noise = True
    means, worst = [0.0], 0.0
    for i in chosen:
        q = quadruples[i]
        lacking = [name for name in ("teacher", "seed", "steps", "guidance_scale") if name not in q.meta]
        if lacking:
            raise UserError(
                f"{output}: {quadruples.key(i)} does not record its {', '.join(lacking)}: give a set that "
                "distill.simulate made"
            )
        same_teacher &= q.meta["teacher"] == teacher.fingerprint
        if q.noise.shape != tuple(teacher.latent_shape) or q.input.shape[-1] != teacher.picture_size:
            raise UserError(
                f"{output}: noise {tuple(q.noise.shape)} and pictures of {q.input.shape[-1]} pixels are "
                f"another teacher's; this one has {tuple(teacher.latent_shape)} and {teacher.picture_size}"
            )
        same_noise &= torch.equal(q.noise, noise_of(teacher.latent_shape, q.meta["seed"]))
        again = simulate(
            teacher,
            q.input[None].to(device),
            q.noise[None].to(device),
            q.meta["steps"],
            q.meta["guidance_scale"],
            q.cameras if teacher.follows_elevation else None,
            [q.meta["caption"]] if "caption" in q.meta else None,
        )
        # Alpha, where there is one, is compared like a colour.
        found, stored = (torch.cat([on_white(v), v[:, 3:]], 1) for v in (again.outputs[0].cpu(), q.outputs))
        # A teacher that overflows agrees with nothing; the largest of numbers would pass over NaN.
        difference = (found - stored).abs().nan_to_num(nan=1.0)
        means.append(difference.mean().item())
        worst = max(worst, difference.max().item())
    return {
        "quadruples": len(quadruples),
        "missing": missing_shards(Path(output)),
        "checked": len(chosen),
        "teacher": same_teacher,
        "noise": same_noise,
        "mean_difference": max(means),
        "max_difference": worst,
        "agrees": same_teacher and same_noise and max(means) <= TOLERANCE,
    }

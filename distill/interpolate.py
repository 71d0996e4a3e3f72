"""From one noise to another: `dd3g interpolate PICTURE 3 7 -o sheet.png`, and what the noise means at all.

A generator learns the teacher's map from noise to views, so noise decides what the picture does not show. The
path between two noises is spherical, since a straight one would pass through noise that is too small.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dd3g.command.run import Device, Json, command_line
from dd3g.errors import UserError
from dd3g.io.atomic import check_writable
from dd3g.rig import ELEVATION

if TYPE_CHECKING:
    from torch import Tensor

AZIMUTHS = (0.0, 60.0, 120.0, 180.0, 240.0, 300.0)


def between(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Spherical interpolation of two noises of any one shape: a at t = 0, b at 1, as long as they are."""
    import torch

    x, y = a.flatten().double(), b.flatten().double()
    angle = torch.acos((x @ y / (x.norm() * y.norm())).clamp(-1, 1))
    if angle < 1e-6:
        return a.clone()
    wa, wb = torch.sin((1 - t) * angle) / torch.sin(angle), torch.sin(t * angle) / torch.sin(angle)
    return (wa * a.double() + wb * b.double()).to(a)


def views_of(generator: Any, rgba: Tensor, noise: Tensor, size: int, raw: bool) -> Tensor:
    """(6, 3, S, S) an object of one noise (V, C, h, w) from all around, over white.

    With `raw` the generator's own splats are seen, since the solid body hides what differs.
    """
    from dd3g.cameras import Cameras
    from dd3g.rasterizer import rasterize

    gaussians = generator.generate(rgba, raw=raw, noise=noise)
    cameras = Cameras.orbit(list(AZIMUTHS), ELEVATION, size).to(gaussians.means.device)
    return rasterize(gaussians, cameras, background=1.0, antialiased=True).rgb.clamp(0, 1).cpu()


def spread(views: list[Tensor]) -> dict[str, float]:
    """How much objects of several noises differ, by their views (6, 3, S, S) at the same cameras.

    Returns:
        deviation, of a pixel's value over noises, mean over pixels: of all views, of the input view (front)
        and of the view behind (back); 0 where the noise means nothing.
    """
    import torch

    deviation = torch.stack(views).std(0, correction=0).mean((1, 2, 3))
    return {
        "deviation": float(deviation.mean()),
        "front": float(deviation[0]),
        "back": float(deviation[AZIMUTHS.index(180.0)]),
    }


def perceptual_spread(views: list[Tensor]) -> dict[str, float | str]:
    """Mean ST-LPIPS between the views of every two noises, `st_lpips`; or why it is `missing`."""
    from distill.evaluation.learned import load_metrics

    metrics, about = load_metrics(["st-lpips"])
    if not metrics:
        return {"missing": f"ST-LPIPS was not measured: {about['st-lpips']['missing']}"}
    metric = metrics[0]
    if metric.compare is None or views[0].shape[-1] < metric.smallest:
        return {"missing": f"ST-LPIPS needs {metric.smallest} pixels per side"}
    return {"st_lpips": metric.apart(views)}


def interpolate_command(
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="A picture of an object.")],
    first: Annotated[
        int, typer.Argument(metavar="FIRST", min=0, help="Seed of the noise at the top of the sheet.")
    ],
    last: Annotated[int, typer.Argument(metavar="LAST", min=0, help="Seed of the noise at the bottom.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Contact sheet: .png, .jpg or .webp.")
    ] = Path("out/interpolation.png"),
    generator: Annotated[str, typer.Option(help="Shipped name, folder or hub id.")] = "nano",
    steps: Annotated[int, typer.Option(min=2, help="Rows of the sheet, both ends included.")] = 6,
    noises: Annotated[int, typer.Option(min=2, help="Independent noises whose spread is reported.")] = 4,
    size: Annotated[int, typer.Option(min=16, help="Pixels per side of each view.")] = 128,
    raw: Annotated[bool, typer.Option("--raw", help="The network's own splats.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Draw objects along the path between two noises, and report how much the noise decides."""
    if output.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp") or output.is_dir():
        raise UserError(f"-o {output} is no picture to write: give a file that ends in .png, .jpg or .webp")
    check_writable(output.parent)
    import torch

    from dd3g.nn.checkpoint import find_device
    from dd3g.pepd import Generator
    from dd3g.picture import load_image
    from distill.pictures import save_contact_sheet
    from distill.quadruples import noise_of

    place = find_device(device)
    if place.type == "mps":
        raise UserError("nothing rasterises on mps: give --device cpu")
    model = Generator.from_pretrained(generator, device=place)
    rgba = load_image(picture).rgba.float()
    shape = model.config.latent_shape
    a, b = noise_of(shape, first), noise_of(shape, last)
    rows = [views_of(model, rgba, between(a, b, k / (steps - 1)), size, raw) for k in range(steps)]
    others = [views_of(model, rgba, noise_of(shape, first + k), size, raw) for k in range(noises)]
    path = save_contact_sheet(torch.stack(rows), output)
    found: dict[str, Any] = {"output": str(path), "noises": noises, **spread(others)}
    found |= perceptual_spread(others)
    if as_json:
        print(json.dumps(found))
        return
    apart = found.get("missing") or f"ST-LPIPS between two noises {found['st_lpips']:.4f}"
    print(
        f"over {noises} noises, a pixel deviates by {255 * found['deviation']:.2f} of 255 "
        f"({255 * found['front']:.2f} in the input view, {255 * found['back']:.2f} from behind); "
        f"{apart}; wrote {path}"
    )


main = command_line(interpolate_command, "dd3g interpolate")

if __name__ == "__main__":
    sys.exit(main())

"""Metrics that need pretrained networks: each names its library, net and weights, or says what is missing.

No metric stands in for another one: without its weights it is left out of the table, and nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dd3g.errors import UserError, first_line
from dd3g.fingerprint import fingerprint
from dd3g.models import model_path

CLIP = "openai/clip-vit-base-patch32"


class Missing(UserError):
    """The metric's library or weights are not on this machine; the message says what to do."""


@dataclass(frozen=True)
class Metric:
    """A metric of pictures through a network."""

    key: str  # of its value in results
    about: dict[str, str]  # library, net and hash of the weights
    features: Callable[[Tensor], Any]  # RGB over white (V, 3, H, W) in 0..1 -> whatever `compare` takes
    # Features of predicted and of true views -> (V,); None for a metric of sets
    compare: Callable[[Any, Any], Tensor] | None = None
    smallest: int = 16  # pixels per side below which nothing is left of the picture in the net

    def apart(self, pictures: Sequence[Tensor]) -> float:
        """Mean of `compare` between every two of some pictures of the same views, (V, 3, H, W) each."""
        assert self.compare is not None
        seen = [self.features(rgb) for rgb in pictures]
        return float(np.mean([float(self.compare(a, b).mean()) for a, b in combinations(seen, 2)]))


class STLPIPS:
    """Anti-aliased AlexNet features with learnt weights (Ghildyal and Liu 2022, "Shift-tolerant LPIPS").

    Raises:
        UserError: when the file does not hold these weights.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.convs = [
                (state[f"net.slice{name}.weight"], state[f"net.slice{name}.bias"])
                for name in ("1.0", "2.5", "3.9", "4.11", "5.13")
            ]
            self.shift, self.scale = state["scaling_layer.shift"], state["scaling_layer.scale"]
            self.lins = [state[f"lin{i}.model.1.weight"] for i in range(5)]
        except Exception as error:  # torch.load fails in many ways on a foreign file
            raise UserError(
                f"{path} does not hold the ST-LPIPS weights ({first_line(error)}): delete it and run "
                "`dd3g models fetch stlpips_alex`"
            ) from error

    @torch.inference_mode()
    def __call__(self, a: Tensor | list[Tensor], b: Tensor | list[Tensor]) -> Tensor:
        """(V,) distance of RGB pictures (V, 3, H, W) in 0..1, or of their `features`; 0 for equal ones."""
        fa, fb = (self.features(x) if isinstance(x, Tensor) else x for x in (a, b))
        layers = zip(fa, fb, self.lins, strict=True)
        return torch.stack([F.conv2d((x - y).square(), lin).mean((1, 2, 3)) for x, y, lin in layers]).sum(0)

    @torch.inference_mode()
    def features(self, rgb: Tensor) -> list[Tensor]:
        """Five layers of unit-length channels, for pictures that are compared more than once."""
        x = (2 * rgb - 1 - self.shift) / self.scale
        (w1, b1), (w2, b2), (w3, b3), (w4, b4), (w5, b5) = self.convs
        one = _blur(F.conv2d(x, w1, b1, padding=2)).relu()
        two = F.conv2d(_blur(F.max_pool2d(one, 3, 1)), w2, b2, padding=2).relu()
        three = F.conv2d(_blur(F.max_pool2d(two, 3, 1)), w3, b3, padding=1).relu()
        four = F.conv2d(three, w4, b4, padding=1).relu()
        five = F.conv2d(four, w5, b5, padding=1).relu()
        return [F.normalize(f, dim=1, eps=1e-10) for f in (one, two, three, four, five)]


def _blur(x: Tensor) -> Tensor:
    """Binomial 3 x 3 low-pass, then every second pixel."""
    taps = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


def _st_lpips(of_sets: bool = False) -> Metric:
    path = model_path("stlpips_alex")
    if path is None:
        raise Missing("its weights are not here: dd3g models fetch stlpips_alex")
    net = STLPIPS(path)
    if not of_sets:
        about = _about("ours, after stlpips_pytorch", "AlexNet", Path(path))
        return Metric("st_lpips", about, net.features, net, 32)
    about = _about("ours", "ST-LPIPS' AlexNet, layer 5", Path(path))
    return Metric("fd_stlpips", about, lambda rgb: net.features(rgb)[-1].mean((2, 3)), None, 32)


def _lpips(net: Literal["vgg", "alex"]) -> Metric:
    names = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}
    path = _hub_file(names[net])
    if find_spec("torchvision") is None:
        raise Missing("torchmetrics' LPIPS needs torchvision, whose version must fit torch's: pip install it")
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as lpips

    def compare(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([lpips(x[None], y[None], net, normalize=True) for x, y in zip(a, b, strict=True)])

    about = _about(f"torchmetrics {version('torchmetrics')}", f"LPIPS {net}", path)
    return Metric(f"lpips_{net}", about, lambda rgb: rgb, compare, 32)


def _clip() -> Metric:
    if find_spec("transformers") is None:
        raise Missing("it needs transformers: pip install 'dd3g[data]'")
    from transformers import CLIPModel, CLIPProcessor

    try:
        model = CLIPModel.from_pretrained(CLIP, local_files_only=True).eval()
        processor = CLIPProcessor.from_pretrained(CLIP, local_files_only=True)
    except (OSError, ValueError) as error:
        raise Missing(f"{CLIP} is not in the cache of the hub: hf download {CLIP}") from error

    @torch.inference_mode()
    def features(rgb: Tensor) -> Tensor:
        pixels = processor.image_processor(list(rgb), do_rescale=False, return_tensors="pt")["pixel_values"]
        found = model.get_image_features(pixel_values=pixels)
        found = found if isinstance(found, Tensor) else found.pooler_output
        return F.normalize(found, dim=-1)

    weights = fingerprint(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))
    about = {"library": f"transformers {version('transformers')}", "net": CLIP, "weights": weights}
    return Metric("clip", about, features, lambda a, b: (a * b).sum(-1))


def _inception(key: str) -> Metric:
    path = _hub_file("weights-inception-2015-12-05-6726825d.pth")
    if find_spec("torch_fidelity") is None:
        raise Missing("torchmetrics' Inception needs torch-fidelity: pip install it")
    from torchmetrics.image.fid import NoTrainInceptionV3

    net = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))

    @torch.inference_mode()
    def features(rgb: Tensor) -> Tensor:
        return net((rgb * 255).round().byte())

    about = _about(f"torchmetrics {version('torchmetrics')}", "inception-v3-compat, 2048", path)
    return Metric(key, about, features)


METRICS: dict[str, Callable[[], Metric]] = {
    "st-lpips": _st_lpips,
    "fd-stlpips": lambda: _st_lpips(of_sets=True),
    "lpips-vgg": lambda: _lpips("vgg"),
    "lpips-alex": lambda: _lpips("alex"),
    "clip": _clip,
    "fid": lambda: _inception("fid"),
    "kid": lambda: _inception("kid"),
}


def load_metrics(names: Sequence[str]) -> tuple[list[Metric], dict[str, dict[str, str]]]:
    """The metrics that can be measured here, and what each is, or "missing" with the reason."""
    found, about = [], {}
    for name in names:
        try:
            metric = METRICS[name]()
        except Missing as error:
            about[name] = {"missing": str(error)}
        else:
            found.append(metric)
            about[name] = metric.about
    return found, about


def frechet_distance(a: NDArray, b: NDArray) -> float:
    """Distance of two normal distributions fitted to features (N, D), (M, D) (Heusel et al. 2017, eq. 6)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    S, T = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    # The trace of the root of S T: its eigenvalues are real and not negative, up to rounding.
    root = np.sqrt(np.linalg.eigvals(S @ T).real.clip(0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(S) + np.trace(T) - 2 * root)


def kernel_distance(a: NDArray, b: NDArray) -> float:
    """Unbiased squared MMD of features with the kernel (x y / D + 1)^3 (Binkowski et al. 2018, eq. 4)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    n, m, D = len(a), len(b), a.shape[1]
    if min(n, m) < 2:
        return float("nan")
    xx, yy, xy = ((p @ q.T / D + 1) ** 3 for p, q in ((a, a), (b, b), (a, b)))
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def _hub_file(name: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file():
        raise Missing(f"its weights are not here: put {name} into {path.parent}")
    return path


def _about(library: str, net: str, path: Path) -> dict[str, str]:
    return {"library": library, "net": net, "weights": fingerprint(path.read_bytes())}

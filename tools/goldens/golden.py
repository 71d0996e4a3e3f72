"""One file of goldens, and the comparison of an array with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dd3g.errors import UserError
from tools.goldens import made_up

# rmse / rms that other kernels, threads and versions stay below by far, and no known mistake does.
PART, CALL, LOOP = 1e-5, 2e-5, 1e-4
BELOW_MOST = np.float16(65472)  # of half precision, whose largest number has no next one
SETTINGS = ("seed", "t", "elevation", "views", "picture_size")  # of the .json, or numbers among the arrays


@dataclass(frozen=True)
class Compared:
    """One array of ours beside the golden one."""

    name: str  # of the array
    found: np.ndarray  # ours
    wanted: np.ndarray  # the golden one
    tolerance: float  # of rmse / rms

    @property
    def largest(self) -> float:
        """Largest difference by the golden's root mean square."""
        return self._by_rms(np.abs(self._difference).max(initial=0))

    @property
    def rmse(self) -> float:
        """Root mean square of the difference by that of the golden; infinite for another shape."""
        return self._by_rms(np.sqrt(np.square(self._difference).mean()))

    @property
    def agrees(self) -> bool:
        """Whether the array is within its tolerance; NaN is not."""
        return bool(self.rmse <= self.tolerance)

    @cached_property
    def _difference(self) -> np.ndarray:
        if self.found.shape != self.wanted.shape:
            return np.array(np.inf)
        difference = self.found.astype(np.float64) - self.wanted.astype(np.float64)
        if self.wanted.dtype != np.float16:
            return difference
        # What was computed lies up to half a step from what half precision stores.
        step = np.spacing(np.minimum(np.abs(self.wanted), BELOW_MOST)).astype(np.float64)
        return np.maximum(np.abs(difference) - step / 2, 0)

    def _by_rms(self, value: float) -> float:
        return float(value / max(np.sqrt(np.square(self.wanted.astype(np.float64)).mean()), 1e-12))


@dataclass(frozen=True)
class Golden:
    """NAME.npz and NAME.json of a folder."""

    name: str  # of the two files
    arrays: Mapping[str, np.ndarray]  # what was computed
    # Of what: configurations, and name -> shape of every weight as in the published files
    about: dict[str, Any]
    seed: int  # of weights and inputs
    dtype: torch.dtype = torch.float32  # what networks compute in here; the goldens are of float32

    @staticmethod
    def read(path: Path, seed: int | None = None, dtype: torch.dtype = torch.float32) -> Golden:
        """Read NAME.npz and the NAME.json beside it, whose "seed", 1 without one, stands in for None.

        Raises:
            UserError: when one of the two is missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            about = json.loads(path.with_suffix(".json").read_text())
        except Exception as error:  # of json, and of zip files, which have errors of their own
            raise UserError(f"{path} and its .json cannot be read ({error}): copy them again") from error
        if not isinstance(about, dict):
            raise UserError(f"{path.with_suffix('.json')} holds no JSON object: copy it again")
        about |= {k: arrays.pop(k).item() for k in SETTINGS if k in arrays and arrays[k].size == 1}
        for name, array in arrays.items():
            if array.dtype.kind not in "fiub":
                raise UserError(f"{path}: {name} holds {array.dtype}, not real numbers: copy it again")
        if not isinstance(about.get("seed", 1), int):
            raise UserError(f"{path.with_suffix('.json')} says seed {about['seed']!r}: give a whole number")
        return Golden(path.stem, arrays, about, about.get("seed", 1) if seed is None else seed, dtype)

    @property
    def picture_sides(self) -> tuple[int, int]:
        """Height and width of the made-up picture, of which a file holds every 20th pixel."""
        if "picture_size" in self.about or "picture" not in self:
            return (self.about.get("picture_size", 200),) * 2
        height, width = self["picture"].shape[:2]
        return 20 * height, 20 * width

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def named(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Names of arrays that begin so, and what follows."""
        return ((name, name.removeprefix(prefix)) for name in self.arrays if name.startswith(prefix))

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        """Made-up input, float32."""
        return torch.from_numpy(made_up.normal(name, shape, self.seed)).float()

    def picture(self, name: str, height: int, width: int, channels: int = 3) -> np.ndarray:
        """Made-up picture (height, width, channels), float32 in 0..1."""
        return made_up.picture(name, height, width, self.seed, channels)

    def state(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """Made-up weights."""
        return {k: torch.from_numpy(made_up.weight(k, s, self.seed)) for k, s in shapes.items()}

    def compare(self, name: str, found: Tensor | np.ndarray, tolerance: float, after: str = "") -> Compared:
        """Set ours beside the golden array of that name, behind which `after` says which of ours it is."""
        array = found.detach().float().cpu().numpy() if isinstance(found, Tensor) else found
        wanted = self.arrays[name]
        return Compared(name + after, array, wanted, tolerance)

    def compare_held(
        self, tolerance: float, found: Mapping[str, Callable[[], Tensor | np.ndarray]]
    ) -> Iterator[Compared]:
        """Set ours, as thin as they are, beside those arrays that the file holds; no others are made."""
        for name, make in found.items():
            if name in self:
                yield self.compare(name, strided(make(), self[name].shape), tolerance)


def recorded(network: nn.Module, names: Iterable[str]) -> dict[str, list[Tensor]]:
    """What the modules of these names give from now on, call by call; of several results the main one."""
    given: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(found: list[Tensor], _: nn.Module, __: Any, output: Any) -> None:
        if not isinstance(output, Tensor):  # lists end with it, tuples and diffusers' outputs begin with it
            output = output[-1 if isinstance(output, list) else 0]
        found.append(output)

    for name, found in given.items():
        network.get_submodule(name).register_forward_hook(partial(keep, found))
    return given


def strided(x: Any, shape: tuple[int, ...]) -> Any:
    """Every n-th entry along each dimension, so that the shape comes out."""
    return x[tuple(slice(None, None, -(-n // m)) for n, m in zip(x.shape, shape, strict=True))]

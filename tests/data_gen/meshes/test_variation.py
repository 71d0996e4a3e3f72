"""Random shapes of rendered objects."""

import numpy as np
import pytest

from data_gen.meshes.variation import profiled, reshaped
from dd3g.meshes.mesh import load_mesh


class Drawn:
    """A generator whose normal draws are known."""

    def __init__(self, *values: float) -> None:
        self.values = np.array(values)

    def normal(self, mean: float, deviation: list[float]) -> np.ndarray:
        assert mean == 0 and len(deviation) == len(self.values)
        return self.values


def test_a_profile_scales_and_shifts_each_cross_section():
    at = np.array([[0.5, 0.5, 0.3], [0.5, -0.5, 0.0], [0.0, 0.0, 0.4]], np.float32)
    taper, swell = 0.2, 0.1
    found = profiled(at, Drawn(taper, swell, 0.04, -0.08))  # type: ignore[arg-type]
    upper, lower, middle = 1 + 0.1 + 0.075, 1 - 0.1 + 0.075, 1.1
    assert found == pytest.approx(
        np.array(
            [
                [0.5 * upper + 0.01, 0.5, 0.3 * upper - 0.02],
                [0.5 * lower + 0.01, -0.5, -0.02],
                [0.0, 0.0, 0.4 * middle],
            ]
        )
    )


def test_a_profile_never_turns_a_cross_section_inside_out():
    ends = np.array([[1, 1, 0], [1, -1, 0], [1, 0, 0]], np.float32)
    found = profiled(ends, Drawn(-9.0, -9.0, 0.0, 0.0))  # type: ignore[arg-type]
    assert found[:, 0] == pytest.approx([0.6, 1.4, 0.6])


def test_reshaped_objects_are_centred_and_fill_the_ball(tmp_path):
    vertices = np.array([[0, -1, 0], [0.2, 1, 0], [0, 1, 0.2], [0.1, 0, 0.3]], np.float32)
    faces = np.array([[0, 1, 2], [1, 2, 3]], np.int32)
    np.savez(tmp_path / "tall.npz", V=np.round(vertices * 32767).astype(np.int16), F=faces)
    mesh = load_mesh(tmp_path / "tall.npz")
    first, second = (reshaped(mesh, np.random.default_rng(seed)).vertices for seed in (0, 1))
    for found in (first, second):
        assert found.min(0) + found.max(0) == pytest.approx(np.zeros(3), abs=1e-5)
        assert np.linalg.norm(found, axis=1).max() == pytest.approx(1, abs=1e-5)
    assert np.abs(first - second).max() > 0.05

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import dd3g.pepd
import distill.teachers
from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.gaussians import Gaussians
from dd3g.pepd import Generator, GeneratorConfig
from dd3g.rasterizer import rasterize
from distill.evaluation import rows, work
from distill.evaluation.predictors import all_white
from distill.evaluation.protocol import Evaluation, labelled
from distill.evaluation.rows import BASELINES, KINDS, make_rows, teacher_rows
from distill.evaluation.targets import assembled


def test_a_new_kind_is_one_line(monkeypatch):
    seen = []

    def made(value: str, options: Evaluation) -> dict:
        label, path = labelled(value)
        seen.append((path, options.seed))
        return {label: all_white, f"{label} twice": all_white}

    monkeypatch.setitem(KINDS, "mine", made)
    found = make_rows(["mine=a=out/x=1", "baseline=flat card", "mine=nano"], Evaluation(seed=3))
    assert list(found) == ["mine=a=out/x=1", "baseline=flat card", "mine=nano"]
    labels = [list(rows) for rows in found.values()]
    assert labels == [["a", "a twice"], ["flat card"], ["nano", "nano twice"]]
    assert seen == [("out/x=1", 3), ("nano", 3)]
    assert list(make_rows(["baseline"], Evaluation())["baseline"]) == list(BASELINES)


def test_rows_that_cannot_be_made_are_told():
    with pytest.raises(UserError, match="no row 'magic': choose KIND=VALUE with a kind of baseline, teacher"):
        make_rows(["magic=x"], Evaluation())
    with pytest.raises(UserError, match="no baseline 'blob': choose from all white, flat card"):
        make_rows(["baseline=blob"], Evaluation())
    with pytest.raises(UserError, match="'all white' is the name of another row"):
        make_rows(["baseline", "baseline=all white"], Evaluation())
    assert rows.baseline_rows("all white", Evaluation()) == {"all white": all_white}


class Upright:
    """Stands for a generator that knows the world in which the object stands upright."""

    made = Gaussians(
        torch.tensor([[0.0, 0.3, 0.0]]),
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.full((1, 3), 0.1),
        torch.tensor([0.9]),
        torch.tensor([[0.2, 0.5, 0.1]]),
    )

    def compiled(self):
        return self

    def generate(self, picture, seed, elevation):
        self.elevation = elevation
        return self.made


def test_a_generator_that_knows_the_elevation_is_drawn_in_the_world_of_the_input(monkeypatch):
    generator = Upright()
    monkeypatch.setattr(Generator, "from_pretrained", lambda path, device: generator)
    upright = Cameras.orbit([0.0, 80.0], [30.0, -5.0], 32)
    target = assembled("x", "scan", [(torch.ones(2, 4, 32, 32), upright)], [0], [1], "")
    monkeypatch.setattr("distill.evaluation.rows.estimated_elevation", lambda image: 21.0)
    given, estimated = make_rows(["elevation=a=folder"], Evaluation())["elevation=a=folder"].items()
    assert (given[0], estimated[0]) == ("a, elevation given", "a, elevation estimated")
    for (_, row), told, cameras in (
        (given, 30.0, upright),
        # As if the object leaned: seen from the input's camera it is what it is.
        (estimated, 21.0, Cameras.orbit([0.0], [21.0], 32)),
    ):
        found = row(target)(target, list(range(len(cameras))))
        assert generator.elevation == pytest.approx(told)
        expected = rasterize(generator.made, cameras, background=1.0, antialiased=True).rgb
        assert (expected < 0.9).any(-1).any(-1).all()
        torch.testing.assert_close(found.rgb, expected, atol=1e-4, rtol=0)


def test_a_generator_is_loaded_once_for_all_rows_and_seeds(monkeypatch):
    loaded = []

    class Loaded:
        config = GeneratorConfig()

        @classmethod
        def from_pretrained(cls, path, device):
            loaded.append((path, device))
            return cls()

        def compiled(self):
            return self

    monkeypatch.setattr(dd3g.pepd, "Generator", Loaded)
    for seed in (0, 1):
        asked = Evaluation(seed=seed, device="cpu")
        one, other = make_rows(["generator=mine=a/folder", "elevation=a/folder"], asked).values()
        assert [*one, *other] == [
            *("mine (raw)", "mine", "a/folder, elevation given", "a/folder, elevation estimated"),
        ]
    assert loaded == [("a/folder", "cpu")]


def test_a_teacher_is_loaded_once_for_all_seeds(monkeypatch):
    loaded = []
    monkeypatch.setattr(distill.teachers, "load", lambda *asked: loaded.append(asked))
    for seed in (0, 1):
        teacher_rows("a/teacher", Evaluation(seed=seed, device="cpu"))
    assert loaded == [("a/teacher", "cpu")]


def test_a_gpu_is_waited_for_only_where_a_row_uses_it(monkeypatch):
    """Sixteen processes that draw on the CPU would else hold a context on it each."""
    waits = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert work._predicted(lambda target: all_white, None) is all_white and not waits
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    work._predicted(lambda target: all_white, None)
    assert waits == [1]


@pytest.mark.parametrize("device, current", [("cpu", []), ("cuda", []), ("cuda:1", [torch.device("cuda:1")])])
def test_time_and_memory_are_those_of_the_gpu_that_was_named(monkeypatch, device, current):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    with pytest.raises(UserError, match="no file nowhere"):  # what comes after
        work.Work([], Evaluation(device=device, protocol="nowhere"), Path(), "")
    assert chosen == current

"""What a GPU needs of a pass: nothing made on the host, one graph, and the same answer from it."""

from __future__ import annotations

import contextlib
from dataclasses import fields

import pytest
import torch
from stand_ins.on_meta import OnMeta

from dd3g.cameras import Cameras
from dd3g.gaussians import Gaussians
from dd3g.pepd import Generator, GeneratorConfig, captured
from dd3g.pepd.captured import CapturedPass

TINY = {
    "size": 32, "latent_shape": (4, 4, 4, 4), "width": 32, "heads": 2, "depth": 1, "residual_hidden": 8,
    "fine": 8, "mid": 16, "head_hidden": 8,
}  # fmt: skip


def tiny(**options):
    torch.manual_seed(0)
    return Generator(GeneratorConfig(**(TINY | options))).eval()


def inputs(generator, batch=1, elevation=10.0):
    c = generator.config
    g = torch.Generator().manual_seed(1)
    noise = torch.randn(batch, *c.latent_shape, generator=g)
    return (
        noise,
        Cameras.orbit([0, 90, 180, 270], elevation, c.size),
        torch.rand(batch, 4, c.size, c.size, generator=g),
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"depth": 0}, {"order": "one_shot"}, {"pt_mode": "knn", "neighbours": 3}, {"use_noise": False},
     {"copy_tokens": False}, {"latent_shape": (4, 64, 8, 8)}, {"size": 64, "latent_shape": (4, 4, 8, 8)}],
    ids=str,
)  # fmt: skip
def test_no_pass_makes_a_tensor_on_the_host(options):
    """A picture larger than the network's, too: `resize` and the cameras' frames are part of the pass."""
    generator = tiny(**options).to("meta")
    noise, cameras, image = (x.to("meta") for x in inputs(generator, 2))
    with OnMeta():
        made = generator(noise, cameras, image)
    assert made.means.is_meta and made.means.shape[0] == 2


def test_the_net_finds_what_a_pass_makes_on_the_host(monkeypatch):
    """As `resized` once did, by a scale made on the CPU."""
    generator = tiny().to("meta")
    noise, cameras, image = (x.to("meta") for x in inputs(generator))

    def resized(self, size):
        torch.tensor([size / self.width, 1.0, 1.0])
        return original(self, size)

    original = Cameras.resized
    monkeypatch.setattr(Cameras, "resized", resized)
    with pytest.raises(AssertionError, match="on cpu"), OnMeta():
        generator(noise, cameras, image)


@pytest.mark.slow
def test_a_pass_is_one_graph():
    """torch.compile finds no place where it must leave the graph, and its answer is the same."""
    generator = tiny()
    noise, cameras, image = inputs(generator)
    whole = torch.compile(generator, backend="eager", fullgraph=True)
    with torch.no_grad():
        a, b = generator(noise, cameras, image), whole(noise, cameras, image)
    assert all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Gaussians))


@pytest.fixture
def no_graph(monkeypatch):
    """CUDA graphs on the CPU: a replay computes again, and writes where the capture did."""
    passes = []

    class Graph:
        def replay(self):
            passes.append("replay")
            again = self.captured._run()
            for f in fields(Gaussians):
                getattr(self.captured.result, f.name).copy_(getattr(again, f.name))

    class Stream:
        def __init__(self, device=None):
            self.device = device

        def wait_stream(self, other):
            pass

    def recording(graph, stream):
        """On the device of the pass, whichever is the current one."""
        assert stream.device == torch.device("cpu")
        return contextlib.nullcontext()

    monkeypatch.setattr(captured.torch.cuda, "Stream", Stream)
    monkeypatch.setattr(captured.torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(captured.torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(captured.torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(captured.torch.cuda, "graph", recording)
    monkeypatch.setattr(captured.torch.cuda, "synchronize", lambda device: None)
    original = CapturedPass.__init__

    def init(self, *args, **options):
        original(self, *args, **options)
        self.graph.captured = self

    monkeypatch.setattr(CapturedPass, "__init__", init)
    return passes


def test_a_captured_pass_gives_what_the_generator_gives(no_graph):
    generator = tiny()
    fast = CapturedPass(generator)
    assert fast.seconds > 0
    kept = []
    for elevation in (10.0, 25.0):
        noise, cameras, image = inputs(generator, elevation=elevation)
        assert fast.fits(noise, cameras, image)
        with torch.no_grad():
            wanted = generator(noise, cameras, image)
        kept.append((fast(noise, cameras, image), wanted))
    for made, wanted in kept:  # the second call left the first result alone
        for f in fields(Gaussians):
            assert torch.allclose(getattr(made, f.name), getattr(wanted, f.name), atol=1e-6)
    assert (kept[0][0].means - kept[1][0].means).abs().max() > 0.01
    assert not fast.fits(*inputs(generator, 2))
    assert no_graph == ["replay"] * 2


def test_generate_uses_it_where_there_is_one(no_graph):
    generator = tiny()
    picture = torch.rand(4, 32, 32)
    assert generator.compiled() is generator and generator.captured is None  # on a CPU
    wanted = generator.generate(picture, raw=True)
    assert no_graph == []
    generator.captured = CapturedPass(generator)
    made = generator.generate(picture, raw=True)
    assert torch.allclose(made.means, wanted.means, atol=1e-6) and no_graph == ["replay"]
    assert len(generator.generate(picture, seed=1, elevation=20.0, raw=True)) == len(wanted)


def test_a_rig_of_other_distance_changes_nothing(no_graph):
    """The input's camera stays where pictures are taken from, whichever way the pass is launched."""
    generator = tiny(distance=2.0, azimuths=[30.0, 120.0, 210.0, 300.0])
    picture = torch.rand(4, 32, 32)
    wanted = generator.generate(picture, elevation=20.0, raw=True)
    generator.captured = CapturedPass(generator)
    made = generator.generate(picture, elevation=20.0, raw=True)
    assert torch.allclose(made.means, wanted.means, atol=1e-6) and no_graph == ["replay"]


def test_bfloat16_drifts_little(no_graph):
    generator = tiny()
    noise, cameras, image = inputs(generator)
    full, half = (CapturedPass(generator, dtype=d)(noise, cameras, image) for d in (None, torch.bfloat16))
    assert 0 < (full.means - half.means).abs().max() < 0.01
    assert half.means.dtype == torch.float32 and (full.colors - half.colors).abs().max() < 0.02

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins.tiny_objects import write_quadruples, write_renders

from dd3g.cameras import Cameras
from dd3g.diffusion import sample
from dd3g.errors import UserError
from dd3g.io.atomic import only_user
from dd3g.io.shards import Shards, write_shard
from distill.inputs import open_inputs, seed_of
from distill.ode import simulate
from distill.quadruples import Quadruple, Quadruples, decode, encode, noise_of
from distill.renders import RenderedObjects
from distill.simulate import _partial_state, main
from distill.teachers import load
from distill.teachers.analytic import draw_ellipsoids
from distill.verify import verify

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def png(array) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG")
    return stream.getvalue()


def ellipsoid_views(n, size=32, views=(0,), elevation=10.0):
    """(n, V, H, W, 4) uint8 of random ellipsoids."""
    generator = torch.Generator().manual_seed(1)
    axes = torch.rand(n, 1, 3, generator=generator) * 0.3 + 0.2
    drawn = draw_ellipsoids(
        axes, torch.rand(n, 1, 3, generator=generator), Cameras.orbit(list(views), elevation, size)
    )
    return (drawn[:, 0] * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, rgba in enumerate(ellipsoid_views(6)[:, 0]):
        Image.fromarray(rgba).save(folder / f"object.{i}.{'webp' if i == 3 else 'png'}", lossless=True)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def command(inputs, teacher, output, *more):
    return [str(inputs), "--teacher", str(teacher), "--output", str(output), "--device", "cpu", *more]


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(folder).iterdir())}


def test_simulate_is_the_ode_from_the_noise(teacher):
    teacher = load(teacher)
    rgba = torch.from_numpy(ellipsoid_views(3, 16)[:, 0]).permute(0, 3, 1, 2) / 255
    noise = torch.stack([noise_of(teacher.latent_shape, s) for s in range(3)])
    made = simulate(teacher, rgba, noise, 7, 1.5)
    condition = teacher.condition(rgba)
    plan = teacher.schedule.plan(7)
    assert plan[0][0] == 999
    latents = sample(teacher.denoiser(condition, 1.5), teacher.schedule, noise, plan, condition).x
    assert torch.equal(made.outputs, teacher.codec.decode(latents))
    assert made.outputs.shape == (3, 4, 4, 16, 16) and len(made.cameras) == 4
    assert not torch.equal(simulate(teacher, rgba, noise.flip(0), 7, 1.5).outputs, made.outputs)
    assert torch.equal(
        simulate(teacher, rgba, noise).outputs,
        simulate(teacher, rgba, noise, teacher.default_steps, teacher.default_guidance).outputs,
    )


def test_noise_by_seed_is_pinned_and_exact_in_float16():
    noise = noise_of((4, 64, 4, 4), 12)
    assert torch.equal(noise, noise.half().float()) and noise.dtype == torch.float32
    assert torch.equal(noise, noise_of((4, 64, 4, 4), 12)) and not torch.equal(
        noise, noise_of((4, 64, 4, 4), 13)
    )
    assert noise.std().item() == pytest.approx(1, abs=0.03)
    assert seed_of(0, 1, 2) == 66112467763644943
    assert len({seed_of(a, b, c) for a in range(5) for b in range(20) for c in range(5)}) == 500


@pytest.mark.parametrize("channels", [4, 3])
def test_quadruple_round_trip(channels):
    cameras = Cameras.default_rig(16)
    byte = lambda *shape: (torch.rand(*shape) * 255).round() / 255  # noqa: E731
    q = Quadruple(
        noise_of((4, 64, 4, 4), 1), cameras, byte(4, 16, 16), byte(4, channels, 16, 16), {"seed": 1}
    )
    written = encode(q, "a_00")
    assert encode(q, "a_00") == written
    back = decode({k: v.encode() if isinstance(v, str) and k != "__key__" else v for k, v in written.items()})
    for name in ("noise", "input", "outputs"):
        assert torch.allclose(getattr(back, name), getattr(q, name), atol=1e-6), name
    assert torch.equal(back.noise, q.noise)
    assert torch.equal(back.cameras.viewmats, cameras.viewmats) and torch.equal(back.cameras.Ks, cameras.Ks)
    assert back.cameras.width == 16 and back.meta == {"seed": 1, "key": "a_00"}


def test_a_set_from_pictures(pictures, teacher, tmp_path, capsys):
    out = tmp_path / "set"
    assert main(command(pictures, teacher, out, "--seeds", "2", "--per-shard", "4", "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["shards"], report["written"], report["present"], report["quadruples"]) == (4, 4, 0, 12)
    assert report["complete"] and report["failed"] == []
    assert sorted(p.name for p in out.iterdir()) == [
        "quadruples-00-00000.tar",
        "quadruples-00-00001.tar",
        "quadruples-01-00000.tar",
        "quadruples-01-00001.tar",
        "simulate.json",
    ]
    quadruples, cached = Quadruples(out), Quadruples([out], cache=True)
    assert len(quadruples) == 12
    assert sorted(quadruples.key(i) for i in range(12)) == [
        f"{i:07d}_{k:02d}" for i in range(6) for k in range(2)
    ]
    model = load(teacher)
    for i, q in enumerate(quadruples):
        same = cached[i]
        assert torch.equal(same.noise, q.noise) and torch.equal(same.outputs, q.outputs)
        assert torch.equal(same.input, q.input) and same.meta == q.meta
        assert q.input.shape == (4, 16, 16) and q.outputs.shape == (4, 4, 16, 16)
        assert q.meta["teacher"] == model.fingerprint and q.meta["steps"] == 4
        assert q.meta["source"] == f"object.{int(q.meta['key'][:7])}." + (
            "webp" if q.meta["key"].startswith("0000003") else "png"
        )
        assert torch.equal(q.noise, noise_of(model.latent_shape, q.meta["seed"]))
        made = simulate(model, q.input[None], q.noise[None], 4, 1.0).outputs[0]
        assert (made - q.outputs).abs().max() <= 0.5 / 255 + 1e-6
    assert len({q.meta["seed"] for q in quadruples}) == 12
    with pytest.raises(IndexError):
        quadruples[12]
    assert quadruples[-1].meta == quadruples[11].meta

    before = digests(out)
    assert main(command(pictures, teacher, out, "--seeds", "2", "--per-shard", "4")) == 0
    assert "wrote 0 quadruples in 0 shards" in capsys.readouterr().out
    assert digests(out) == before
    # One more pass only adds shards.
    assert main(command(pictures, teacher, out, "--seeds", "3", "--per-shard", "4")) == 0
    after = digests(out)
    assert len(after) == 7 and {n for n in before if before[n] != after[n]} == {"simulate.json"}
    assert json.loads((out / "simulate.json").read_text())["seeds"] == 3


def test_other_settings_are_refused(pictures, teacher, tmp_path, capsys):
    out = tmp_path / "set"
    assert main(command(pictures, teacher, out, "--limit", "3")) == 0
    before = digests(out)
    for change, message in (
        (["--limit", "3", "--steps", "5"], "steps 4 (now 5)"),
        (["--limit", "3", "--guidance-scale", "2"], "guidance_scale 1.0 (now 2.0)"),
        (["--limit", "4"], "pictures 3 (now 4)"),
        (["--limit", "3", "--seed", "1"], "seed 0 (now 1)"),
    ):
        assert main(command(pictures, teacher, out, *change)) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and "another --output" in error
    assert main(command(pictures, "analytic", out, "--limit", "3", "--steps", "4")) == 2
    assert "teacher " in capsys.readouterr().err
    Image.fromarray(ellipsoid_views(1)[0, 0]).save(pictures / "one-more.png")
    assert main(command(pictures, teacher, out, "--limit", "3")) == 2
    assert "inputs " in capsys.readouterr().err
    assert digests(out) == before
    (out / "simulate.json").unlink()
    assert main(command(pictures, teacher, out, "--limit", "3")) == 2
    assert "no simulate.json" in capsys.readouterr().err


def test_bad_pictures_are_reported_and_the_others_come_out(pictures, teacher, tmp_path, capsys):
    (pictures / "a-torn.png").write_bytes((pictures / "object.0.png").read_bytes()[:200])
    Image.new("RGB", (32, 32), (200, 0, 0)).save(pictures / "b-opaque.png")
    words = command(pictures, teacher, tmp_path / "set", "--seeds", "1", "--matte", "none")
    assert main(words) == 1
    printed = capsys.readouterr()
    assert "a-torn.png" in printed.err and "b-opaque.png has no transparent pixel" in printed.err
    assert "or give --matte auto" in printed.err
    assert len(Quadruples(tmp_path / "set")) == 6
    # They are not forgotten once the shard is there.
    assert main([*words, "--json"]) == 1
    again = capsys.readouterr()
    assert again.err == printed.err and len(json.loads(again.out)["failed"]) == 2


def test_views_that_are_not_finite_are_left_out(pictures, teacher, tmp_path, capsys, monkeypatch):
    """As half precision gives them where it overflows."""

    def overflows(*words):
        made = simulate(*words)
        made.outputs[1, 2, 0, 0, 0] = torch.nan
        return made

    monkeypatch.setattr("distill.generate_shards.simulate", overflows)
    assert main(command(pictures, teacher, tmp_path / "set", "--seeds", "1")) == 1
    assert "views hold numbers that are not finite: give --precision bfloat16" in capsys.readouterr().err
    assert len(Quadruples(tmp_path / "set")) == 5


@pytest.mark.parametrize("case", ["empty", "missing", "teacher", "file", "device", "guidance", "foreign"])
def test_bad_requests_end_in_one_line(case, pictures, teacher, tmp_path, capsys):
    inputs, out, more = pictures, tmp_path / "set", []
    if case == "empty":
        inputs = tmp_path / "empty"
        inputs.mkdir()
    elif case == "missing":
        inputs = tmp_path / "nowhere"
    elif case == "teacher":
        teacher = tmp_path / "nowhere"
    elif case == "file":
        out.write_text("in the way")
    elif case == "device":
        more = ["--device", "abacus"]
    elif case == "guidance":
        more = ["--guidance-scale", "nan"]
    else:
        inputs = tmp_path / "foreign"
        write_shard(inputs / "a.tar", [{"__key__": "a", "txt": "hello"}])
    assert main(command(inputs, teacher, out, *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_verify_says_whether_teacher_and_shards_agree(pictures, teacher, tmp_path, capsys):
    out = tmp_path / "set"
    assert main(command(pictures, teacher, out, "--seeds", "1")) == 0
    capsys.readouterr()
    check = ["verify", str(out), "--device", "cpu", "--teacher"]
    assert main([*check, str(teacher), "--json", "--samples", "4"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["agrees"] and report["checked"] == 4 and report["quadruples"] == 6
    assert report["max_difference"] < 0.01
    model = load(teacher)
    assert verify(out, model, 100)["checked"] == 6 and report["missing"] == []

    other = json.loads((teacher / "config.json").read_text()) | {"spread": 0.3}
    (teacher / "config.json").write_text(json.dumps(other))
    assert main([*check, str(teacher)]) == 1
    assert "DIFFER" in capsys.readouterr().out
    assert main([*check, "analytic"]) == 2
    assert "another teacher's" in capsys.readouterr().err

    # A noise that does not belong to its seed, and an answer that does not belong to its noise.
    (path,) = Shards(out).paths
    samples = list(Shards(out))
    quadruple = decode(samples[0])
    forged = replace(quadruple, noise=noise_of(model.latent_shape, 99))
    write_shard(path, [encode(forged, samples[0]["__key__"]), *samples[1:]])
    report = verify(out, model, 6)
    assert not report["noise"] and not report["agrees"] and report["teacher"]
    forged = replace(quadruple, outputs=quadruple.outputs.flip(0))
    write_shard(path, [encode(forged, samples[0]["__key__"]), *samples[1:]])
    report = verify(out, model, 6)
    assert report["teacher"] and report["noise"] and report["mean_difference"] > 0.01
    assert not report["agrees"]

    write_shard(path.with_name("quadruples-00-00001.tar"), samples[:1])
    with pytest.raises(UserError, match="twice"):
        verify(out, model)
    path.write_bytes(path.read_bytes()[:5000])
    assert main([*check, str(teacher)]) == 2
    assert "damaged" in capsys.readouterr().err


def test_verify_misses_shards(pictures, teacher, tmp_path, capsys):
    out = tmp_path / "set"
    assert main(command(pictures, teacher, out, "--seeds", "2", "--per-shard", "4")) == 0
    assert main(command(pictures, teacher, out, "--seeds", "1", "--per-shard", "4")) == 0  # asks for less
    (out / "quadruples-01-00000.tar").unlink()
    capsys.readouterr()
    assert verify(out, load(teacher))["missing"] == ["quadruples-01-00000.tar"]
    assert main(["verify", str(out), "--device", "cpu", "--teacher", str(teacher)]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("agree: ")
    assert printed.err.startswith("error: 1 shards of ") and "quadruples-01-00000.tar" in printed.err


def test_verify_of_a_foreign_set(teacher, tmp_path, capsys):
    views = torch.zeros(4, 4, 16, 16)
    foreign = Quadruple(
        noise_of((4, 64, 4, 4), 0), Cameras.default_rig(16), views[0], views, {"guidance_scale": 1.0}
    )
    write_shard(tmp_path / "set" / "a.tar", [encode(foreign, "a")])
    assert main(["verify", str(tmp_path / "set"), "--device", "cpu", "--teacher", str(teacher)]) == 2
    error = capsys.readouterr().err
    assert "a does not record its teacher, seed, steps" in error and error.count("\n") == 1


def test_damaged_quadruple_names_its_shard(tmp_path):
    write_shard(tmp_path / "a.tar", [{"__key__": "x", "json": "{}", "noise.npy": b"junk"}])
    with pytest.raises(UserError, match=r"x in shard .*a\.tar is not a quadruple"):
        Quadruples(tmp_path)[0]
    with pytest.raises(UserError, match="dd3g simulate"):
        Quadruples([])


HUGE = io.BytesIO()
np.lib.format.write_array_header_1_0(HUGE, {"shape": (10**15,), "fortran_order": False, "descr": "<f2"})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("noise.npy", b""),
        ("noise.npy", b"PK\3\4 a zip"),
        ("noise.npy", HUGE.getvalue()),
        ("json", b"[" * 100_000),
        ("outputs.png", b"\x89PNG\r\n\x1a\n"),
    ],
)
def test_damaged_quadruples_never_raise_anything_else(tmp_path, name, content):
    write_quadruples(tmp_path, count=1)
    (sample,) = Shards(tmp_path)
    write_shard(tmp_path / "quadruples-00000.tar", [sample | {name: content}])
    with pytest.raises(
        UserError, match=r"q0 in shard .* is not a quadruple, or is damaged \(.*delete the shard"
    ):
        Quadruples(tmp_path)[0]


@pytest.mark.parametrize("kind", ["empty", "GIF", "bomb"])
def test_damaged_renders_never_raise_anything_else(tmp_path, monkeypatch, kind):
    write_renders(tmp_path, count=1)
    (sample,) = Shards(tmp_path)
    stream = io.BytesIO()
    Image.open(io.BytesIO(sample["rgba.png"])).save(stream, format="GIF")  # Pillow reads it, shards have PNG
    content = {"empty": b"", "GIF": stream.getvalue(), "bomb": sample["rgba.png"]}[kind]
    write_shard(tmp_path / "renders-00000.tar", [sample | {"rgba.png": content}])
    if kind == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match="object0 in shard .* is damaged or no render .*delete the"):
        RenderedObjects(tmp_path)[0]


def test_shards_of_pictures(tmp_path):
    rgba = ellipsoid_views(3)[:, 0]
    write_shard(tmp_path / "a.tar", [{"__key__": f"k{i}", "png": png(rgba[i])} for i in range(2)])
    write_shard(
        tmp_path / "b.tar", [{"__key__": "k2", "png": png(rgba[2])}, {"__key__": "k3", "png": b"junk"}]
    )
    inputs = open_inputs(tmp_path)
    assert len(inputs) == 4
    picture, about = inputs.picture(2, 0, 16)
    assert picture.shape == (4, 16, 16) and about == {"source": "k2"}
    assert torch.equal((picture * 255).round() / 255, picture)
    Image.fromarray(rgba[2]).save(tmp_path / "c.png")
    assert torch.equal(open_inputs(tmp_path / "c.png").picture(0, 0, 16)[0], picture)
    with pytest.raises(UserError, match="k3 in .*b.tar is not a PNG"):
        inputs.picture(3, 0, 16)


def rendered_shard(path, n=2):
    """As `dd3g data render` writes: two quads at elevation 10, one at 30; each view has its own red."""
    azimuth = [5.0, 95.0, 185.0, 275.0, 50.0, 140.0, 230.0, 320.0, 5.0, 95.0, 185.0, 275.0]
    elevation = [10.0] * 8 + [30.0] * 4
    cameras = Cameras.orbit(azimuth, elevation, 16)
    items = []
    for i in range(n):
        sheet = np.zeros((16, 16 * 12, 4), np.uint8)
        for v in range(12):
            sheet[4:12, 16 * v + 4 : 16 * v + 12] = (20 * v, 100 * i, 7, 255)
        meta = {
            "id": f"thing{i}", "style": "scan", "source": "x", "licence": "x", "cluster": 0, "variant": i,
            "size": 16, "viewmats": cameras.viewmats.tolist(), "K": cameras.Ks[0].tolist(),
            "azimuth": azimuth, "elevation": elevation, "novel": [],
            "quads": [[8, 9, 10, 11], [0, 1, 2, 3], [4, 5, 6, 7]],
        }  # fmt: skip
        depth = png((sheet[..., 3] > 0).astype(np.uint16) * 16384)
        items.append(
            {"__key__": f"t{i}", "rgba.png": png(sheet), "depth.png": depth, "json": json.dumps(meta)}
        )
    write_shard(path, items)


def test_rendered_objects_give_the_view_that_seed_and_index_choose(tmp_path, teacher):
    rendered_shard(tmp_path / "renders" / "renders-00000.tar")
    inputs = open_inputs(tmp_path / "renders")
    assert len(inputs) == 2
    seen = set()
    for seed in range(60):
        picture, about = inputs.picture(1, seed, 16)
        assert about["source"] == "thing1" and about["variant"] == 1 and about["style"] == "scan"
        colour = (picture[:3, 8, 8] * 255).round().int().tolist()
        assert colour == [20 * about["view"], 100, 7]
        seen.add(about["view"])
        assert torch.equal(inputs.picture(1, seed, 16)[0], picture)
    assert seen == set(range(8))  # those at the rig's elevation
    assert main(command(tmp_path / "renders", teacher, tmp_path / "set", "--seeds", "3")) == 0
    sources = [(q.meta["source"], q.meta["sample"], q.meta["view"]) for q in Quadruples(tmp_path / "set")]
    assert len(sources) == 6 and len({v for _, _, v in sources}) > 1


def test_time_limit_stops_between_shards(pictures, teacher, tmp_path, capsys):
    words = command(pictures, teacher, tmp_path / "set", "--per-shard", "1", "--json")
    assert main([*words, "--max-minutes", "0.0000001"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["written"] < 12 and not report["complete"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["complete"]


@pytest.mark.slow
def test_killed_at_random_and_started_again_makes_the_same_set(pictures, teacher, tmp_path):
    options = ("--per-shard", "1", "--seeds", "4", "--steps", "60")
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert main(command(pictures, teacher, whole, *options)) == 0
    words = [sys.executable, "-m", "distill.simulate", *command(pictures, teacher, torn, *options)]
    random = np.random.default_rng(0)
    for stop_after in (3, 11):
        process = subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT)
        while process.poll() is None and len(list(torn.glob("*.tar"))) < stop_after:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it finished before it was killed"
        done = {p.name: p.read_bytes() for p in torn.glob("*.tar")}
        assert stop_after <= len(done) < 24
        assert all((whole / name).read_bytes() == data for name, data in done.items())
        times = {name: (torn / name).stat().st_mtime_ns for name in done}
    subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, check=True)
    assert {k: v for k, v in digests(torn).items() if k[0] != "."} == digests(whole)
    assert all((torn / name).stat().st_mtime_ns == t for name, t in times.items())  # nothing was made twice
    assert len(Quadruples(torn)) == 24


@pytest.mark.slow
def test_two_processes_share_the_shards(pictures, teacher, tmp_path):
    options = ("--per-shard", "2", "--seeds", "2")
    assert main(command(pictures, teacher, tmp_path / "one", *options)) == 0
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    launch += "--num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0".split()
    launch += ["-m", "distill.simulate", *command(pictures, teacher, tmp_path / "two", *options, "--json")]
    done = subprocess.run(launch, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (report,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert report["written"] == 6 and report["complete"] and report["quadruples"] == 12
    assert digests(tmp_path / "two") == digests(tmp_path / "one")


def test_each_process_asks_its_own_gpu(monkeypatch):
    """A GPU that answers keeps memory for who asked: accelerate must have chosen it before."""
    events = []

    class State:
        def __init__(self, cpu):
            events.append("cpu" if cpu else "chosen")
            self.device = torch.device("cpu" if cpu else "cuda:3")

    def answer(name):
        events.append(f"asked {name}")
        return torch.device(name)

    monkeypatch.setattr("accelerate.PartialState", State)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("distill.simulate.find_device", answer)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: events.append(f"set {device}"))
    assert [_partial_state(name)[1].type for name in ("cuda", "cpu", "auto")] == ["cuda", "cpu", "cuda"]
    assert events == ["chosen", "asked cuda", "cpu", "asked cpu", "chosen", "set cuda:3"]


def test_noise_that_is_not_finite_names_its_shard(tmp_path):
    views = torch.zeros(4, 4, 16, 16)
    wrong = Quadruple(noise_of((4, 64, 4, 4), 0), Cameras.default_rig(16), views[0], views, {"seed": 0})
    wrong.noise[1, 2, 0, 0] = torch.inf
    write_shard(tmp_path / "a.tar", [encode(wrong, "x")])
    with pytest.raises(UserError, match=r"x in shard .*a\.tar .*it holds numbers that are not finite"):
        Quadruples(tmp_path)[0]


def test_a_set_has_one_maker_and_one_batch_size(pictures, teacher, tmp_path, capsys):
    out = tmp_path / "set"
    with only_user(out):
        assert main(command(pictures, teacher, out)) == 2
    assert "set is in use by process" in capsys.readouterr().err and not list(out.glob("*.tar"))
    assert main(command(pictures, teacher, out, "--batch-size", "2")) == 0
    assert main(command(pictures, teacher, out, "--batch-size", "3")) == 2
    assert "batch_size 2 (now 3)" in capsys.readouterr().err


def test_processes_on_cpus_share_the_work_by_default(monkeypatch):
    """`torchrun -m distill.simulate` with --device auto, where there is no GPU."""
    asked = []
    monkeypatch.setattr("accelerate.PartialState", lambda cpu: asked.append(cpu) or _Lone())
    for cuda, device in ((False, "auto"), (True, "auto"), (True, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        _partial_state(device)
    assert asked == [True, False, True]


class _Lone:
    device = torch.device("cpu")


@pytest.mark.slow
def test_torchrun_makes_each_shard_once(pictures, teacher, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [str(pictures), "--teacher", str(teacher), "--output", str(tmp_path / "set"), "--per-shard", "3"]
    done = subprocess.run(
        [*torchrun, "-m", "distill.simulate", *words, "--json"],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (report,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert report["written"] == report["shards"] == 4 and report["quadruples"] == 12

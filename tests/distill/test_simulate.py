"""`dd3g simulate`: the teacher's ODE from each noise, written as a set of quadruples."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from stand_ins.simulated_sets import command, digests, ellipsoid_views

from dd3g.diffusion import sample
from dd3g.io.shards import write_shard
from distill.quadruples import Quadruples, noise_of
from distill.simulate import main
from distill.simulation.inputs import seed_of
from distill.simulation.ode import simulate
from distill.teachers import load


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


def test_a_first_try_that_made_nothing_binds_to_nothing(pictures, teacher, tmp_path):
    out = tmp_path / "set"
    assert main(command(pictures, teacher, out, "--limit", "3", "--seeds", "9", "--max-minutes", "1e-9")) == 0
    assert [p.name for p in out.iterdir()] == ["simulate.json"]
    assert main(command(pictures, teacher, out, "--limit", "2", "--steps", "5", "--seeds", "1")) == 0
    settings = json.loads((out / "simulate.json").read_text())
    assert (settings["pictures"], settings["steps"], settings["seeds"]) == (2, 5, 1)


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

    monkeypatch.setattr("distill.simulation.generate_shards.simulate", overflows)
    assert main(command(pictures, teacher, tmp_path / "set", "--seeds", "1")) == 1
    assert "views hold numbers that are not finite: give --precision bfloat16" in capsys.readouterr().err
    assert len(Quadruples(tmp_path / "set")) == 5


def test_a_set_within_the_folder_of_its_pictures_goes_on(pictures, teacher, tmp_path, capsys):
    """Its shards were inputs of another kind when the same command was started again."""
    words = command(pictures, teacher, pictures / "quadruples", "--seeds", "1", "--json")
    for written in (1, 0):
        assert main(words) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["written"], report["present"]) == (written, 1 - written)
    (tmp_path / "link").symlink_to(pictures)
    assert main(command(pictures, teacher, tmp_path / "link")) == 2
    assert "is the source and the output: give another --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    "case", ["empty", "missing", "teacher", "file", "device", "guidance", "seed", "foreign"]
)
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
    elif case == "seed":
        more = ["--seed", str(2**64)]
    else:
        inputs = tmp_path / "foreign"
        write_shard(inputs / "a.tar", [{"__key__": "a", "txt": "hello"}])
    assert main(command(inputs, teacher, out, *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "a bug" not in error

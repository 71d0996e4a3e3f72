"""`dd3g simulate verify`: whether shards are whole and are what their teacher makes."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from stand_ins.simulated_sets import command

from dd3g.cameras import Cameras
from dd3g.errors import UserError
from dd3g.io.shards import Shards, write_shard
from distill.quadruples import Quadruple, decode, encode, noise_of
from distill.simulate import main
from distill.simulation.verify import verify
from distill.teachers import load


def test_verify_says_whether_teacher_and_shards_agree(pictures, teacher, tmp_path, capsys, monkeypatch):
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

    # A teacher that overflows, in half precision say: NaN is less than no tolerance.
    broken = SimpleNamespace(outputs=torch.full((1, *quadruple.outputs.shape), torch.nan))
    monkeypatch.setattr("distill.simulation.verify.simulate", lambda *_: broken)
    report = verify(out, model, 6)
    assert not report["agrees"] and report["max_difference"] == 1

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

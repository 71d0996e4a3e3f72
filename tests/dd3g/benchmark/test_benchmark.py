from __future__ import annotations

import json

import pytest
from stand_ins.infer_command import ROOT

import dd3g.benchmark.pose
from dd3g.benchmark.__main__ import main
from dd3g.benchmark.rasterize import race


@pytest.mark.slow
def test_pose_is_timed(capsys):
    assert main(["pose", "--repeats", "1", "--hypotheses", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["machine"]["cores"] >= 1
    parts = report["pose"]
    assert parts.pop("BlazePose, a person") is None
    assert set(parts) == {"restoration", "guided", "recovery, one", "recovery, 2"}
    assert all(seconds > 0 for seconds in parts.values())


def test_a_slow_part_fails_the_check(monkeypatch, capsys):
    times = dict.fromkeys(dd3g.benchmark.pose.FLOORS, 1.0)
    monkeypatch.setattr(dd3g.benchmark.pose, "time_pose", lambda *_: times)
    assert main(["pose", "--check"]) == 1
    assert "too slow: BlazePose, a person; restoration" in capsys.readouterr().err
    assert main(["pose"]) == 0


def test_a_missing_photo_is_named(tmp_path, capsys):
    # Without the detector's model the photo is not looked at.
    if dd3g.benchmark.pose.model_path("pose_detection") is None:
        pytest.skip("the detector's model has not been fetched")
    assert main(["pose", str(tmp_path / "none.jpg")]) == 2
    assert "none.jpg does not exist" in capsys.readouterr().err


def test_what_infer_lacks_is_named(tmp_path, capsys):
    lamp, none = str(ROOT / "assets/lamp.png"), str(tmp_path / "none.png")
    for words, message in (
        ([none], "none.png does not exist"),
        ([lamp, "--weights", "nope"], "no such weights"),
    ):
        assert main(["infer", *words]) == 2 and message in capsys.readouterr().err


def test_engines_are_raced():
    row = race(200, 16, 8.0, 1)
    assert (row["gaussians"], row["size"], row["floor"]) == (200, 16, 8.0)
    assert row["speedup"] == pytest.approx(row["tiles"]["both"] / row["dd3g"]["both"])

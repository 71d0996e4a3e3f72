from __future__ import annotations

import json

import pytest
from infer_command import ROOT
from typer.testing import CliRunner

from tools import benchmark, benchmark_pose


def test_pose_is_timed():
    words = ["pose", "--repeats", "1", "--hypotheses", "2", "--json"]
    result = CliRunner().invoke(benchmark.app, words)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["machine"]["cores"] >= 1
    parts = report["pose"]
    assert parts.pop("BlazePose, a person") is None
    assert set(parts) == {"restoration", "guided", "recovery, one", "recovery, 2"}
    assert all(seconds > 0 for seconds in parts.values())


def test_a_slow_part_fails_the_check(monkeypatch):
    def slow(*_):
        return dict.fromkeys(benchmark_pose.FLOORS, 1.0)

    monkeypatch.setattr(benchmark_pose, "time_pose", slow)
    result = CliRunner().invoke(benchmark.app, ["pose", "--check"])
    assert result.exit_code == 1
    assert "too slow: BlazePose, a person, restoration" in result.output


def test_a_missing_photo_is_named(tmp_path):
    result = CliRunner().invoke(benchmark.app, ["pose", str(tmp_path / "none.jpg")])
    # Without the detector's model the photo is not looked at.
    if benchmark_pose.model_path("pose_detection") is None:
        pytest.skip("the detector's model has not been fetched")
    assert result.exit_code == 2 and "none.jpg does not exist" in result.output


def test_what_infer_lacks_is_named(tmp_path):
    lamp, none = str(ROOT / "assets/lamp.png"), str(tmp_path / "none.png")
    for words, message in (
        ([none], "none.png does not exist"),
        ([lamp, "--weights", "nope"], "no such weights"),
    ):
        result = CliRunner().invoke(benchmark.app, ["infer", *words])
        assert result.exit_code == 2 and message in result.output


def test_engines_are_raced():
    row = benchmark._race(200, 16, 8.0, 1)
    assert (row["gaussians"], row["size"], row["floor"]) == (200, 16, 8.0)
    assert row["speedup"] == pytest.approx(row["tiles"]["both"] / row["dd3g"]["both"])

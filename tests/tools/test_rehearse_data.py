"""The rehearsal of a whole dataset, small."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from dd3g.command.run import run_command
from dd3g.io.shards import write_shard
from tools import rehearse_data
from tools.rehearse_data import Step, curve, difference, look_at_batches, run_step, summary


def command(*words):
    return run_command(rehearse_data.main, [str(w) for w in words], "rehearse_data")


@pytest.mark.slow
def test_every_step_runs_and_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # from any folder, to a relative one
    output = Path("rehearsal")
    assert command(output, "--count", 30, "--kills", 2, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pictures"] + sum(report["missing"].values()) == 30 and report["verified"] is True
    assert report["killed"]["kills"] == 2 and report["killed"]["sets"] >= 1
    assert not (output / "killed").exists()
    assert set(report["megabytes"]) == {"prompts", "synthesize", "verify", "stats"}
    assert report["megabytes"]["synthesize"] > 20
    total = report["seconds"].pop("total")
    assert total == pytest.approx(sum(report["seconds"].values()), abs=0.2)
    assert json.loads((output / "rehearsal.json").read_text())["pictures"] == report["pictures"]
    assert (output / "stats.html").is_file() and (output / "set" / "index.json").is_file()
    ET.fromstring((output / "rehearsal.svg").read_text())
    assert command(output) == 2 and "is there already" in capsys.readouterr().err


def test_curve_follows_memory_and_shards():
    steps = [
        Step("first", 10.0, 100.0, [(0.0, 50.0, 0), (5.0, 100.0, 1)]),
        Step("second", 30.0, 200.0, [(0.0, 200.0, 2), (30.0, 100.0, 4)], {"pictures": 4, "bytes": 2e9}),
    ]
    lines = [e for e in ET.fromstring(curve(steps)) if e.tag.endswith("polyline")]
    done, memory = ([tuple(map(float, p.split(","))) for p in e.get("points").split()] for e in lines)
    assert [x for x, _ in memory] == sorted(x for x, _ in memory) and len(memory) == 4
    assert memory[2][1] == min(y for _, y in memory)  # the most memory is at the top
    assert [y for _, y in done] == sorted((y for _, y in done), reverse=True)
    assert summary([steps[0], Step("x"), Step("verify", output={"ok": True}), steps[-1]])["verified"] is True


def test_a_step_that_fails_is_named_and_heard(tmp_path, capsys):
    words = "import sys; print('no room', file=sys.stderr); raise SystemExit(3)"
    with pytest.raises(rehearse_data.UserError, match="prompts ended with exit code 3"):
        run_step("prompts", ["-c", words], tmp_path)
    assert capsys.readouterr().err == "no room\n"


def test_a_step_may_print_much(tmp_path):
    step = run_step("prompts", ["-c", "print('[' + '1, ' * 300_000 + '1]')"], tmp_path)
    assert len(step.output) == 300_001


@pytest.mark.parametrize("finished", [False, True])
def test_a_failure_leaves_no_folder_but_one_with_pictures(tmp_path, monkeypatch, capsys, finished):
    def fail(name, command, folder):
        if name == "synthesize":
            raise rehearse_data.UserError("no room")
        folder.mkdir(parents=True)
        if finished:
            (folder / "pictures-00000.json").touch()

    monkeypatch.setattr(rehearse_data, "run_step", fail)
    assert command(tmp_path / "rehearsal") == 2
    said = capsys.readouterr().err
    assert "no room" in said
    assert (tmp_path / "rehearsal").exists() == finished == ("is kept" in said)


def test_what_a_kill_must_not_do_is_seen(tmp_path):
    parts = tmp_path / "parts" / "pictures-00000"
    for number in range(2):
        write_shard(parts / f"00-{number:05d}.tar", [{"__key__": "a", "png": b"x"}])
    before = look_at_batches(tmp_path, {})
    assert len(before) == 2 and look_at_batches(tmp_path, before) == before
    first, second = sorted(before)
    with pytest.raises(rehearse_data.UserError, match="00-00001.tar was made twice"):
        look_at_batches(tmp_path, before | {second: 1})
    first.unlink()
    with pytest.raises(rehearse_data.UserError, match="00-00000.tar was lost by a kill"):
        look_at_batches(tmp_path, before)
    (tmp_path / "pictures-00000.json").touch()  # it went into the shard
    assert list(look_at_batches(tmp_path, before)) == [second]
    second.write_bytes(second.read_bytes()[:700])
    with pytest.raises(rehearse_data.UserError, match="00-00001.tar is damaged"):
        look_at_batches(tmp_path, {})


def test_sets_are_the_same_but_for_seconds(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, seconds in ((one, 1.0), (other, 2.0)):
        folder.mkdir()
        (folder / "pictures-00000.tar").write_bytes(b"pictures")
        (folder / "pictures-00000.json").write_text(json.dumps({"count": 3, "seconds": seconds}))
    assert difference(one, other) == ""
    (other / "pictures-00000.json").write_text(json.dumps({"count": 4, "seconds": 1.0}))
    assert difference(one, other) == "pictures-00000.json"
    (one / "index.json").touch()
    assert difference(one, other) == difference(other, one) == "index.json"
    (one / "index.json").unlink()
    (other / "pictures-00000.tar").write_bytes(b"pictured")
    assert difference(one, other) == "pictures-00000.json"
    (other / "pictures-00000.json").unlink()
    (one / "pictures-00000.json").unlink()
    assert difference(one, other) == "pictures-00000.tar"

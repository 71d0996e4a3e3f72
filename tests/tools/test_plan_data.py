"""What a set will cost, from figures given and from a set that was made."""

import json

import pytest
from stand_ins.unfinished_set import unfinished_set

from dd3g.command.run import run_command
from tools import plan_data
from tools.plan_data import Measured, plan


def command(*words):
    return run_command(plan_data.main, [str(w) for w in words], "plan_data", needs_words=False)


def test_figures_by_hand():
    found = plan(Measured(seconds=1.5, bytes=100_000, acceptance=0.75), 120_000, 8)
    assert found.tries == 160_000 and found.shards == 120
    assert found.gpu_hours == pytest.approx(160_000 * 1.5 / 3600)
    assert found.wall_hours == pytest.approx(found.gpu_hours / 8)
    assert found.gigabytes == pytest.approx(12.0)


def test_the_last_shards_leave_gpus_idle():
    found = plan(Measured(1.0, 1.0, 1.0), 10_000, 8)
    assert found.wall_hours == pytest.approx(2 * 1000 / 3600)  # ten shards: two go through in a row
    assert plan(Measured(1.0, 1.0, 1.0), 500, 64).wall_hours == pytest.approx(500 / 3600)


def test_command_from_given_figures(capsys):
    given = ("--seconds-per-picture", 2, "--bytes-per-picture", 5e4, "--acceptance", 0.5)
    assert command(*given, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["measured"]["seconds"] == 2 and report["measured"]["acceptance"] == 0.5
    assert [(p["pictures"], p["gpus"]) for p in report["plans"]] == [
        (n, g) for n in (120_000, 10_000_000) for g in (1, 8, 64)
    ]
    assert report["plans"][0]["gpu_hours"] == pytest.approx(120_000 * 2 * 2 / 3600)
    assert report["plans"][3]["gigabytes"] == pytest.approx(500)
    assert command(*given, "--pictures", 1000, "--gpus", 4) == 0
    table = capsys.readouterr().out
    assert "gpu_hours" in table and "1 000" in table and "leave out deduplication" in table
    assert command("--seconds-per-picture", 2, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["measured"]["bytes"] == 80e3 and report["measured"]["acceptance"] == 0.7


def test_command_from_a_set(tmp_path, capsys):
    unfinished_set(tmp_path / "set")
    assert command(tmp_path / "set", "--pictures", 1000, "--gpus", 1, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    figures = plan_data.read_figures(plan_data.Storage(tmp_path / "set"))
    seconds = figures.seconds["wall"] / figures.tries
    kept = figures.pictures + figures.in_work
    assert report["measured"]["seconds"] == pytest.approx(seconds)
    assert report["plans"][0]["gpu_hours"] == pytest.approx(1000 * figures.tries / kept * seconds / 3600)
    assert report["plans"][0]["gigabytes"] == pytest.approx(figures.bytes / figures.pictures / 1e6)


def test_a_set_whose_pictures_were_all_rejected(tmp_path, capsys):
    from data_gen.synthesize import main

    (tmp_path / "p.txt").write_text("a fox\na chair\n")
    words = [f"prompts={tmp_path / 'p.txt'}", f"output={tmp_path / 'set'}", "device=cpu", "attempts=2"]
    assert main([*words, "model.path=shapes", "matte.size=32", "filters.max_colourfulness=0"]) == 0
    capsys.readouterr()
    assert command(tmp_path / "set") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no picture in its finished shards, its tries were rejected as garish: change" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give either a set"),
        (("nowhere", "--seconds-per-picture", 1), "nowhere already holds what --seconds-per-picture gives"),
        (("nowhere", "--bytes-per-picture", 1), "nowhere already holds what --bytes-per-picture gives"),
        (("nowhere", "--acceptance", 0.7), "nowhere already holds what --acceptance gives"),
        (("--seconds-per-picture", 0), "seconds a picture must be above 0, got 0"),
        (("nowhere",), "is not a set of pictures"),
        (("--seconds-per-picture", 1, "--acceptance", 0), "acceptance must be above 0"),
        (("--seconds-per-picture", -1), "seconds a picture must be above 0"),
    ],
)
def test_unusable_figures_end_in_one_line(words, message, capsys):
    assert command(*words) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_the_help_tells_the_defaults(capsys):
    assert command("--help") == 0
    assert "[default: 80e3]" in " ".join(capsys.readouterr().out.split())

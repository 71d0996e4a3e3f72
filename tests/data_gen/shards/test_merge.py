from __future__ import annotations

import io
import json
import os
import shutil
import signal

import pytest
from PIL import Image
from stand_ins.made_up_dataset import Log, contents, dataset_spec, made_set, prompts

from data_gen.prompts.lists import Prompt, prompt_id
from data_gen.reports.verify import verify
from data_gen.shards import merge as merging
from data_gen.shards.generate import generate_shards
from data_gen.shards.merge import merge
from data_gen.shards.process_group import ProcessGroup
from data_gen.shards.storage import Storage
from dd3g.command.progress import Progress
from dd3g.errors import UserError
from dd3g.io.shards import Shards

pytestmark = pytest.mark.usefixtures("filters")


def test_merge(tmp_path, capsys):
    """Sets of prompts 0-19 and 0-39: what both have comes from the first, or from the one that has it."""
    a, b = made_set(tmp_path / "a"), made_set(tmp_path / "b", 40, seed=1)
    out = tmp_path / "out"
    assert merging.main([str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    ids_a, ids_b = ({s["__key__"] for s in Shards(f)} for f in (tmp_path / "a", tmp_path / "b"))
    ids = [s["__key__"] for s in Shards(out)]
    assert set(report["collisions"]) == ids_a & ids_b and report["collisions"]
    assert ids_b - ids_a and set(ids) == (ids_a | ids_b) - set(report["duplicates"])
    assert len(ids) == len(set(ids)) == report["pictures"]
    assert report["asked"] == 40 == len((out / "prompts.jsonl").read_text().splitlines())
    pictures = {s["__key__"]: s["png"] for f in (tmp_path / "b", tmp_path / "a") for s in Shards(f)}
    assert all(s["png"] == pictures[s["__key__"]] for s in Shards(out))
    for k in range(3):  # nothing was left out of the first set: its shards are the same bytes
        name = f"pictures-{k:05d}.tar"
        assert (out / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    index = json.loads((out / "index.json").read_text())
    assert set(index["missing_ids"]) == {p.id for p in prompts(40)} - set(ids)
    assert verify(Storage(out))["problems"] == []
    before = contents(out)
    merge([a, b], Storage(out), 4)
    assert contents(out) == before
    assert merging.main([str(tmp_path / "a"), str(tmp_path / "b"), "-o", str(out)]) == 0
    assert "is in more than one set: kept that of the first" in capsys.readouterr().err


def test_near_duplicates_of_other_sets_are_left_out(tmp_path):
    """The same pictures under other ids."""
    first = made_set(tmp_path / "a")

    def copied(text, seed):
        return twins[text.removeprefix("again ")]

    shards = Shards(tmp_path / "a")
    texts = [json.loads(s["json"])["prompt"] for s in shards]
    twins = {t: Image.open(io.BytesIO(s["png"])) for t, s in zip(texts, shards, strict=True)}
    log = Log(picture=copied)
    one = dataset_spec(tmp_path / "b", 3, log, distance=4)
    again = [Prompt(prompt_id(f"again {t}"), f"again {t}") for t in texts]
    generate_shards(type(one)(**{**vars(one), "prompts": again}), ProcessGroup(), Progress(show=False))
    report = merge([first, Storage(tmp_path / "b")], Storage(tmp_path / "out"), 4)
    assert set(report["duplicates"]) == {p.id for p in again} and report["collisions"] == []
    assert report["missing"]["duplicate"] == len(again) and verify(Storage(tmp_path / "out"))["ok"]
    kept = merge([first, Storage(tmp_path / "b")], Storage(tmp_path / "all"), -1)
    assert kept["duplicates"] == [] and kept["pictures"] == 2 * len(again)
    assert verify(Storage(tmp_path / "all"))["ok"]


def test_merging_a_set_with_its_copy_adds_no_shard(tmp_path):
    a = made_set(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    merge([a], Storage(tmp_path / "one"), 4)
    report = merge([a, Storage(tmp_path / "b")], Storage(tmp_path / "both"), 4)
    names = lambda folder: sorted(p.name for p in (tmp_path / folder).iterdir())  # noqa: E731
    assert names("both") == names("one") and len(Shards(tmp_path / "both")) == report["pictures"]
    index = json.loads((tmp_path / "both/index.json").read_text())
    assert all(shard["count"] for shard in index["shards"])
    assert verify(Storage(tmp_path / "both"))["problems"] == []
    # What a third set adds stands behind them.
    c = made_set(tmp_path / "c", 30, seed=1)
    report = merge([a, Storage(tmp_path / "b"), c], Storage(tmp_path / "three"), 4)
    assert verify(Storage(tmp_path / "three"))["ok"]
    assert len(Shards(tmp_path / "three")) == report["pictures"] > index["pictures"]


def test_a_killed_merge_goes_on(tmp_path):
    a, b = made_set(tmp_path / "a"), made_set(tmp_path / "b", 30, seed=1)
    merge([a, b], Storage(tmp_path / "whole"), 4)
    for call in (1, 4, 7):
        child = os.fork()
        if not child:
            calls, replace = [], os.replace

            def counting(source, target):
                calls.append(target)
                if len(calls) == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                replace(source, target)

            os.replace = counting
            merge([a, b], Storage(tmp_path / "killed"), 4)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    merge([a, b], Storage(tmp_path / "killed"), 4)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_wrong_merges(tmp_path):
    a = made_set(tmp_path / "a")
    with pytest.raises(UserError, match="a is one of the sets to merge"):
        merge([a], a, 4)
    b = made_set(tmp_path / "b", 30, seed=1)
    merge([a], Storage(tmp_path / "out"), 4)
    with pytest.raises(UserError, match="out was started with other options: sets was "):
        merge([a, b], Storage(tmp_path / "out"), 4)
    b.delete("index.json")
    with pytest.raises(UserError, match="b is not complete, it has no index.json"):
        merge([a, b], Storage(tmp_path / "other"), 4)
    b.write("index.json", "[]")
    with pytest.raises(UserError, match="index.json is damaged .*verify --write-index"):
        merge([a, b], Storage(tmp_path / "other"), 4)

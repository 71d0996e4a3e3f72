from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from stand_ins.made_up_dataset import Log, contents, dataset_spec, prompts, verdicts

from data_gen.filters.duplicates import near_duplicates
from data_gen.shards.deduplicate import plan
from data_gen.shards.generate import generate_shards
from data_gen.shards.manifest import ShardManifest, finished_shards
from data_gen.shards.process_group import ProcessGroup
from data_gen.shards.storage import Storage
from dd3g.command.progress import Progress
from dd3g.errors import UserError
from dd3g.io.shards import Shards

DISTANCE = 18  # so wide that many of the made-up pictures are near duplicates
SET = ["options.json", "prompts.jsonl", "index.json", "README.md"]


def quiet():
    return Progress(show=False)


def made(folder, count=40, distance=DISTANCE, **more):
    """A set in which some pictures are near duplicates by chance."""
    log = Log()
    return generate_shards(
        dataset_spec(folder, count, log, distance=distance, **more), ProcessGroup(), quiet()
    ), log


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference") / "set"
    with pytest.MonkeyPatch.context() as patch:
        verdicts(patch)
        report, log = made(folder)
    return folder, report, log


def all_records(folder):
    storage = Storage(folder)
    return [r for s in finished_shards(storage) for r in ShardManifest.read(storage, s).records]


def test_the_whole_set(reference):
    folder, report, _ = reference
    names = {f"pictures-{s:05d}.{e}" for s in range(5) for e in ("tar", "json")}
    assert set(contents(folder)) == names | set(SET) and not (folder / "parts").exists()
    index = json.loads((folder / "index.json").read_text())
    assert (report["complete"], report["asked"], report["shards"]) == (True, 40, 5)
    assert (
        index["pictures"] == report["pictures"] == len(Shards(folder)) == 40 - sum(report["missing"].values())
    )
    assert sum(index["missing"].values()) == len(index["missing_ids"]) > 0
    assert [s["tar"] for s in index["shards"]] == sorted(n for n in names if n.endswith(".tar"))
    assert index["made"]["licence"] == {"CC0-1.0": index["pictures"]}
    assert index["tries"] == index["pictures"] + sum(index["rejected"].values())
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: CC0-1.0\n") and f"{index['pictures']} RGBA pictures" in card


def test_no_near_duplicate_is_left_and_earlier_pictures_stay(reference):
    folder, report, _ = reference
    records = all_records(folder)
    hashes = np.array([int(r["hash"], 16) for r in records], np.uint64)
    assert (near_duplicates(hashes, DISTANCE) == -1).all()
    assert report["rejected"]["duplicate"] > 5 and max(r["round"] for r in records) >= 1
    # Of two that are alike at first, the later prompt was drawn again.
    order = {p.id: i for i, p in enumerate(prompts(40))}
    storage = Storage(folder)
    for shard in finished_shards(storage):
        for lost in ShardManifest.read(storage, shard).rejections:
            if lost["reason"] == "duplicate" and lost["lost"] == 1:
                value = int(lost["hash"], 16)
                first = [r for r in records if bin(int(r["hash"], 16) ^ value).count("1") <= DISTANCE]
                assert any(order[r["id"]] < order[lost["id"]] and r["round"] == 0 for r in first)


def test_nothing_is_drawn_twice(reference):
    _, report, log = reference
    tries = [t for b in log.batches for t in b]
    assert len(tries) == len(set(tries)) == report["tries"]


def test_a_finished_set_is_left_alone(filters, tmp_path):
    made(tmp_path)
    before = contents(tmp_path)
    report, log = made(tmp_path)
    assert log.opened == 0 and report["drawn"] == 0 and contents(tmp_path) == before


def test_minus_one_keeps_duplicates(filters, tmp_path):
    report, _ = made(tmp_path, distance=-1)
    assert "duplicate" not in report["rejected"] and max(r["round"] for r in all_records(tmp_path)) == 0


def test_ranks_of_their_own_make_the_same_set(filters, tmp_path, reference):
    """Three machines without a way to talk; each is started again until all is done."""
    said = []
    for turn in range(20):
        one = dataset_spec(tmp_path, 40, distance=DISTANCE)
        report = generate_shards(one, ProcessGroup(turn % 3, 3, together=False), quiet())
        said.append(report["waiting"])
        if turn % 3 == 0 and not report["waiting"]:
            break
    assert said[0].startswith("other ranks to make 3 shards (first pictures-00001): start the same command")
    assert any("other ranks to replace duplicates in " in s for s in said)
    assert contents(tmp_path) == contents(reference[0])


def test_another_number_of_ranks_goes_on_with_the_same_set(filters, tmp_path, reference):
    generate_shards(
        dataset_spec(tmp_path, 40, distance=DISTANCE), ProcessGroup(1, 2, together=False), quiet()
    )
    made(tmp_path)
    assert contents(tmp_path) == contents(reference[0])


def test_a_bucket_holds_the_same_set(filters, tmp_path, reference):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.store.clear()
    made("memory://bucket/set")
    (tmp_path / "set").mkdir()
    for path in memory.find("/bucket/set"):
        (tmp_path / "set" / Path(path).name).write_bytes(memory.cat_file(path))
    assert contents(tmp_path / "set") == contents(reference[0])


def test_a_bucket_that_fails_now_and_then(filters, tmp_path, reference, monkeypatch):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.store.clear()
    put, calls = type(memory).put_file, []

    def failing(self, *args, **more):
        calls.append(args)
        if len(calls) % 9 == 0:
            raise ConnectionError("the network is away")
        return put(self, *args, **more)

    monkeypatch.setattr(type(memory), "put_file", failing)
    failures = 0
    while True:
        try:
            made("memory://bucket/shaky")
            break
        except UserError as error:
            assert "cannot write memory://bucket/shaky/p" in str(error) and "the network is away" in str(
                error
            )
            failures += 1
    assert 3 < failures < 20
    for path in memory.find("/bucket/shaky"):
        (tmp_path / Path(path).name).write_bytes(memory.cat_file(path))
    assert contents(tmp_path) == contents(reference[0])


def test_a_shard_that_was_deleted_is_made_again(filters, tmp_path, reference):
    made(tmp_path)
    for suffix in (".tar", ".json"):
        (tmp_path / f"pictures-00003{suffix}").unlink()
    made(tmp_path)
    assert contents(tmp_path) == contents(reference[0])


def test_a_rank_alone_cleans_up_after_itself(filters, tmp_path):
    """Killed among the chunks of a shard that is finished, it leaves none of them for a later try."""
    spec, group = dataset_spec(tmp_path, 40, distance=DISTANCE), ProcessGroup(1, 2, together=False)
    generate_shards(spec, group, quiet())
    assert 1 in finished_shards(spec.storage) and not spec.storage.names("parts/pictures-00001")
    spec.storage.write("parts/pictures-00001/00-00001.tar", b"")
    generate_shards(spec, group, quiet())
    assert not spec.storage.names("parts/pictures-00001")


def killed(folder, events):
    """Start on the set in a forked process that dies at its nth event, such as a file it opens or renames.

    Returns whether it was done before.
    """
    child = os.fork()
    if not child:
        try:
            left = iter(range(events))  # counted, not timed: the same moments on any machine
            sys.addaudithook(lambda *_: next(left, None) is None and os._exit(9))
            made(folder)
            os._exit(0)
        except BaseException:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 0


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_moments(filters, tmp_path, reference, seed):
    rng = random.Random(seed)
    kills = 0
    while not killed(tmp_path, rng.randrange(1, 20 * (kills + 2))):
        kills += 1
        for path in tmp_path.rglob("*.tar"):
            Shards(path)  # raises where one is torn
        assert kills < 200
    assert kills > 20
    assert contents(tmp_path) == contents(reference[0])


def test_other_options_are_refused(filters, tmp_path):
    made(tmp_path)
    with pytest.raises(UserError, match="filters.duplicate_distance was 18, now 3; use those, give another"):
        made(tmp_path, distance=3)
    with pytest.raises(UserError, match="count was 40, now 41"):
        made(tmp_path, count=41)
    (tmp_path / "options.json").unlink()
    with pytest.raises(UserError, match="holds pictures made with other options: give another output"):
        made(tmp_path, count=41)
    made(tmp_path)
    assert (tmp_path / "options.json").exists()


def test_a_shard_made_with_other_options_is_named(filters, tmp_path):
    made(tmp_path / "a")
    made(tmp_path / "b", seed=1, distance=13)
    for suffix in (".tar", ".json"):
        (tmp_path / f"b/pictures-00001{suffix}").replace(tmp_path / f"a/pictures-00001{suffix}")
    with pytest.raises(UserError, match="pictures-00001.tar was made with other options than this set"):
        made(tmp_path / "a")


def test_prompts_must_differ(tmp_path):
    one = dataset_spec(tmp_path, 3)
    twice = type(one)(**{**vars(one), "prompts": [*one.prompts, one.prompts[0]]})
    with pytest.raises(UserError, match="appears twice: drop one"):
        generate_shards(twice, ProcessGroup(), quiet())


def test_a_damaged_manifest_is_named(filters, tmp_path):
    made(tmp_path)
    (tmp_path / "pictures-00001.json").write_text("{")
    with pytest.raises(UserError, match="pictures-00001.json is damaged .*delete it and pictures-00001.tar"):
        made(tmp_path)


@dataclass(frozen=True)
class Threads(ProcessGroup):
    """ProcessGroup of one launch as threads of this process."""

    barrier: threading.Barrier | None = None

    def wait(self):
        self.barrier.wait(timeout=100)


@pytest.mark.parametrize("slow", [0, 1])
def test_a_rank_that_plans_late_meets_the_others(filters, tmp_path, reference, monkeypatch, slow):
    """It finds what the others have replaced already, and would skip a round of waiting."""
    barrier, plans, late = threading.Barrier(2), {0: [], 1: []}, threading.local()

    def planned(one):
        time.sleep(0.2 if late.rank == slow else 0)
        plans[late.rank].append(plan(one))
        return plans[late.rank][-1]

    monkeypatch.setattr("data_gen.shards.generate.plan", planned)

    def work(rank):
        late.rank = rank
        return generate_shards(
            dataset_spec(tmp_path, 40, distance=DISTANCE), Threads(rank, 2, barrier=barrier), quiet()
        )

    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(work, range(2)))
    assert plans[0] == plans[1] and len(plans[0]) > 2
    assert all(report["complete"] for report in reports)
    assert contents(tmp_path) == contents(reference[0])


def test_plan_waits_for_all_shards(filters, tmp_path):
    one = dataset_spec(tmp_path, 40)
    assert plan(one).unfinished == [0, 1, 2, 3, 4]


def test_ranks():
    with pytest.raises(UserError, match="--rank and --world belong together"):
        ProcessGroup.find(rank=1)
    with pytest.raises(UserError, match="rank 2 of 2"):
        ProcessGroup.find(2, 2)
    assert (
        ProcessGroup.find(1, 4) == ProcessGroup(1, 4, 1, together=False) and ProcessGroup.find(0, 1).together
    )


def test_processes_of_their_own_share_the_gpus_of_a_machine(monkeypatch):
    import torch

    current = []
    monkeypatch.setattr("dd3g.nn.checkpoint.find_device", torch.device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    for name, numbers in (("auto", (0, 1, 0, 1, 0)), ("cuda", (0, 1, 0, 1, 0)), ("cuda:1", (1,) * 5)):
        found = [ProcessGroup.find(rank, 5).device(name) for rank in range(5)]
        assert found == current == [torch.device("cuda", i) for i in numbers]
        current.clear()
    assert ProcessGroup().device("cpu") == torch.device("cpu") and current == []

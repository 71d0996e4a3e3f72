from __future__ import annotations

import json
import os
import signal
from concurrent.futures import Future
from dataclasses import replace

import pytest
from PIL import Image
from stand_ins.made_up_dataset import SIDE, Log, contents, dataset_spec, matted, picture, prompts

from data_gen.shards.dataset import PictureBackend, seed_of
from data_gen.shards.manifest import ShardManifest
from data_gen.shards.shard_worker import ShardWorker
from dd3g.errors import UserError
from dd3g.io.shards import Shards

pytestmark = pytest.mark.usefixtures("filters")


def make(one, log, shard=0):
    with log.open() as backend:
        return ShardWorker(one, shard, lambda: backend).make()


def test_seeds_depend_on_run_prompt_and_attempt_only():
    assert seed_of(0, "ab", 0) == 161789275079950
    assert len({seed_of(s, p, a) for s in (0, 1) for p in ("ab", "cd") for a in (0, 1)}) == 8


def test_a_shard_against_the_plain_way(tmp_path):
    """Prompt by prompt, attempt by attempt: the accepted pictures, the rejections and the missing."""
    log = Log()
    one = dataset_spec(tmp_path, 8, log)
    manifest = make(one, log)
    expected, rejected, missing = {}, set(), {}
    for prompt in one.prompts:
        for attempt in range(3):
            image = picture(prompt.text, seed_of(0, prompt.id, attempt))
            [cut] = matted([image]).result()
            red = None if cut is None else cut.rgba[..., 0].mean()
            reason = "no_object" if red is None else "" if red >= 97 else "too blue"
            if not reason:
                expected[prompt.id] = (attempt, image)
                break
            rejected.add((prompt.id, attempt, reason))
            missing[prompt.id] = reason
    missing = {i: r for i, r in missing.items() if i not in expected}
    assert expected and rejected and missing  # or this test shows nothing
    assert {(r["id"], r["attempt"], r["reason"]) for r in manifest.rejections} == rejected
    assert manifest.missing == missing and manifest.count == len(expected)
    shards = Shards(tmp_path / "pictures-00000.tar")
    assert [shards.key(i) for i in range(len(shards))] == [p.id for p in one.prompts if p.id in expected]
    for sample in shards:
        attempt, image = expected[sample["__key__"]]
        record = json.loads(sample["json"])
        assert record["attempt"] == attempt and record["seed"] == seed_of(0, record["id"], attempt)
        with open(tmp_path / "x.png", "wb") as stream:
            stream.write(sample["png"])
        assert Image.open(tmp_path / "x.png").tobytes() == image.tobytes()


def test_records_and_manifest(tmp_path):
    log = Log()
    manifest = make(dataset_spec(tmp_path, 8, log), log)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "parts",
        "pictures-00000.json",
        "pictures-00000.tar",
    ]
    assert ShardManifest.read(dataset_spec(tmp_path).storage, 0) == manifest
    record = json.loads(Shards(tmp_path)[0]["json"])
    assert set(record) == {
        "id", "prompt", "group", "noun", "style", "seed", "attempt", "model", "licence", "matte", "size",
        "scores", "hash",
    }  # fmt: skip
    assert (record["model"], record["licence"], record["size"]) == ("made up", "CC0-1.0", SIDE)
    assert len(record["hash"]) == 16 and record["prompt"].startswith("a thing of number")
    assert manifest.made["licence"] == {"CC0-1.0": manifest.count}
    assert manifest.bytes == (tmp_path / "pictures-00000.tar").stat().st_size
    assert set(manifest.seconds) == {"draw", "finish", "wall"}
    assert set(manifest.records[0]) == {"id", "seed", "attempt", "hash", "scores", "group", "style", "round"}


def test_tries_come_in_waves(tmp_path):
    log = Log()
    manifest = make(dataset_spec(tmp_path, 8, log), log)
    attempts = [[a for _, a in batch] for batch in log.batches]
    assert attempts[:3] == [[0, 0, 0], [0, 0, 0], [0, 0]]
    flat = [a for batch in attempts for a in batch]
    assert flat == sorted(flat) and max(flat) == 2
    assert len(flat) == manifest.count + len(manifest.rejections)
    order = [p.id for p in prompts(8)]
    second = [i for b in log.batches for i, a in b if a == 1]
    assert second == sorted(second, key=order.index)


def test_the_matte_of_a_batch_runs_while_the_next_is_drawn(tmp_path):
    """Mattes are only done when the next batch has been drawn: in turns, this would never end."""
    events, waiting = [], []

    def draw(batch):
        events.append("draw")
        for done, images in waiting:
            done.set_result(matted(images).result())
        waiting.clear()
        return [picture(d.prompt.text, d.seed) for d in batch]

    def matte(images):
        done = Future()
        if len([e for e in events if e == "draw"]) < 3:
            waiting.append((done, images))
            return done
        return matted(images)

    about = {"model": "m", "licence": "l", "matte": "n", "size": SIDE}
    log = Log()
    ShardWorker(dataset_spec(tmp_path / "a", 8, log), 0, lambda: PictureBackend(draw, matte, about)).make()
    again = ShardWorker(
        dataset_spec(tmp_path / "b", 8, log), 0, lambda: PictureBackend(draw, matted, about)
    ).make()
    first = (tmp_path / "a/pictures-00000.tar").read_bytes()
    assert first == (tmp_path / "b/pictures-00000.tar").read_bytes() and again.count


def test_a_picture_that_cannot_be_had_gives_its_reason(tmp_path):
    log = Log(picture=lambda text, seed: "unreadable" if text.endswith("3") else picture(text, seed))
    manifest = make(dataset_spec(tmp_path, 8, log), log)
    assert manifest.missing[prompts(8)[3].id] == "unreadable"
    assert manifest.rejected["unreadable"] == 3


def test_a_shard_without_any_picture(tmp_path):
    log = Log(picture=lambda text, seed: "unreadable")
    manifest = make(dataset_spec(tmp_path, 8, log), log)
    assert manifest.count == 0 and len(manifest.missing) == 8 and len(Shards(tmp_path)) == 0
    assert manifest.made["licence"] == {"CC0-1.0": 0} and manifest.made["model"] == {"made up": 0}


def in_child(work):
    """Run `work` in a forked process; its wait status."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    return os.waitpid(child, 0)[1]


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_every_commit_it_goes_on_to_the_same_bytes(tmp_path, after):
    """Each run is killed just before or after its third file appears; nothing committed is drawn again."""
    log = Log()
    make(dataset_spec(tmp_path / "whole", 12, log, shard_size=12), log)
    rename, runs, drawn = os.replace, 0, []

    def work():
        calls = []

        def deadly(source, target):
            calls.append(target)
            if len(calls) == 3 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)
            if len(calls) == 3 and after:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = deadly
        mine = Log(tmp_path / "log")
        size = 1 + runs % 5  # less memory, or more, than the run before
        one = dataset_spec(tmp_path / "killed", 12, mine, shard_size=12, batch_size=size)
        worker = ShardWorker(one, 0, lambda: None)
        with mine.open() as backend:
            worker.backend = lambda: backend
            worker.make()

    while True:
        committed = set()
        for path in sorted((tmp_path / "killed").glob("parts/*/*.tar")):
            committed |= {(v["id"], v["attempt"]) for v in json.loads(Shards(path)[-1]["json"])["verdicts"]}
        status = in_child(work)
        tries = {tuple(json.loads(t)) for t in (tmp_path / "log").read_text().splitlines()}
        (tmp_path / "log").write_text("")
        assert not committed & tries
        drawn += tries
        runs += 1
        if status == 0:
            break
        assert status == signal.SIGKILL and runs < 20
    assert runs > 3 and set(drawn) == {t for b in log.batches for t in b}
    whole, killed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert killed == whole and list(killed) == ["pictures-00000.json", "pictures-00000.tar"]


def replaced(folder, log, losers):
    one = dataset_spec(folder, 12, log, shard_size=12)
    before = make(one, log)
    ids = [r["id"] for r in before.records]
    with log.open() as backend:
        return before, ids, ShardWorker(one, 0, lambda: backend).replace({ids[i] for i in losers}, 1)


def test_losers_are_tried_again_and_the_others_kept(tmp_path):
    log = Log()
    before, ids, after = replaced(tmp_path, log, (0, 2))
    old = {r["id"]: r for r in before.records}
    lost = [r for r in after.rejections if r["reason"] == "duplicate"]
    assert [(r["id"], r["round"], r["lost"], r["hash"]) for r in lost] == [
        (ids[i], 0, 1, old[ids[i]]["hash"]) for i in (0, 2)
    ]
    assert after.round == 1
    for record in after.records:
        if record["id"] in (ids[0], ids[2]):
            assert record["round"] == 1 and record["attempt"] > old[record["id"]]["attempt"]
        else:
            assert record == old[record["id"]]
    assert set(after.missing) | {r["id"] for r in after.records} == {p.id for p in prompts(12)}
    assert len(Shards(tmp_path / "pictures-00000.tar")) == after.count


@pytest.mark.parametrize("call", range(1, 5))
@pytest.mark.parametrize("after", [False, True])
def test_killed_while_losers_are_replaced(tmp_path, call, after):
    log = Log()
    _, ids, _ = replaced(tmp_path / "whole", log, (0, 1, 2, 3))
    with log.open() as backend:
        ShardWorker(dataset_spec(tmp_path / "killed", 12, log, shard_size=12), 0, lambda: backend).make()
    rename = os.replace

    def work(deadly=True):
        calls = []

        def counting(source, target):
            calls.append(target)
            if deadly and len(calls) == call and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)
            if deadly and len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = counting
        mine = Log()
        with mine.open() as backend:
            one = dataset_spec(tmp_path / "killed", 12, mine, shard_size=12)
            worker = ShardWorker(one, 0, lambda: backend)
            if ShardManifest.read(one.storage, 0).round < 1:
                worker.replace({ids[i] for i in (0, 1, 2, 3)}, 1)
            worker.clean(1)

    assert in_child(work) == signal.SIGKILL
    assert in_child(lambda: work(deadly=False)) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_parts_of_others_are_refused(tmp_path):
    log = Log()
    one = dataset_spec(tmp_path, 8, log)
    part = "parts/pictures-00000/00-00000.tar"
    journal = {"options": one.fingerprint, "verdicts": [], "about": {}, "seconds": {}}
    one.storage.write_shard(part, [{"__key__": "_journal", "json": json.dumps(journal)}])
    with pytest.raises(UserError, match="cannot be used, they are of other prompts: delete that folder"):
        make(one, log)
    one.storage.write_shard(part, [{"__key__": "_journal", "json": json.dumps(journal | {"options": "x"})}])
    with pytest.raises(UserError, match="made with other options"):
        make(one, log)
    old = {"options": one.fingerprint}
    for damaged in ({"__key__": "a", "json": "{}"}, {"__key__": "_journal", "json": json.dumps(old)}):
        one.storage.write_shard(part, [damaged])
        with pytest.raises(UserError, match="holds no verdicts"):
            make(one, log)


def test_a_part_that_cannot_be_written_ends_the_line(tmp_path, monkeypatch):
    log = Log()
    one = dataset_spec(tmp_path, 8, log)

    def full(name, samples):
        raise UserError("the disk is full")

    monkeypatch.setattr(one.storage, "write_shard", full)
    with pytest.raises(UserError, match="the disk is full"):
        make(one, log)
    monkeypatch.undo()


def test_a_model_that_loses_a_picture_is_not_believed(tmp_path):
    about = {"model": "m", "licence": "l", "matte": "n", "size": SIDE}
    backend = PictureBackend(lambda batch: [], matted, about)
    with pytest.raises(RuntimeError, match="asked for 3 pictures, got 0"):
        ShardWorker(dataset_spec(tmp_path, 8), 0, lambda: backend).make()


def test_learned_scores_judge_what_passes_so_far(tmp_path, monkeypatch):
    import data_gen.shards.chunks

    judged = data_gen.shards.chunks.judge
    monkeypatch.setattr(
        data_gen.shards.chunks,
        "judge",
        lambda s, c: judged(s, c) or ("clip" if s.get("clip", 1) < 0.5 else ""),
    )
    asked = []

    def scores(pictures, texts):
        asked.extend(texts)
        assert all(p.shape == (SIDE, SIDE, 4) for p in pictures) and len(pictures) == len(texts)
        return [{"clip": 0.1 if t.endswith("0") else 0.9} for t in texts]

    log = Log()
    with log.open() as backend:
        manifest = ShardWorker(
            dataset_spec(tmp_path, 20, log, shard_size=20), 0, lambda: replace(backend, scores=scores)
        ).make()
    assert all(r["scores"]["clip"] == 0.9 for r in manifest.records)
    assert len(asked) == manifest.count + manifest.rejected["clip"] and manifest.rejected["clip"] > 0
    first = [r for r in manifest.rejections if r["reason"] == "too blue"]
    assert first and not any("clip" in r["scores"] for r in first)

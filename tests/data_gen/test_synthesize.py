from __future__ import annotations

import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from made_up_line import Log, contents, job, prompts, verdicts

from data_gen.__main__ import main as commands
from data_gen.config import SynthesizeConfig
from data_gen.duplicates import near_duplicates
from data_gen.factory import run
from data_gen.pictures import ModelConfig
from data_gen.progress import Progress
from data_gen.ranks import Ranks
from data_gen.settle import plan
from data_gen.sidecar import Sidecar, finished_shards
from data_gen.storage import Storage
from data_gen.synthesize import main, synthesize
from dd3g.errors import UserError
from dd3g.io.shards import Shards

ROOT = Path(__file__).parents[2]
DISTANCE = 18  # so wide that many of the made-up pictures are near duplicates
SET = ["options.json", "prompts.jsonl", "index.json", "README.md"]


@pytest.fixture
def filters(monkeypatch):
    verdicts(monkeypatch)


def quiet():
    return Progress(show=False)


def made(folder, count=40, distance=DISTANCE, **more):
    """A set in which some pictures are near duplicates by chance."""
    log = Log()
    return run(job(folder, count, log, distance=distance, **more), Ranks(), quiet()), log


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference") / "set"
    with pytest.MonkeyPatch.context() as patch:
        verdicts(patch)
        report, log = made(folder)
    return folder, report, log


def all_records(folder):
    storage = Storage(folder)
    return [r for s in finished_shards(storage) for r in Sidecar.read(storage, s).records]


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


def test_no_near_duplicate_is_left_and_settled_pictures_stay(reference):
    folder, report, _ = reference
    records = all_records(folder)
    hashes = np.array([int(r["hash"], 16) for r in records], np.uint64)
    assert (near_duplicates(hashes, DISTANCE) == -1).all()
    assert report["rejected"]["duplicate"] > 5 and max(r["round"] for r in records) >= 1
    # Of two that are alike at first, the later prompt was drawn again.
    order = {p.id: i for i, p in enumerate(prompts(40))}
    storage = Storage(folder)
    for shard in finished_shards(storage):
        for lost in Sidecar.read(storage, shard).rejections:
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
        one = job(tmp_path, 40, distance=DISTANCE)
        report = run(one, Ranks(turn % 3, 3, together=False), quiet())
        said.append(report["waiting"])
        if turn % 3 == 0 and not report["waiting"]:
            break
    assert said[0].startswith(
        "3 shards (first pictures-00001) of other ranks to be made: start the same command"
    )
    assert any("to be rid of duplicates: start the same command again" in s for s in said)
    assert contents(tmp_path) == contents(reference[0])


def test_another_number_of_ranks_goes_on_with_the_same_set(filters, tmp_path, reference):
    run(job(tmp_path, 40, distance=DISTANCE), Ranks(1, 2, together=False), quiet())
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


def killed(folder, seconds):
    """Start on the set in a forked process and kill it; whether it was done before."""
    child = os.fork()
    if not child:
        try:
            made(folder)
            os._exit(0)
        except BaseException:
            os._exit(1)
    timer = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
    timer.start()
    status = os.waitpid(child, 0)[1]
    timer.cancel()
    assert status in (0, signal.SIGKILL)
    return status == 0


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_moments(filters, tmp_path, reference, seed):
    rng = random.Random(seed)
    kills = 0
    while not killed(tmp_path, rng.uniform(0.02, 0.25)):
        kills += 1
        for path in tmp_path.rglob("*.tar"):
            Shards(path)  # raises where one is torn
        assert kills < 200
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


def test_a_models_folder_counts_by_what_is_in_it(tmp_path):
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "unet" / "x.safetensors").write_bytes(b"weights")

    def options(path):
        return SynthesizeConfig(model=ModelConfig(path=str(path))).options()

    first = options(folder)
    moved = options(folder.rename(tmp_path / "moved"))
    assert moved == first
    (tmp_path / "moved" / "unet" / "x.safetensors").write_bytes(b"Weights")
    assert options(tmp_path / "moved")["model.path"] != first["model.path"]
    assert options("owner/name")["model.path"] == "owner/name"


def test_a_shard_made_with_other_options_is_named(filters, tmp_path):
    made(tmp_path / "a")
    made(tmp_path / "b", seed=1, distance=13)
    for suffix in (".tar", ".json"):
        (tmp_path / f"b/pictures-00001{suffix}").replace(tmp_path / f"a/pictures-00001{suffix}")
    with pytest.raises(UserError, match="pictures-00001.tar was made with other options than this set"):
        made(tmp_path / "a")


def test_prompts_must_differ(tmp_path):
    one = job(tmp_path, 3)
    twice = type(one)(**{**vars(one), "prompts": [*one.prompts, one.prompts[0]]})
    with pytest.raises(UserError, match="is there twice: drop one"):
        run(twice, Ranks(), quiet())


def test_a_damaged_sidecar_is_named(filters, tmp_path):
    made(tmp_path)
    (tmp_path / "pictures-00001.json").write_text("{")
    with pytest.raises(UserError, match="pictures-00001.json is damaged .*delete it and pictures-00001.tar"):
        made(tmp_path)


@dataclass(frozen=True)
class Threads(Ranks):
    """Ranks of one launch as threads of this process."""

    barrier: threading.Barrier | None = None

    def wait(self):
        self.barrier.wait(timeout=10)


@pytest.mark.parametrize("slow", [0, 1])
def test_a_rank_that_plans_late_meets_the_others(filters, tmp_path, reference, monkeypatch, slow):
    """It finds what the others have replaced already, and would skip a round of waiting."""
    barrier, plans, late = threading.Barrier(2), {0: [], 1: []}, threading.local()

    def planned(one):
        time.sleep(0.2 if late.rank == slow else 0)
        plans[late.rank].append(plan(one))
        return plans[late.rank][-1]

    monkeypatch.setattr("data_gen.factory.plan", planned)

    def work(rank):
        late.rank = rank
        return run(job(tmp_path, 40, distance=DISTANCE), Threads(rank, 2, barrier=barrier), quiet())

    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(work, range(2)))
    assert plans[0] == plans[1] and len(plans[0]) > 2
    assert all(report["complete"] for report in reports)
    assert contents(tmp_path) == contents(reference[0])


def test_what_failed_before_the_first_picture_binds_nobody(shapes, tmp_path, capsys):
    folder = tmp_path / "set"
    (tmp_path / "other.txt").write_text("another thing")
    typo = ["model.path=shaped", f"prompts={tmp_path / 'other.txt'}"]
    assert main(command(folder, *typo)) == 2
    assert "shaped" in capsys.readouterr().err and list(folder.glob("options.json"))
    assert main(command(folder)) == 0
    assert contents(folder) == contents(shapes)


def test_plan_waits_for_all_shards(filters, tmp_path):
    one = job(tmp_path, 40)
    assert plan(one).unfinished == [0, 1, 2, 3, 4]


def test_ranks():
    with pytest.raises(UserError, match="--rank and --world belong together"):
        Ranks.find(rank=1)
    with pytest.raises(UserError, match="rank 2 of 2"):
        Ranks.find(2, 2)
    assert Ranks.find(1, 4) == Ranks(1, 4, 1, together=False) and Ranks.find(0, 1).together


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "abc"}, "RANK is 'abc' in the environment: unset it"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1' in the environment"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2 but MASTER_ADDR is not set: use accelerate launch"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, "MASTER_PORT is not set"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "x"}, "MASTER_PORT is 'x'"),
        ({"RANK": "1"}, "rank 1 of 1"),
    ],
)
def test_an_environment_of_no_launcher(shapes, monkeypatch, capsys, environment, message):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(command(shapes)) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_processes_of_their_own_share_the_gpus_of_a_machine(monkeypatch):
    import torch

    monkeypatch.setattr("dd3g.device.find_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    found = [Ranks.find(rank, 5).device("cuda") for rank in range(5)]
    assert found == [torch.device("cuda", i) for i in (0, 1, 0, 1, 0)]


def test_commands_are_found_by_name(capsys):
    assert commands([]) == 2 and commands(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("prompts", "synthesize", "collect", "verify", "merge", "stats"))
    assert commands(["paint"]) == 2
    assert capsys.readouterr().err.startswith("error: no command 'paint': choose from prompts, synthesize")
    with pytest.raises(SystemExit) as stop:
        commands(["synthesize", "--help"])
    assert stop.value.code == 0 and "shard_size: 1000" in capsys.readouterr().out
    assert commands(["verify", "nowhere"]) == 2
    assert "nowhere is not a set of pictures" in capsys.readouterr().err


def command(folder, *more):
    texts = "\n".join(f"a thing of number {i}" for i in range(60))
    prompt_file = folder.parent / "prompts.txt"
    prompt_file.write_text(texts)
    settings = ["shard_size=10", "batch_size=4", "size=32", "model.height=64"]
    config = ["--config", str(ROOT / "configs/data_gen/shapes.yaml")]
    return [*config, f"prompts={prompt_file}", f"output={folder}", *settings, *more]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "set"
    assert main(command(folder)) == 0
    return folder


def test_the_command(shapes, tmp_path, capsys):
    assert main(command(tmp_path / "set", "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["asked"] == 60 == report["pictures"] + sum(report["missing"].values())
    assert report["made"]["model"] == {"shapes": report["pictures"]} and report["complete"]
    assert contents(tmp_path / "set") == contents(shapes)
    assert main(command(shapes)) == 0
    assert f"{report['pictures']} of 60 pictures in 6 shards in " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["seed=1"], "seed was 0, now 1"),
        (["model.height=128"], "model.height was 64, now 128"),
        (["filters.min_main=0.5"], "filters.min_main was 0.9, now 0.5"),
        (["batch_size=0"], "batch_size must be at least 1, got 0"),
        (["sed=1"], "sed"),
        (["--rank", "1"], "--rank and --world belong together"),
        (["--rank", "x"], "invalid int value: 'x'"),
        (["prompts=nowhere.jsonl"], "nowhere.jsonl"),
        (["output=nowhere://x"], "cannot reach nowhere://x"),
    ],
)
def test_wrong_command_lines(shapes, more, message, capsys):
    assert main(command(shapes, *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_what_must_be_set(tmp_path):
    with pytest.raises(UserError, match="prompts is not set: give prompts="):
        synthesize(SynthesizeConfig())
    with pytest.raises(UserError, match="output is not set"):
        synthesize(SynthesizeConfig(prompts="p.txt"))


def test_where_and_how_fast_may_change(shapes, capsys):
    before = contents(shapes)
    assert main(command(shapes, "device=auto", "batch_size=7", "matte.workers=2", "model.offload=model")) == 0
    assert contents(shapes) == before


def test_an_unwritable_place(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(command(tmp_path / "set", f"output={tmp_path}/file/set")) == 2
    assert "a part of the path is a file; choose another place" in capsys.readouterr().err


def start(words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=hear_interrupts,
    )  # fmt: skip


def hear_interrupts():
    """A shell that runs the tests in the background has its children ignore Ctrl-C, and theirs."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_full_disk_ends_with_one_line_and_space_lets_it_go_on(shapes, tmp_path, capsys):
    """No file may pass 30 kB: parts fit, the shard does not."""
    folder = tmp_path / "set"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        assert main(command(folder)) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write ") and error.count("\n") == 1 and "free some space" in error
    assert list(folder.glob("*.tar")) == [] and list(folder.glob("parts/*/*.tar"))
    assert main(command(folder)) == 0
    assert contents(folder) == contents(shapes)


def test_two_processes_make_the_same_set(shapes, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    process = start([*torchrun, "-m", "data_gen", "synthesize", *command(tmp_path / "set", "--json")])
    out, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    assert json.loads(out)["complete"]
    assert contents(tmp_path / "set") == contents(shapes)


def test_waiting_for_others_has_its_own_exit_code(tmp_path, capsys):
    folder = tmp_path / "set"
    assert main(command(folder, "--rank", "0", "--world", "2", "shard_size=30")) == 3
    assert "it waits for one shard (pictures-00001) of other ranks" in capsys.readouterr().out
    codes = [
        main(command(folder, "--rank", str(r % 2), "--world", "2", "shard_size=30")) for r in range(1, 9)
    ]
    assert codes[-1] == 0
    assert json.loads((folder / "index.json").read_text())["asked"] == 60


def test_two_same_commands_at_once(shapes, tmp_path, capsys):
    with Storage(tmp_path / "set").claimed("rank-0"):
        assert main(command(tmp_path / "set")) == 2
    error = capsys.readouterr().err
    assert "another process works on this set" in error and error.count("\n") == 1
    assert main(command(tmp_path / "set")) == 0
    assert contents(tmp_path / "set") == contents(shapes)


def committed(process, folder):
    """Wait for the first part."""
    deadline = time.monotonic() + 100
    while not list(folder.glob("parts/*/*.tar")) and not list(folder.glob("*.tar")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


def test_ctrl_c(shapes, tmp_path):
    folder = tmp_path / "set"
    process = start(["-m", "data_gen", "synthesize", *command(folder, "batch_size=1")])
    committed(process, folder)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert error == "stopped: run the same command again to go on\n"
    assert main(command(folder)) == 0
    assert contents(folder) == contents(shapes)


def test_the_command_killed(shapes, tmp_path):
    """The real command, killed once it has committed something."""
    folder = tmp_path / "set"
    process = start(["-m", "data_gen", "synthesize", *command(folder)])
    committed(process, folder)
    process.kill()
    process.communicate()
    assert main(command(folder)) == 0
    assert contents(folder) == contents(shapes)

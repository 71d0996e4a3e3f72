from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
from stand_ins.forked import ROOT, Forked
from stand_ins.made_up_dataset import contents
from stand_ins.training_runs import PATIENCE

from data_gen.__main__ import main as commands
from data_gen.picture_models.protocol import ModelConfig
from data_gen.shards.storage import Storage
from data_gen.synthesize import SynthesizeConfig, main, synthesize
from dd3g.errors import UserError


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


def test_what_failed_before_the_first_picture_binds_nobody(shapes, tmp_path, capsys):
    folder = tmp_path / "set"
    (tmp_path / "other.txt").write_text("another thing")
    typo = ["model.path=shaped", f"prompts={tmp_path / 'other.txt'}"]
    assert main(command(folder, *typo)) == 2
    assert "shaped" in capsys.readouterr().err and list(folder.glob("options.json"))
    assert main(command(folder)) == 0
    assert contents(folder) == contents(shapes)


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


def test_commands_are_found_by_name(capsys):
    assert commands([]) == 2 and commands(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("prompts", "synthesize", "collect", "verify", "merge", "stats"))
    assert commands(["paint"]) == 2
    assert capsys.readouterr().err.startswith("error: no command 'paint': choose from prompts, synthesize")
    assert commands(["synthesize", "--help"]) == 0 and "shard_size: 1000" in capsys.readouterr().out
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


def test_the_output_as_an_option(shapes, tmp_path):
    words = [w for w in command(tmp_path / "set") if not w.startswith("output=")]
    assert main([*words, "-o", str(tmp_path / "set")]) == 0
    assert contents(tmp_path / "set") == contents(shapes)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["seed=1"], "seed was 0, now 1"),
        (["model.height=128"], "model.height was 64, now 128"),
        (["filters.min_main=0.5"], "filters.min_main was 0.9, now 0.5"),
        (["batch_size=0"], "batch_size must be at least 1, got 0"),
        (["sed=1"], "sed"),
        (["--rank", "1"], "--rank and --world belong together"),
        (["--rank", "x"], "rank: Value 'x' of type 'str' could not be converted to Integer"),
        (["prompts=nowhere.jsonl"], "nowhere.jsonl"),
        (["output=nowhere://x"], "cannot reach nowhere://x"),
    ],
)
def test_wrong_command_lines(shapes, more, message, capsys):
    assert main(command(shapes, *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_shard_can_be_made_alone(shapes, tmp_path, capsys):
    """In a folder of its own, by the rank that owns nothing else."""
    shard = "pictures-00004"
    assert main(command(tmp_path / "alone", "--rank", "4", "--world", "6")) == 3
    made = contents(tmp_path / "alone")
    assert sorted(made) == [shard + ".json", shard + ".tar"]
    assert made == {name: contents(shapes)[name] for name in made}
    assert "10 more pictures in " in capsys.readouterr().out


def test_lines_that_cannot_serve_are_left_out(tmp_path, capsys):
    lines = [b"a red chair", b"", b"A  RED chair.", b"x" * 10_000, b"bad \xff byte", *[b"a red chair"] * 50]
    folder = tmp_path / "set"
    words = command(folder)
    (tmp_path / "prompts.txt").write_bytes(b"\n".join(lines))
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.out.startswith("1 of 1 pictures")
    for line, why in ((2, "is empty"), (3, "repeats line 1"), (4, "is 10000 char"), (5, "is not UTF-8")):
        assert f"prompts.txt, line {line} is left out: it {why}" in said.err
    assert said.err.count("\n") == 21 and said.err.endswith("prompts.txt: 34 more lines are left out\n")


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


@pytest.mark.slow
def test_two_processes_make_the_same_set(shapes, tmp_path):
    process = Forked("-m", "data_gen", "synthesize", *command(tmp_path / "set", "--json"), processes=2)
    out, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    assert json.loads(out)["complete"]
    assert contents(tmp_path / "set") == contents(shapes)


def test_waiting_for_others_has_its_own_exit_code(tmp_path, capsys):
    folder = tmp_path / "set"
    assert main(command(folder, "--rank", "0", "--world", "2", "shard_size=30")) == 3
    assert "waiting for other ranks to make one shard (pictures-00001)" in capsys.readouterr().out
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
    deadline = time.monotonic() + PATIENCE
    while not list(folder.glob("parts/*/*.tar")) and not list(folder.glob("*.tar")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
def test_ctrl_c(shapes, tmp_path):
    folder = tmp_path / "set"
    process = start(["-m", "data_gen", "synthesize", *command(folder, "batch_size=1")])
    committed(process, folder)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert error == "stopped: run the same command again to resume\n"
    assert main(command(folder)) == 0
    assert contents(folder) == contents(shapes)


@pytest.mark.slow
def test_the_command_killed(shapes, tmp_path):
    """Once it has committed something."""
    folder = tmp_path / "set"
    process = Forked("-m", "data_gen", "synthesize", *command(folder))
    committed(process, folder)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert main(command(folder)) == 0
    assert contents(folder) == contents(shapes)

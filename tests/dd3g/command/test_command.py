"""The one command: its sub-commands, its help, and how a run ends."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from stand_ins.infer_command import ROOT

import dd3g
from data_gen.__main__ import COMMANDS as DATA
from dd3g.__main__ import COMMANDS, main
from dd3g.command.run import Json, command_line, dispatch, guarded, say
from dd3g.errors import UserError, first_line

GROUPS = ("data", "models", "benchmark")
EVERY = {name: c[0] for name, c in COMMANDS.items()} | {f"data {name}": c[0] for name, c in DATA.items()}


@pytest.mark.parametrize("name", EVERY)
def test_each_command_explains_itself_and_spells_its_options_alike(name, capsys):
    function = import_module(EVERY[name]).main
    assert list(inspect.signature(function).parameters) == ["argv"]
    assert main([*name.split(), "--help"]) == 0
    shown = capsys.readouterr()
    assert shown.err == "" and shown.out.lstrip().startswith(f"Usage: dd3g {name} ")
    if name in GROUPS or name == "serve":  # which writes nothing and answers over HTTP
        return
    if "[--config NAME|FILE]" in shown.out:
        assert "\noutput: " in shown.out or "\noutput_dir: " in shown.out
        assert "\ndevice: auto" in shown.out
        return
    assert "--json" in shown.out
    # Two write nothing, and one has the name of its output in its second word.
    assert "-o, --output " in shown.out or name in ("data verify", "info", "convert")
    assert "--out " not in shown.out
    usage = shown.out.lstrip().partition("\n\n")[0].removeprefix(f"Usage: dd3g {name} ")
    assert usage == usage.upper(), "arguments are named in capital letters"


@pytest.mark.parametrize("words", [["--help"], ["-h"], []])
def test_the_list_of_commands(words, capsys):
    assert main(words) == (0 if words else 2)
    shown = capsys.readouterr().out
    assert shown.startswith("Usage: dd3g COMMAND") and all(f"\n  {name} " in shown for name in COMMANDS)


def test_what_was_once_the_whole_command_is_told_its_new_name(capsys):
    assert main(["lamp.png", "-o", "out"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no command 'lamp.png': choose from infer, serve, pose, ")
    assert error.endswith("pictures go to `dd3g infer`\n") and error.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["infer", "a.png", "-o", ""],
        ["infer", "--output=", "a.png"],
        ["turntable", "a.ply", "--output", " ", "--json"],
        ["view", "-o", "", "a.ply"],
        ["train", "--output", ""],
        ["train-teacher", "output_dir="],
    ],
)
def test_an_empty_word_is_not_the_current_folder(words, capsys):
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: -o is empty: a shell variable") and shown.err.count("\n") == 1
    assert shown.out == ("" if "--json" not in words else json.dumps({"error": shown.err[7:-1]}) + "\n")


def test_a_current_folder_that_is_gone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    assert main(["infer", "/a.png"]) == 2
    message = "the current folder is gone (No such file or directory): cd to one that exists"
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_wrong_option_is_one_line(capsys):
    for words, message in (
        (["infer", "--nope"], "No such option: --nope"),
        (["infer", "a.png", "--seed", "x"], "Invalid value for '--seed'"),
        (["models", "fetch"], "Missing argument"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {message}") and error.count("\n") == 1 and "--help explains" in error
    assert main(["infer"]) == 2 and capsys.readouterr().out.startswith("Usage: dd3g infer")


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dd3g {dd3g.__version__}\n"


def test_dashes_and_underscores_are_one(capsys):
    assert main(["train_teacher", "--help"]) == 0 and "dd3g train-teacher" in capsys.readouterr().out


def test_the_list_and_bad_words_load_nothing_heavy():
    light = [["--help"], ["nope"], ["data", "--help"], ["infer", "--help"], ["models", "list"]]
    helps = [[*name.split(), "--help"] for name in EVERY]
    trainers = ("train", "train-teacher", "train-shape", "train-elevation", "data train-tiny")
    bad = [[*name.split(), *words] for name in trainers for words in (["--nope", "1"], ["--config", "nope"])]
    code = (
        "import sys; from dd3g.__main__ import main\n"
        f"for words in {light}: main(words)\n"
        "assert 'omegaconf' not in sys.modules\n"
        f"for words in {helps + bad}:\n"
        "    main(words)\n"
        "    assert not {'torch', 'numba', 'diffusers', 'transformers'} & set(sys.modules), words"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_how_a_run_ends(capsys):
    def fail(error):
        raise error

    assert guarded(lambda: None) == 0 and guarded(lambda: 3) == 3
    assert guarded(lambda: fail(UserError("a.png is\nempty"))) == 2
    assert guarded(lambda: fail(OSError(28, "No space left on device"))) == 2
    assert guarded(lambda: fail(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == (
        "error: a.png is empty\n"
        "error: [Errno 28] No space left on device: free some space, then run the same command again to "
        "resume\n"
        "stopped: run the same command again to resume\n"
    )
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: fail(ZeroDivisionError()))


@pytest.mark.parametrize("stage", [False, True])
def test_ctrl_c_tells_how_that_command_goes_on(monkeypatch, capsys, stage):
    """And nothing where another command runs it, which says so itself."""

    def work(as_json: Json = False) -> None:
        raise KeyboardInterrupt

    if stage:
        monkeypatch.setenv("DD3G_STAGE", "1")
    assert command_line(work, "dd3g work", go_on="add --resume")(["--json"]) == 130
    out, said = capsys.readouterr()
    assert said.strip() == json.loads(out)["error"] == ("stopped" if stage else "stopped: add --resume")


def test_wrong_values_are_named(capsys):
    for words, message in (
        (["turntable", "x.ply", "--elevation", "90"], "'90' should be less than or equal to 89; dd3g turn"),
        (["interpolate", "x.png", "a", "1"], "'FIRST': 'a' should be a valid integer"),
        (["pose", "x.png", "--method", "y"], "'--method': 'y' is not one of 'guided', 'restoration', "),
    ):
        assert main(words) == 2 and message in capsys.readouterr().err


def test_the_first_word_may_name_another_command(capsys):
    def simulate(folder: Path) -> None:
        """Simulate."""
        print("simulate", folder)

    def verify(folder: Path) -> None:
        """Verify."""
        print("verify", folder)

    for words in (["a"], ["verify", "a"]):
        assert dispatch({"verify": verify}, words, "x", "About.", otherwise=simulate) == 0
    assert capsys.readouterr().out == "simulate a\nverify a\n"
    assert dispatch({"verify": verify}, ["--help"], "x", "About.", otherwise=simulate) == 0
    assert "Simulate." in capsys.readouterr().out


def test_names_are_shown_as_what_their_bytes_mean(capsys):
    for name, shown in {
        "椅子".encode().decode("ascii", "surrogateescape"): "椅子",  # as in a locale without UTF-8
        b"\xff\xfe.png".decode("utf-8", "surrogateescape"): "\\xff\\xfe.png",
        "\ud800": "?",
        "a\nb": "a b",
    }.items():
        say(name)
        assert capsys.readouterr().out == f"{shown}\n"


@pytest.mark.parametrize("place", ["dd3g.command.run.import_module", "typer.main.get_command"])
@pytest.mark.parametrize("as_json", [True, False])
def test_ctrl_c_before_the_work_begins_still_gives_a_report(monkeypatch, capsys, place, as_json):
    """While a command's module is loaded, and while its words are read, where typer would swallow it."""

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupt)
    commands = {"loaded": ("nowhere", "a module"), "read": interrupt}
    name = "loaded" if "import" in place else "read"
    assert dispatch(commands, [name, *["--json"] * as_json], "x", "") == 130
    out, said = capsys.readouterr()
    assert said == "stopped: run the same command again to resume\n"
    assert out == (json.dumps({"error": said.strip()}) + "\n" if as_json else "")


@pytest.mark.parametrize("name", EVERY)
def test_with_json_what_is_wrong_is_an_object_too(name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    wrong = ["nope=1"] if "[--config" in _help(name, capsys) else ["--nope"]
    assert main([*name.split(), *wrong, "--json"]) == 2
    shown = capsys.readouterr()
    assert shown.err == f"error: {json.loads(shown.out)['error']}\n" and shown.out.count("\n") == 1


@pytest.mark.parametrize("words", ["convert no.ply a.spz", "info no.sog", "view no.glb", "turntable no.ply"])
def test_with_json_what_cannot_be_read_is_an_object_too(words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main([*words.split(), "--json"]) == 2
    shown = capsys.readouterr()
    message = f"cannot read {words.split()[1]}: No such file or directory"
    assert json.loads(shown.out) == {"error": message} and shown.err == f"error: {message}\n"


def _help(name, capsys):
    main([*name.split(), "--help"])
    return capsys.readouterr().out


def test_the_first_line_of_an_error_says_what_is_missing():
    """A KeyError holds the key alone, but for those of zipfile and h5py, which hold a sentence."""
    for error, line in (
        (KeyError("config"), "there is no 'config'"),
        (KeyError("There is no item named 'x' in the archive"), "There is no item named 'x' in the archive"),
        (ValueError("one\ntwo"), "one"),
        (ValueError(), "ValueError"),
        (
            OSError("cannot identify image file <_io.BytesIO object at 0x7f0f3b4e>"),
            "cannot identify image file",
        ),
    ):
        assert first_line(error) == line

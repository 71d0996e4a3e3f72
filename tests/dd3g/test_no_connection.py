"""Nothing leaves the machine unasked."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stand_ins.tiny_objects import write_cube

import dd3g
from dd3g.models import model_path

ROOT = Path(__file__).parents[2]


def test_libraries_are_told_before_they_are_imported():
    """A user's own choice stands."""
    names = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    clean = {k: v for k, v in os.environ.items() if k not in names}
    code = f"import os, dd3g; print(*(os.environ[name] for name in {names}))"

    def told(**more):
        environment = clean | {"PYTHONPATH": str(Path(dd3g.__file__).parents[1])} | more
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        ).stdout.split()

    assert told() == ["1", "1", "1"]
    assert told(ORT_DISABLE_TELEMETRY="0") == ["0", "1", "1"]


RENDERS = ("data", "render", "meshes", "-o", "out/renders", "--eval", "--size", "16", "--processes", "1")
PHOTO = Path(os.environ.get("DD3G_DATA", ""), "photos/pifpaf_surf_000000081988.jpg")
COMMANDS = {
    "infer": ("infer", ROOT / "assets/coffee.jpg", "-o", "out"),
    "convert": ("convert", ROOT / "tests/golden/gaussians.ply", "out/x.mesh.glb"),
    "view": ("view", ROOT / "tests/golden/gaussians.sog", "--no-open"),
    "turntable": ("turntable", ROOT / "tests/golden/gaussians.spz", "-o", "out/x.mp4", "--size", "32"),
    "info": ("info", ROOT / "tests/golden/gaussians.splat"),
    "models": ("models", "list"),
    "data objects": ("data", "objects", "--count", "1", "-o", "out/objects"),
    "data prompts": ("data", "prompts", "--count", "2", "-o", "out/prompts.jsonl"),
    "data render": RENDERS,
    "pose": ("pose", PHOTO, "-o", "out"),
}
# In one process: most of their time goes into importing torch.
QUICK = ("convert", "view", "turntable", "info", "models", "data objects", "data prompts", "data render")
WRITTEN = {"x.mesh.glb", "gaussians.html", "x.mp4", "objects", "prompts.jsonl", "renders"}
RUN = "import json, sys; from dd3g.__main__ import main; sys.exit(any([*map(main, json.loads(sys.argv[1]))]))"
# Of calls that reach another machine; a library may look whether an address of its own can be bound.
REACHES = re.compile(r'(connect|send(to|m?msg))\(.*AF_INET6?\b(?!.*"(127\.0\.0\.1|::1)")')


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.parametrize("names", [("infer",), ("pose",), QUICK], ids=", ".join)
def test_no_command_opens_a_connection(tmp_path, names):
    """The picture of `infer` needs a matte, whose model's library would report its use."""
    if "infer" in names and not model_path("u2netp"):
        pytest.skip("needs the matting model")
    if "pose" in names and not (PHOTO.is_file() and model_path("pose_landmark_full")):
        pytest.skip("needs photos of people, in DD3G_DATA, and the detector's models")
    write_cube(tmp_path / "meshes/cube.glb")
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-qq", "-e", "trace=network", "-o", str(trace), sys.executable, "-c", RUN]
    command += [json.dumps([list(map(str, COMMANDS[name])) for name in names])]
    switches = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    environment = {k: v for k, v in os.environ.items() if k not in switches} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert there == WRITTEN if names == QUICK else there
    assert [line for line in trace.read_text().splitlines() if REACHES.search(line)] == []


def test_what_counts_as_a_connection():
    for call in (
        'connect(3, {sa_family=AF_INET, sin_port=htons(443), sin_addr=inet_addr("20.1.2.3")}, 16) = -1',
        'sendto(4, "x", 1, 0, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("8.8.8.8")}, 16)',
        'connect(3, {sa_family=AF_INET6, sin6_port=htons(443), inet_pton(AF_INET6, "2620::1:2", &a)}, 28)',
    ):
        assert REACHES.search(call)
    for call in (
        "socket(AF_INET, SOCK_STREAM|SOCK_CLOEXEC, IPPROTO_IP) = 3",
        'bind(3, {sa_family=AF_INET6, sin6_port=htons(0), inet_pton(AF_INET6, "::1", &a)}, 28) = 0',
        'connect(3, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("127.0.0.1")}, 16) = 0',
        'connect(3, {sa_family=AF_UNIX, sun_path="/run/x"}, 110) = -1',
    ):
        assert not REACHES.search(call)


@pytest.mark.slow
@pytest.mark.skipif(not model_path("u2netp"), reason="needs the matting model")
def test_the_matting_models_library_makes_no_id_of_the_machine(tmp_path):
    """It sends what it counts after some ten seconds, but writes the id at once, where it may count."""

    def ids(home, *command, **more):
        (tmp_path / home).mkdir()
        names = ("ORT_DISABLE_TELEMETRY", "DO_NOT_TRACK", "XDG_CACHE_HOME")
        clean = {k: v for k, v in os.environ.items() if k not in names}
        place = {"HOME": str(tmp_path / home), "PYTHONPATH": str(ROOT)}
        place["DD3G_CACHE"] = str(model_path("u2netp").parent.parent)
        words = [sys.executable, *command]
        subprocess.run(words, env=clean | place | more, cwd=tmp_path, check=True, capture_output=True)
        return [path.name for path in (tmp_path / home).rglob("deviceid")]

    assert ids("usual", "-m", "dd3g", *COMMANDS["infer"]) == []
    matte = "import sys, dd3g; dd3g.load_image(sys.argv[1])"
    if ids("counted", "-c", matte, COMMANDS["infer"][1], ORT_DISABLE_TELEMETRY="0") == []:
        pytest.skip("this version of onnxruntime makes none")

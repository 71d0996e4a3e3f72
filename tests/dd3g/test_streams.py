"""What is left, and what is said, when a stream fails, or a part of the work on one picture."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from stand_ins.infer_command import ROOT, picture, run, written

from dd3g.__main__ import main

# The real command, with a quick generator.
QUICK = """
import sys, dd3g.pepd
from stand_ins.infer_command import StubGenerator
from dd3g.__main__ import main
dd3g.pepd.Generator = StubGenerator
sys.exit(main(sys.argv[1:]))
"""


def through_shell(words: str, **environment: str):
    Path("quick.py").write_text(QUICK)
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PY": sys.executable, **environment}
    return subprocess.run(
        ["sh", "-c", words], env=os.environ | environment, capture_output=True, encoding="latin-1"
    )


@pytest.mark.slow
def test_streams_that_take_no_more(here):
    picture("椅子.png")
    full = through_shell('"$PY" quick.py infer *.png > /dev/full')
    assert (
        full.returncode == 2 and full.stderr == "error: cannot print the report (No space left on device)\n"
    )
    assert written() == ["椅子.matte.png", "椅子.ply"]
    closed = through_shell('"$PY" quick.py infer *.png -o 2 | true')
    assert closed.stderr == ""
    helped = through_shell('"$PY" quick.py --help > /dev/full')
    assert helped.stderr.startswith("error: cannot print the help") and helped.stderr.count("\n") == 1


@pytest.mark.parametrize("encoding", [pytest.param("cp1252", marks=pytest.mark.slow), "latin-1", "ascii"])
def test_names_that_a_stream_cannot_show(here, stub, monkeypatch, encoding):
    picture("椅子é.png")
    if encoding == "cp1252":
        made = through_shell('"$PY" quick.py infer *.png nothere-椅.png', PYTHONIOENCODING=encoding)
        code, out, error = made.returncode, made.stdout, made.stderr
    else:
        streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            code = main(["infer", "椅子é.png", "nothere-椅.png"])
        for stream in streams:
            stream.flush()
        out, error = (stream.buffer.getvalue().decode("latin-1") for stream in streams)
    assert code == 1 and out.startswith("wrote out/\\u6905\\u5b50")
    assert error == "error: nothere-\\u6905.png does not exist: check the path\n"


@pytest.mark.slow
def test_python_without_docstrings(here):
    picture("a.png")
    made = through_shell('"$PY" -OO quick.py infer a.png && "$PY" -OO quick.py models list')
    assert made.returncode == 0 and made.stderr == "" and "u2netp" in made.stdout


@pytest.mark.parametrize("place", ["matte", "save", "temporary"])
def test_an_error_of_any_kind_loses_one_picture(here, stub, monkeypatch, place):
    """Outside of decoding as well: in the matting model, in a writer, for temporary files."""
    import tempfile

    import dd3g.picture.loading
    from dd3g.io import splats

    for name in ("a", "b", "c"):
        picture(f"in/{name}.png", side=200 if name == "b" else 96)

    class Odd(Exception):
        pass

    if place == "matte":

        def cut(image, *rest):
            if image.width == 200:
                raise Odd("a model\nfell over")
            return whole(image, *rest)

        whole = dd3g.picture.loading.cut_out
        monkeypatch.setattr(dd3g.picture.loading, "cut_out", cut)
        message = "in/b.png: unexpected Odd: a model (test_streams.py, line "
    elif place == "save":
        save = splats.save

        def refuse(gaussians, path, *how, **more):
            if path.name == "b.spz":
                raise Odd
            return save(gaussians, path, *how, **more)

        monkeypatch.setattr(splats, "save", refuse)
        message = "in/b.png: unexpected Odd: Odd (test_streams.py, line "
    else:

        def encode(*_):
            raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

        monkeypatch.setattr(tempfile, "gettempdir", encode)
        monkeypatch.setattr(splats.packed, "encode_spz", encode)
        message = "error: in/b.png: cannot write out/b.spz: No usable temporary directory found in"
    result = run("in", "--format", "spz", code=1)
    assert message in result.stderr and "Traceback" not in result.stderr
    whole_ones = [] if place == "temporary" else ["a.matte.png", "a.spz", "c.matte.png", "c.spz"]
    assert written() == whole_ones


def test_a_result_is_final_when_the_next_one_fails(here, stub, monkeypatch):
    draw = stub.generate

    def generate(self, picture, seed=0, **how):
        if seed == 2:
            assert written() == ["a-0.ply", "a-1.ply", "a.matte.png"]
            raise MemoryError
        return draw(self, picture, seed)

    monkeypatch.setattr(stub, "generate", generate)
    result = run(picture("a.png"), "--samples", 4, "--json", code=2)
    report = json.loads(result.stdout)
    assert [s["seed"] for s in report["pictures"][0]["samples"]] == [0, 1]
    assert report["failed"][0]["error"].startswith("not enough memory")

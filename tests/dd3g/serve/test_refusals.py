"""Requests that get an error of their own: wrong parameters, unusable bodies, failures inside."""

import io

import pytest
import torch
from PIL import Image
from stand_ins.infer_command import StubGenerator
from stand_ins.served import Gate, numbers, picture, post, serving

from dd3g.errors import UserError

WRONG = {
    "format": ("xyz", "unknown format 'xyz': give one of ply, "),
    "axes": ("up", "unknown axes 'up'"),
    "seed": (2**64, f"seed {2**64} is out of range: give 0 to {2**64 - 1}"),
    "elevation": ("nan", "elevation nan is out of range: give -80 to 80 degrees"),
    "foreground_ratio": (2, "foreground_ratio 2 is out of range"),
    "fov": (0, "fov 0 is out of range: give 1 to 100 degrees"),
    "refine": (11, "refine 11 is out of range: give 0 to 10 seconds"),
    "ply_layout": ("wide", "unknown layout 'wide' of .ply"),
    "raw": ("maybe", "raw: Input should be a valid boolean, unable to interpret input, not 'maybe' ("),
    "matte": ("isnet", "matte: Input should be 'auto', 'none' or 'u2netp', not 'isnet'"),
    "samples": (2, "samples: Extra inputs are not permitted (parameters are format, "),
    "output": ("/etc", "output: Extra inputs are not permitted"),
    "weights": ("../secret", "weights: Extra inputs are not permitted"),
}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *((name, *wrong) for name, wrong in WRONG.items()),
        ("elevation", "above", "elevation 'above' is not a number: give one, or auto"),
    ],
)
def test_wrong_parameters_are_400(serve, gate, name, value, message):
    answer = serve(post(picture(), **{name: value}))
    assert answer.status_code == 400 and answer.json()["error"].startswith(message)
    assert gate.calls == []


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"format": "html", "axes": "zup"}, "axes and ply_layout are those of a splat file"),
        ({"format": "html", "ply_layout": "inria"}, "axes and ply_layout are those of a splat file"),
        ({"format": "sog", "ply_layout": "inria"}, "the layout 'inria' is one of .ply, and .sog has none"),
        ({"format": "glb", "axes": "opencv"}, "a .glb is y up by its standard"),
        ({"raw": True, "refine": 1}, "refine fits the discs of a solid body, which raw leaves out"),
    ],
)
def test_parameters_that_would_be_ignored_are_400(serve, gate, how, message):
    answer = serve(post(picture(), **how))
    assert answer.status_code == 400 and answer.json()["error"].startswith(message)
    assert gate.calls == []


def shown_nothing():
    file = io.BytesIO()
    Image.new("RGBA", (32, 32)).save(file, "PNG")
    return file.getvalue()


UNUSABLE = {
    "empty": (b"", "the picture is empty (0 bytes)"),
    "text": (b"hello " * 50, "the picture is "),
    "a path": (b"/etc/passwd", "the picture is "),
    "an address": (b"http://127.0.0.1/a.png", "the picture is "),
    "cut short": (picture(size=200)[:-60], "the picture is damaged or cut short"),
    "tiny": (picture(size=4), "the picture is 4x4 pixels, too small"),
    "transparent": (shown_nothing(), "the picture is fully transparent"),
    "a vector picture": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "the picture is "),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "the picture is "),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_pictures_are_422(serve, gate, name):
    body, message = UNUSABLE[name]
    answer = serve(post(body))
    assert answer.status_code == 422 and answer.json()["error"].startswith(message)
    assert list(answer.json()) == ["error"] and gate.calls == []


def test_too_large_is_413_with_and_without_a_length(serve, gate):
    async def in_parts():
        for _ in range(11):
            yield bytes(1000)

    async def endless():
        while True:
            yield bytes(10_000)

    for body in (bytes(11_000), bytes(200_000), in_parts(), endless()):
        answer = serve(post(body), megabytes=0.01)
        assert answer.status_code == 413
        assert answer.json() == {"error": "the picture is larger than 0.01 MB: scale it down first"}
    assert gate.calls == [] and serve(post(picture()), megabytes=0.01).status_code == 200


@pytest.mark.parametrize(
    "form",
    [
        {"files": {"file": picture()}},
        {"content": picture(), "headers": {"Content-Type": "Multipart/Form-Data; boundary=x"}},
    ],
)
def test_a_form_is_415(serve, form):
    async def work(client):
        return await client.post("/generate", **form)

    answer = serve(work)
    assert answer.status_code == 415 and "--data-binary" in answer.json()["error"]


def test_other_addresses_and_methods(serve):
    async def work(client):
        return [await client.get(path) for path in ("/generate", "/docs", "/redoc", "/../../etc/passwd")]

    answers = serve(work)
    assert [a.status_code for a in answers] == [405, 404, 404, 404]
    assert answers[0].headers["allow"] == "POST" and all(list(a.json()) == ["error"] for a in answers)
    assert answers[0].json()["error"] == "/generate takes POST, not GET"
    assert all(a.json()["error"].startswith("nothing is at this address: use POST") for a in answers[1:])


def test_addresses_with_a_slash_behind_are_others(serve):
    async def work(client):
        posted = await client.post("/generate/", content=picture())
        return posted, await client.get("/health/")

    assert [a.status_code for a in serve(work)] == [404, 404]


def test_what_is_read_can_be_asked_about(serve):
    async def work(client):
        heads = [await client.head(path) for path in ("/", "/health", "/metrics")]
        wrong = [await client.head("/generate"), await client.options("/generate")]
        return heads, wrong, await client.get("/openapi.json")

    heads, wrong, described = serve(work)
    assert [a.status_code for a in heads] == [200] * 3 and [a.status_code for a in wrong] == [405] * 2
    assert sorted(described.json()["paths"]["/health"]) == ["get"]


def test_a_parameter_that_is_given_twice_is_400(serve, gate):
    async def work(client):
        return await client.post("/generate?seed=1&format=ply&seed=2", content=picture())

    answer = serve(work)
    assert answer.status_code == 400 and answer.json() == {"error": "seed is given 2 times: give it once"}
    assert gate.calls == []


def test_a_failure_is_500_with_no_word_of_the_inside_and_the_next_is_served(serve, gate, caplog):
    async def work(client):
        gate.error = RuntimeError("secret detail")
        bad = await client.post("/generate", content=picture())
        gate.error = None
        return bad, await client.post("/generate", content=picture()), await numbers(client)

    bad, good, counted = serve(work)
    assert bad.status_code == 500 and good.status_code == 200
    assert bad.json() == {"error": "the server failed on this picture; its log says why"}
    assert "secret detail" in caplog.text
    assert counted["dd3g_answers_total", "500"] == 1 and counted["dd3g_waiting",] == 0


def test_a_full_disk_is_507(serve, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    answer = serve(post(picture()))
    assert answer.status_code == 507 and "the disk is full" in answer.json()["error"]


def test_what_a_message_advises_is_a_parameter():
    assert (
        serving._plain(UserError("give alpha, or --no-matte; --seed 3"))
        == "give alpha, or matte=none; seed 3"
    )


def test_an_object_without_a_visible_gaussian_is_422(serve, gate, monkeypatch):
    def nothing(self, picture, seed=0, **how):
        empty = StubGenerator.generate(self, picture, seed)
        return empty.select(torch.zeros(0, dtype=torch.long))

    monkeypatch.setattr(Gate, "generate", nothing)
    assert serve(post(picture())).json()["error"].startswith("nothing to write")

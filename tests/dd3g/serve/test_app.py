"""What a good request gets: every format, its parameters, the page, and nothing that it did not ask for."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image
from stand_ins.infer_command import ROOT, StubGenerator
from stand_ins.served import picture, post

from dd3g.io.atomic import TEMPORARY
from dd3g.io.formats import SPLATS
from dd3g.io.splats import encode, load
from dd3g.picture import load_image
from dd3g.results import PAGE
from dd3g.serve.worker import FORMATS, KEPT


def held(answer, folder, format):
    """Gaussians in a file that came."""
    path = folder / f"came.{format}"
    path.write_bytes(answer.content)
    return len(load(path))


@pytest.mark.parametrize("format", SPLATS)
def test_a_picture_comes_back_in_every_format(serve, tmp_path, format):
    answer = serve(post(picture(), format=format, seed=3))
    assert answer.status_code == 200
    assert answer.headers["content-disposition"] == f'attachment; filename="object.{format}"'
    want = StubGenerator().generate(load_image(Image.open(io.BytesIO(picture()))), seed=3)
    assert answer.content == encode(want, format)
    assert json.loads(answer.headers["dd3g-report"])["gaussians"] == held(answer, tmp_path, format) == 20


def test_the_page_of_an_object(serve):
    answer = serve(post(picture(), format=PAGE))
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "content-disposition" not in answer.headers
    assert "<title>object</title>" in answer.text and "<canvas" not in answer.text


def test_parameters_reach_the_generator(serve, gate):
    serve(post(picture(), seed=7, elevation=-20, refine=2.5, fov=30))
    serve(post(picture(), raw="true"))
    assert gate.calls == [
        (7, {"elevation": -20.0, "raw": False, "refine": 2.5, "fov": 30.0}),
        (0, {"elevation": 10.0, "raw": True, "refine": 0.0, "fov": 49.1}),
    ]


def test_the_elevation_is_estimated_if_asked_for(serve, gate, monkeypatch):
    monkeypatch.setattr("dd3g.pepd.elevation.estimated_elevation", lambda rgba: 34)
    estimated, given = (serve(post(picture(), elevation=told)) for told in ("auto", -7.5))
    assert [call[1]["elevation"] for call in gate.calls] == [34, -7.5]
    reports = [json.loads(answer.headers["dd3g-report"]) for answer in (estimated, given)]
    assert [report["elevation"] for report in reports] == [34, -7.5]


def test_axes(serve):
    turned = serve(post(picture(), format="ply", axes="opengl")).content
    assert b"comment dd3g axes: opengl" in turned.partition(b"end_header")[0]


def test_another_format_of_the_same_object_is_no_second_pass(serve, gate):
    async def work(client):
        for format in ("ply", "glb", PAGE):
            await client.post(f"/generate?format={format}", content=picture())
        once = len(gate.calls)
        await client.post("/generate?seed=1", content=picture())
        await client.post("/generate", content=picture(colour=(0, 0, 255)))
        changed = len(gate.calls)
        for seed in range(2, 2 + KEPT):
            await client.post(f"/generate?seed={seed}", content=picture())
        await client.post("/generate", content=picture())  # pushed out by others
        return once, changed, len(gate.calls)

    assert serve(work) == (1, 3, 4 + KEPT)


def test_warnings_come_along(serve):
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[20:44, :30] = 255
    file = io.BytesIO()
    Image.fromarray(rgba).save(file, "PNG")
    report = json.loads(serve(post(file.getvalue()), matte="auto").headers["dd3g-report"])
    assert any("touches the border" in warning for warning in report["warnings"])


opened: list[str] | None = None


def watch(event, details):
    if event == "open" and opened is not None:
        opened.append(str(details[0]))


def test_nothing_of_the_callers_is_taken_for_a_path(serve, tmp_path):
    """Neither the body nor a header nor a parameter nor the address opens a file."""
    global opened
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture())
    named = {"Content-Disposition": f'attachment; filename="{secret}"', "Content-Type": "image/png"}

    async def work(client):
        await client.post("/generate", content=picture())  # whatever is loaded on first use
        opened.clear()
        for body in (str(secret).encode(), f"file://{secret}".encode(), picture()):
            await client.post("/generate", content=body, headers=named)
        for name in ("format", "weights", "output", "matte", "axes", "mask", "path"):
            await client.post("/generate", params={name: str(secret)}, content=picture())
        await client.get(f"/{secret}")
        await client.get(f"/generate/..%2f..{secret}")
        await client.post("/generate?format=glb", content=picture())

    sys.addaudithook(watch)
    opened = []
    try:
        serve(work)
        assert any(TEMPORARY in path for path in opened)  # the hook does see what is opened
        assert [path for path in opened if str(tmp_path) in path] == []
    finally:
        opened = None


def test_the_front_page_is_whole(serve):
    async def work(client):
        return await client.get("/")

    answer = serve(work, megabytes=7.5)
    page = answer.text
    assert "{{" not in page and json.dumps(FORMATS) in page and "MEGABYTES = 7.5" in page
    assert page == (ROOT / "dd3g/serve/page.html").read_text().replace(
        "{{formats}}", json.dumps(FORMATS)
    ).replace("{{megabytes}}", "7.5").replace("{{page}}", json.dumps(PAGE))
    assert "http" not in page and answer.headers["content-security-policy"].startswith("default-src 'none'")

"""Every answer that the server gives, without a network: files, errors, the queue, the counters."""

import asyncio
import io
import json
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins.infer_command import ROOT, StubGenerator

from dd3g.errors import UserError
from dd3g.io.formats import SPLATS
from dd3g.io.splats import encode, load
from dd3g.picture import load_image
from dd3g.serve.worker import FORMATS, KEPT, PAGE, Worker

httpx2 = pytest.importorskip("httpx2", reason="needs httpx2, which comes with huggingface-hub")
prometheus = pytest.importorskip("prometheus_client.parser", reason="needs the extra 'serve'")
serving = pytest.importorskip("dd3g.serve.app", reason="needs the extra 'serve'")


class Gate(StubGenerator):
    """A generator that counts, and that can be held up or made to fail."""

    def __init__(self):
        self.open, self.entered, self.calls, self.error = threading.Event(), threading.Event(), [], None
        self.open.set()

    def generate(self, picture, seed=0, **how):
        self.calls.append((seed, how))
        self.entered.set()
        assert self.open.wait(60)
        if self.error:
            raise self.error
        return super().generate(picture, seed, **how)


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def serve(gate):
    """Runs a coroutine with a client of a server."""
    workers = []

    def run(work, matte="none", mean_seconds=1.0, **limits):
        async def inside():
            app = serving.make_app(worker, {"weights": "stub"}, serving.Limits(**limits))
            transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
            async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
                return await work(client)

        workers.append(worker := Worker(gate, matte))
        worker.mean_seconds = mean_seconds
        return asyncio.run(inside())

    yield run
    gate.open.set()
    for worker in workers:
        worker.close()


def picture(colour=(200, 80, 40), kind="PNG", size=40, **how):
    image = Image.new("RGBA", (size, size))
    image.paste((*colour, 255), (size // 4, size // 4, size - size // 4, size - size // 4))
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def post(body, **parameters):
    async def work(client):
        return await client.post("/generate", params=parameters, content=body)

    return work


def held(answer, folder, format):
    """Gaussians in a file that came."""
    path = folder / f"came.{format}"
    path.write_bytes(answer.content)
    return len(load(path))


async def numbers(client):
    """Name and labels of a metric -> its value."""
    text = (await client.get("/metrics")).text
    samples = [s for family in prometheus.text_string_to_metric_families(text) for s in family.samples]
    return {(s.name, *s.labels.values()): s.value for s in samples}


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


WRONG = {
    "format": ("xyz", "unknown format 'xyz': give one of ply, "),
    "axes": ("up", "unknown axes 'up'"),
    "seed": (2**64, f"seed {2**64} is out of range: give 0 to {2**64 - 1}"),
    "elevation": ("nan", "elevation nan is out of range: give -80 to 80 degrees"),
    "foreground_ratio": (2, "foreground-ratio 2 is out of range"),
    "fov": (0, "fov 0 is out of range: give 1 to 100 degrees"),
    "refine": (11, "refine 11 is out of range: give 0 to 10 seconds"),
    "ply_layout": ("wide", "unknown layout 'wide' of .ply"),
    "raw": ("maybe", "raw: Input should be a valid boolean"),
    "matte": ("isnet-general-use", "matte: Input should be 'auto', 'none' or 'u2netp'"),
    "samples": (2, "samples: Extra inputs are not permitted (parameters are format, "),
    "output": ("/etc", "output: Extra inputs are not permitted"),
    "weights": ("../secret", "weights: Extra inputs are not permitted"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_parameters_are_400(serve, gate, name):
    value, message = WRONG[name]
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


def test_a_form_is_415(serve):
    async def work(client):
        return await client.post("/generate", files={"file": picture()})

    answer = serve(work)
    assert answer.status_code == 415 and "--data-binary" in answer.json()["error"]


def test_other_addresses_and_methods(serve):
    async def work(client):
        return [await client.get(path) for path in ("/generate", "/docs", "/redoc", "/../../etc/passwd")]

    answers = serve(work)
    assert [a.status_code for a in answers] == [405, 404, 404, 404]
    assert answers[0].headers["allow"] == "POST" and all(list(a.json()) == ["error"] for a in answers)


def test_a_picture_that_never_ends_coming_is_408(serve):
    async def slow():
        yield picture()[:100]
        await asyncio.sleep(30)

    answer = serve(post(slow()), seconds=0.1)
    assert answer.status_code == 408 and "0.1 seconds to arrive" in answer.json()["error"]


def test_what_takes_too_long_is_504_and_the_next_is_served(serve, gate):
    async def work(client):
        gate.open.clear()
        late = await client.post("/generate", content=picture())
        never = await client.post("/generate", content=picture(colour=(1, 2, 3)))
        gate.open.set()
        await asyncio.sleep(0.3)
        return late, never, await client.post("/generate", content=picture(colour=(0, 0, 255)))

    late, never, good = serve(work, seconds=1)
    assert (late.status_code, never.status_code, good.status_code) == (504, 504, 200)
    assert "no answer within 1 seconds" in late.json()["error"]
    assert len(gate.calls) == 2  # the second waited behind the first, was given up, and never began


def test_a_full_queue_is_503_and_loses_nobody(serve, gate):
    async def work(client):
        gate.open.clear()
        colours = [(0, 0, i) for i in range(7)]
        calls = [asyncio.create_task(client.post("/generate", content=picture(c))) for c in colours]
        done, _ = await asyncio.wait(calls, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        while sum(c.done() for c in calls) < 4:
            await asyncio.sleep(0.01)
        health, during = (await client.get("/health")).json(), await numbers(client)
        gate.open.set()
        answers = [await c for c in calls]
        return answers, health, during, await numbers(client)

    answers, health, during, after = serve(work, waiting=3)
    statuses = sorted(a.status_code for a in answers)
    assert statuses == [200, 200, 200, 503, 503, 503, 503] and len(gate.calls) == 3
    refused = next(a for a in answers if a.status_code == 503)
    assert int(refused.headers["retry-after"]) >= 1 and "3 pictures are waiting" in refused.json()["error"]
    assert health["status"] == "ok" and health["weights"] == "stub"
    assert health["waiting"] == during["dd3g_waiting",] == 3 and after["dd3g_waiting",] == 0
    assert after["dd3g_answers_total", "200"] == 3 and after["dd3g_answers_total", "503"] == 4
    assert after["dd3g_seconds_count",] == 3


@pytest.mark.parametrize(("mean_seconds", "status"), [(40, 503), (20, 200)])
def test_a_picture_whose_turn_would_come_too_late_is_503(serve, gate, mean_seconds, status):
    async def work(client):
        gate.open.clear()
        gate.entered.clear()
        colours = [(n, n, mean_seconds) for n in range(2)]
        first = asyncio.create_task(client.post("/generate", content=picture(colours[0])))
        await asyncio.to_thread(gate.entered.wait, 10)
        second = asyncio.create_task(client.post("/generate", content=picture(colours[1])))
        await asyncio.sleep(0.2)
        gate.open.set()
        return (await first).status_code, (await second).status_code

    assert serve(work, mean_seconds=mean_seconds, seconds=30) == (200, status)


def test_a_caller_that_leaves_is_not_worked_for(serve, gate):
    async def work(client):
        gate.open.clear()
        first = asyncio.create_task(client.post("/generate", content=picture()))
        await asyncio.to_thread(gate.entered.wait, 10)
        app = client._transport.app
        said = asyncio.Queue()
        said.put_nowait({"type": "http.request", "body": picture(colour=(1, 1, 1)), "more_body": False})
        said.put_nowait({"type": "http.disconnect"})
        scope = {"type": "http", "method": "POST", "path": "/generate", "query_string": b"", "headers": []}

        async def send(message):
            pass

        await app(scope, said.get, send)
        gate.open.set()
        return (await first).status_code, await numbers(client)

    status, counted = serve(work)
    assert status == 200 and len(gate.calls) == 1
    assert counted["dd3g_answers_total", "499"] == 1 and counted["dd3g_waiting",] == 0


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
        assert any("dd3g-serve-" in path for path in opened)  # the hook does see what is opened
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


def test_the_pass_becomes_a_graph_before_the_first_picture(gate):
    """In the worker's own thread, as CUDA wants it."""
    gate.compiled = lambda: gate.calls.append(threading.current_thread().name)
    worker = Worker(gate, "none")
    worker.warm_up()
    worker.close()
    assert gate.calls[0].startswith("dd3g-worker") and len(gate.calls) > 1


def test_closing_answers_what_is_worked_on_and_drops_what_waits(gate):
    gate.open.clear()
    worker = Worker(gate, "none")
    order = serving.Parameters().order(worker)
    first, second = (worker.submit(picture(colour=(0, 0, i)), "ply", order) for i in range(2))
    assert gate.entered.wait(10)
    closing = threading.Thread(target=worker.close)
    closing.start()
    while not second.cancelled():
        time.sleep(0.01)
    gate.open.set()
    closing.join(30)
    assert first.result(1).gaussians == 20 and len(gate.calls) == 1

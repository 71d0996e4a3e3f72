"""`dd3g serve` as a process on loopback: start, a short load, its end, and its page in a real browser."""

import base64
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from stand_ins.headless_chromium import CHROMIUM, Page
from stand_ins.infer_command import ROOT, command

from dd3g.io.formats import SPLATS
from dd3g.io.splats import load
from dd3g.models import model_path
from dd3g.serve.__main__ import main
from dd3g.serve.worker import FORMATS
from tools.load_server import load as put_load
from tools.load_server import start_server

slow = pytest.mark.slow
LAMP = ROOT / "assets/lamp.png"
STOPPED = "stopped: answered every picture that had arrived\n"


@pytest.fixture(scope="module")
def server():
    """The port of a server."""
    pytest.importorskip("uvicorn", reason="needs the extra 'serve'")
    process, port = start_server("--no-matte", "--max-seconds", "600")
    yield port
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0 and process.stdout.read() == STOPPED


def post(port, body, query=""):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", f"/generate{query}", body)
    answer = connection.getresponse()
    return answer.status, answer.read()


def health(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("GET", "/health")
    return json.load(connection.getresponse())


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--max-waiting", "0"], "--max-waiting 0 is out of range"),
        (["--max-seconds", "nan"], "--max-seconds nan is out of range"),
        (["--port", "99999", "--no-matte"], "cannot listen on 127.0.0.1 port 99999"),
        (["--host", "203.0.113.1", "--no-matte"], ": give another --host, such as 127.0.0.1"),
        (["--host", "nosuch.invalid", "--no-matte"], ": give another --host, such as 127.0.0.1"),
        (["--host", "é" * 70, "--no-matte"], ": give another --host, such as 127.0.0.1"),
        (["--host", "", "--no-matte"], "--host is empty: give an address, such as 127.0.0.1"),
        (["extra"], "dd3g serve --help explains the options"),
    ],
)
def test_a_server_that_can_not_start_says_why(words, match, capsys):
    pytest.importorskip("uvicorn", reason="needs the extra 'serve'")
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and match in line


def test_a_port_that_is_taken(capsys):
    pytest.importorskip("uvicorn", reason="needs the extra 'serve'")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--no-matte", "--port", str(taken.getsockname()[1])]) == 2
    assert "give another --port, or 0 for a free one" in capsys.readouterr().err


def test_without_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main([]) == 2
    assert "pip install 'dd3g[serve]'" in capsys.readouterr().err


def test_a_missing_matting_model_is_never_fetched_by_a_caller(monkeypatch, tmp_path, capsys):
    pytest.importorskip("uvicorn", reason="needs the extra 'serve'")
    monkeypatch.setenv("DD3G_CACHE", str(tmp_path))
    assert main([]) == 2
    assert "dd3g models fetch u2netp" in capsys.readouterr().err


@slow
def test_the_server_and_the_command_make_the_same_files(server, tmp_path):
    done = command(LAMP, "-o", tmp_path, "--format", ",".join(FORMATS[:-1]), "--no-matte", "--seed", "3")
    assert done.returncode == 0, done.stderr
    for format in FORMATS[:-1]:
        status, content = post(server, LAMP.read_bytes(), f"?format={format}&seed=3")
        assert status == 200 and content == (tmp_path / f"lamp.{format}").read_bytes()
        assert len(content) > 50_000


@slow
def test_a_short_load_loses_nothing():
    pytest.importorskip("uvicorn", reason="needs the extra 'serve'")
    report = put_load(clients=12, seconds=float(os.environ.get("DD3G_LOAD_SECONDS", 3)))
    assert report["lost"] == [] and report["exit_code"] == 0
    assert report["answers"]["200"] >= 5 and set(report["answers"]) <= {"200", "400", "413", "422", "503"}


@slow
def test_a_signal_lets_a_picture_end_that_has_come(tmp_path):
    """SIGTERM, too, which a load ends with."""
    pytest.importorskip("uvicorn", reason="needs the extra 'serve'")
    process, port = start_server("--no-matte", "--max-seconds", "600")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("POST", "/generate?refine=1", LAMP.read_bytes())
    until = time.monotonic() + 60
    while health(port)["waiting"] == 0:
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    answer = connection.getresponse()
    (tmp_path / "lamp.ply").write_bytes(answer.read())
    assert answer.status == 200 and len(load(tmp_path / "lamp.ply")) > 5000
    assert process.wait(60) == 0 and process.stdout.read() == STOPPED


@slow
@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@pytest.mark.skipif(not model_path("u2netp"), reason="needs the matting model")
def test_a_server_opens_no_connection(tmp_path):
    pytest.importorskip("uvicorn", reason="needs the extra 'serve'")
    trace = tmp_path / "trace"
    words = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(trace)]
    words += [sys.executable, "-m", "dd3g", "serve", "--port", "0"]
    # Where traces are sent to in some places: the server must not.
    environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    process = subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    line = process.stdout.readline()
    if "http://" not in line:
        assert "ptrace" in (said := process.stderr.read()), said
        pytest.skip("strace may not trace here")
    port = int(line.split("127.0.0.1:")[1].split()[0])
    assert post(port, (ROOT / "assets/coffee.jpg").read_bytes())[0] == 200
    assert post(port, b"http://127.0.0.1:9/a.png")[0] == 422
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGTERM)
    process.communicate(timeout=60)
    calls = trace.read_text().splitlines()
    assert [call for call in calls if "connect(" in call and "AF_INET" in call] == []
    assert [call for call in calls if "sin_addr" in call or "sin6_addr" in call] == []


@pytest.fixture
def page(tmp_path):
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    page = Page(tmp_path / "profile", 800)
    yield page
    page.close()


def drop(page, *paths):
    """From the edge of the window to its middle.

    The page makes the events itself: now and then headless Chromium never answers `Input.dispatchDragEvent`.
    """
    files = json.dumps([[path.name, base64.b64encode(path.read_bytes()).decode()] for path in paths])
    script = """(files) => {
      const dataTransfer = new DataTransfer();
      for (const [name, data] of files)
        dataTransfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name));
      const options = {bubbles: true, cancelable: true, dataTransfer, clientX: 400};
      return [["dragenter", 5], ["dragover", 5], ["dragover", 300], ["drop", 300]].map(([kind, clientY]) => {
        const under = document.elementFromPoint(400, clientY);
        return [kind, under.dispatchEvent(new DragEvent(kind, {...options, clientY})), under.tagName];
      });
    }"""
    # After another size of the window was asked for, it may still be narrower for a while.
    page.wait("[5, 300].every((y) => document.elementFromPoint(400, y) !== null)")
    events = page.eval(f"({script})({files})")
    # Else the browser would open the file in place of the page, or a frame in it would.
    assert [kind for kind, left, _ in events if left and kind != "dragenter"] == []
    assert "IFRAME" not in [tag for *_, tag in events], "the object takes what is dropped on it"


@slow
def test_a_picture_dropped_on_the_page_turns_and_downloads(server, page, tmp_path):
    address = f"http://127.0.0.1:{server}/"
    page.call("Page.navigate", url=address)
    page.wait("document.readyState === 'complete' && typeof take === 'function'")
    drop(page, LAMP)
    page.wait("!document.getElementById('object').hidden")
    assert "Gaussians in" in page.eval("document.getElementById('status').textContent")
    box = json.loads(page.eval("JSON.stringify(document.getElementById('object').getBoundingClientRect())"))
    left, top = int(box["left"]) + 4, int(box["top"]) + 60

    def inside():
        return page.screenshot()[top : top + 250, left : left + 700].astype(int)

    until = time.monotonic() + 60
    while (shot := inside()).std(axis=(0, 1)).max() < 10:  # until the object is drawn
        assert time.monotonic() < until
    while np.abs(inside() - shot).max() <= 50:  # and turns
        assert time.monotonic() < until

    downloads = tmp_path / "downloads"
    session, page._session = page._session, None
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
    page._session = session
    for format in FORMATS:
        page.eval(f"document.querySelector('[data-format=\"{format}\"]').click()")
        path = downloads / f"lamp.{format}"
        until = time.monotonic() + 60
        while not path.exists():
            assert time.monotonic() < until, f"{path.name} never came"
            time.sleep(0.05)
        assert format not in SPLATS or len(load(path)) > 5000
    assert all(url.startswith((address, "blob:", "data:", "about:")) for url in page.requests), page.requests
    assert page.errors == []


@slow
def test_the_page_tells_what_is_wrong_with_a_picture(server, page, tmp_path):
    page.call("Page.navigate", url=f"http://127.0.0.1:{server}/")
    page.wait("document.readyState === 'complete' && typeof take === 'function'")
    broken = tmp_path / "broken.png"
    broken.write_bytes(LAMP.read_bytes()[:-2000])
    drop(page, broken)
    page.wait("document.getElementById('status').className === 'bad'")
    assert "the picture is damaged or cut short" in page.eval("document.getElementById('status').textContent")
    assert page.eval("document.getElementById('object').hidden")
    # By the button, as with a keyboard, and again a good one.
    data = base64.b64encode(LAMP.read_bytes()).decode()
    page.eval(f"take(new File([Uint8Array.from(atob('{data}'), (c) => c.charCodeAt(0))], 'lamp.png'))")
    page.wait("!document.getElementById('object').hidden")
    assert page.eval("document.getElementById('status').className") == ""
    assert page.eval("document.querySelectorAll('main').length") == 1
    # It was taken from about here; the one at the slider knows better.
    degrees = "Number(document.getElementById('elevation').value)"
    assert 3 <= (estimate := page.eval(degrees)) <= 18
    assert page.eval("document.getElementById('degrees').textContent") == f"{estimate}° above"
    asked = "performance.getEntriesByType('resource').at(-1).name.split('elevation=')[1]"
    assert page.eval(asked) == "auto"
    page.eval(f"{degrees.removeprefix('Number(').removesuffix(')')} = -5")
    page.eval("document.getElementById('elevation').dispatchEvent(new Event('change'))")
    page.wait(f"{asked} === '-5' && document.getElementById('status').textContent.includes('Gaussians in')")
    assert page.eval("document.getElementById('degrees').textContent") == "5° below"
    page.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
    page.wait("innerWidth === 390 && document.documentElement.scrollWidth === 390")
    assert page.eval("document.getElementById('drop').offsetHeight") < 90  # of a phone
    # Of several files the first is taken, and that is said, also where the object lies under the pointer.
    page.call("Emulation.clearDeviceMetricsOverride")
    page.eval("document.getElementById('object').srcdoc = document.getElementById('status').textContent = ''")
    drop(page, LAMP, broken)
    page.wait("document.getElementById('status').textContent.includes('Gaussians in')")
    said = page.eval("document.getElementById('status').textContent")
    assert said.startswith("One picture at a time: this is lamp.png, the first of 2\n")
    page.wait("document.getElementById('object').srcdoc !== ''")
    # Nothing of the last picture stays beside the next one's name.
    page.eval("take(new File([new Uint8Array(2.1e7)], 'large.png'))")
    page.wait("document.getElementById('status').className === 'bad'")
    assert "larger than 20 MB" in page.eval("document.getElementById('status').textContent")
    assert page.eval("['object', 'tools', 'downloads'].every((id) => document.getElementById(id).hidden)")

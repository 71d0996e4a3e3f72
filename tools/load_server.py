"""Load on a server of its own: `python -m tools.load_server --clients 64 --seconds 600`.

Starts `dd3g serve` on a free port of this machine's loopback, lets clients post good and bad pictures until
the time is over, stops it by SIGTERM while they are still at it, and prints one JSON object: what was
answered, what was lost, and the memory that the server took.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from typing import Annotated, Any

import psutil
import typer
from PIL import Image

from dd3g.command.run import command_line
from dd3g.errors import UserError

FORMATS = ("ply", "spz", "glb", "splat", "html")


def start_server(*options: str) -> tuple[subprocess.Popen[str], int]:
    """`dd3g serve` on a free port of loopback, once it listens; options come after its name.

    Raises:
        UserError: when it does not start.
    """
    command = [sys.executable, "-m", "dd3g", "serve", "--host", "127.0.0.1", "--port", "0", *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    line = server.stdout.readline()
    if "http://127.0.0.1:" not in line:
        raise UserError(f"the server did not start (exit code {server.wait()}): run {' '.join(command)}")
    return server, int(line.split("127.0.0.1:")[1].split()[0])


def pictures(count: int) -> list[bytes]:
    """Different small PNG files with alpha."""
    files = []
    for i in range(count):
        image = Image.new("RGBA", (96, 96))
        image.paste((40 + 20 * i % 200, 200 - 30 * i % 180, 60, 255), (20 + i % 5, 16, 76, 80 - i % 7))
        file = io.BytesIO()
        image.save(file, "PNG")
        files.append(file.getvalue())
    return files


class Load:
    """What all clients share: what they send, and what became of it.

    Each good picture is asked for with three seeds and in all formats.
    """

    def __init__(self, port: int, good: list[bytes]) -> None:
        self.port, self.good = port, good
        self.bad = [
            ("", b"no picture " * 20, 422),
            ("", good[0][:-40], 422),
            ("?seed=x", good[0], 400),
            ("?format=exe", good[0], 400),
            ("?output=/etc", good[0], 400),
            ("", bytes(1_500_000), 413),
        ]
        self.over, self._lock = threading.Event(), threading.Lock()
        self.answers: Counter[int] = Counter()
        self.lost: list[str] = []
        self.seconds: list[float] = []
        self._digests: dict[str, str] = {}

    def client(self, seed: int) -> None:
        """Post until it is over; a request that has begun is seen to its end."""
        draw = random.Random(seed)
        while not self.over.is_set():
            if draw.random() < 0.2:
                query, body, expected = draw.choice(self.bad)
                self._ask(query, body, expected, "")
            else:
                number = draw.randrange(len(self.good))
                query = f"?format={draw.choice(FORMATS)}&seed={draw.randrange(3)}"
                self._ask(query, self.good[number], 200, f"{number}{query}")

    def _ask(self, query: str, body: bytes, expected: int, key: str) -> None:
        start = time.monotonic()
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            try:
                connection.request("POST", f"/generate{query}", body)
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException) as error:
                # A stopping server takes no new connection; one that was open is answered.
                if not (self.over.is_set() and isinstance(error, ConnectionRefusedError)):
                    self._lose(f"{query}: {type(error).__name__}: {error}")
                return
            finally:
                connection.close()
            with self._lock:
                self.answers[answer.status] += 1
            if answer.status not in (503, 504):
                break
            if self.over.wait(float(answer.headers.get("Retry-After", 1))):
                return
        if answer.status != expected:
            self._lose(f"{query}: {answer.status} for {expected}: {content[:200]!r}")
        elif expected == 200:
            digest = hashlib.sha256(content).hexdigest()
            with self._lock:
                self.seconds.append(time.monotonic() - start)
                known = self._digests.setdefault(key, digest)
            if digest != known:
                self._lose(f"{key}: other bytes than before")
        elif list(json.loads(content)) != ["error"]:
            self._lose(f"{query}: an answer that is not an error: {content[:200]!r}")

    def _lose(self, what: str) -> None:
        with self._lock:
            self.lost.append(what)


def load(clients: int, seconds: float) -> dict[str, Any]:
    """Run the whole load; see the top of this file.

    Returns:
        `answers` by status, `lost` requests in words, `latency` of good ones in seconds at the median, the
        95th percentile and most, `memory` in MB after each tenth of the time, and the server's `exit_code`.
    """
    server, port = start_server("--max-megabytes", "1")
    work = Load(port, pictures(12))
    threads = [threading.Thread(target=work.client, args=(i,)) for i in range(clients)]
    held = psutil.Process(server.pid).memory_info  # resident
    memory = [held().rss]
    try:
        for thread in threads:
            thread.start()
        for _ in range(10):
            time.sleep(seconds / 10)
            memory.append(held().rss)
        work.over.set()
        server.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(150)
        code = server.wait(150)
    finally:
        work.over.set()
        server.kill()
    took = sorted(work.seconds) or [0.0]
    return {
        "clients": clients,
        "seconds": seconds,
        "answers": {str(status): count for status, count in sorted(work.answers.items())},
        "lost": work.lost,
        "latency": [round(took[min(len(took) - 1, int(q * len(took)))], 2) for q in (0.5, 0.95, 1)],
        "memory": [round(value / 1e6) for value in memory],
        "exit_code": code,
    }


def run(
    clients: Annotated[int, typer.Option(help="Clients that post at the same time.")] = 64,
    seconds: Annotated[float, typer.Option(help="Seconds until the server is stopped.")] = 600.0,
) -> None:
    """Put load on a server of this machine, and report what became of it.

    Exit code 1: something was lost, or memory kept growing.
    """
    report = load(clients, seconds)
    typer.echo(json.dumps(report, indent=1))
    _, _, _, settled, *later = report["memory"]  # of which the first tenths fill caches
    grown = seconds >= 60 and later[-1] > 1.1 * settled
    if report["lost"] or report["exit_code"] or grown:
        raise typer.Exit(1)


main = command_line(run, "python -m tools.load_server", needs_words=False)

if __name__ == "__main__":
    sys.exit(main())

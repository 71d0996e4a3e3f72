"""Requests that wait: how long, behind how many, and what becomes of those who leave."""

import asyncio
import threading
import time

import pytest
from stand_ins.served import numbers, picture, post, serving

from dd3g.pepd import elevation
from dd3g.serve.worker import Worker


def test_a_picture_that_never_ends_coming_is_408(serve):
    async def slow():
        yield picture()[:100]
        await asyncio.sleep(30)

    answer = serve(post(slow()), seconds=0.1)
    assert answer.status_code == 408 and "0.1 seconds to arrive" in answer.json()["error"]


def test_what_takes_too_long_is_504_and_the_next_is_served(serve, gate):
    async def ask(client, seed):
        return await client.post(f"/generate?seed={seed}", content=picture())

    async def work(client):
        gate.open.clear()
        late, never = await ask(client, seed=1), await ask(client, seed=2)
        gate.open.set()
        good = await ask(client, seed=3)
        while good.status_code in (503, 504):  # on a busy machine, until the first has ended
            good = await ask(client, seed=3)
        return late, never, good

    late, never, good = serve(work, seconds=1)
    assert (late.status_code, never.status_code, good.status_code) == (504, 504, 200)
    assert "no answer within 1 seconds" in late.json()["error"]
    # The second waited behind the first, was given up, and never began. The third may have begun twice.
    assert {seed for seed, _ in gate.calls} == {1, 3}


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
        await asyncio.to_thread(gate.entered.wait, 60)
        second = asyncio.create_task(client.post("/generate", content=picture(colours[1])))
        await asyncio.sleep(0.2)
        gate.open.set()
        return (await first).status_code, (await second).status_code

    assert serve(work, mean_seconds=mean_seconds, seconds=30) == (200, status)


def test_a_caller_that_leaves_is_not_worked_for(serve, gate):
    async def work(client):
        gate.open.clear()
        first = asyncio.create_task(client.post("/generate", content=picture()))
        await asyncio.to_thread(gate.entered.wait, 60)
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


def test_the_pass_becomes_a_graph_before_the_first_picture(gate):
    """In the worker's own thread, as CUDA wants it."""
    gate.compiled = lambda: gate.calls.append(threading.current_thread().name)
    elevation._shipped.cache_clear()
    worker = Worker(gate, "none")
    worker.warm_up()
    worker.close()
    assert gate.calls[0].startswith("dd3g-worker") and len(gate.calls) > 1
    assert elevation._shipped.cache_info().currsize == 1


def test_closing_answers_what_is_worked_on_and_drops_what_waits(gate):
    gate.open.clear()
    worker = Worker(gate, "none")
    order = serving.Parameters().order(worker)
    first, second = (worker.submit(picture(colour=(0, 0, i)), "ply", order) for i in range(2))
    assert gate.entered.wait(60)
    closing = threading.Thread(target=worker.close)
    closing.start()
    while not second.cancelled():
        time.sleep(0.01)
    gate.open.set()
    closing.join(60)
    assert first.result(1).gaussians == 20 and len(gate.calls) == 1

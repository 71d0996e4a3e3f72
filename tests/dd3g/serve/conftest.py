import asyncio

import pytest


@pytest.fixture
def gate():
    from stand_ins.served import Gate

    return Gate()


@pytest.fixture
def serve(gate):
    """Runs a coroutine with a client of a server."""
    from stand_ins.served import httpx2, serving

    from dd3g.serve.worker import Worker

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

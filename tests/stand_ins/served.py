"""A server around a stand-in for the generator, and what its callers send and read."""

import io
import threading

import pytest
from PIL import Image
from stand_ins.infer_command import StubGenerator

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


async def numbers(client):
    """Name and labels of a metric -> its value."""
    text = (await client.get("/metrics")).text
    samples = [s for family in prometheus.text_string_to_metric_families(text) for s in family.samples]
    return {(s.name, *s.labels.values()): s.value for s in samples}

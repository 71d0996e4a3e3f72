import pytest
import torch

from dd3g.errors import UserError
from dd3g.nn.checkpoint import find_device


def test_names():
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["", "abacus", "meta", "xpu", "cuda:x"])
def test_unknown_names(name):
    with pytest.raises(UserError, match=f"unknown device '{name}': give auto, cpu, cuda, cuda:1 or mps"):
        find_device(name)


def test_missing_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("cuda", "cuda:1", "mps"):
        with pytest.raises(
            UserError, match=f"no {name.partition(':')[0]} device on this machine: give --device cpu"
        ):
            find_device(name)


def test_a_device_that_does_not_answer(monkeypatch):
    def refuse(*shape, device):
        raise RuntimeError("CUDA error: invalid device ordinal\nCUDA kernel errors might be reported later")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", refuse)
    with pytest.raises(
        UserError, match=r"^the device 'cuda:9' does not work \(CUDA error: invalid dev.*ordinal\): "
    ):
        find_device("cuda:9")

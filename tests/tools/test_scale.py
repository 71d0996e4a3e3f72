"""What a distillation costs: counted by the command that the page is from, and by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.scale import MEASURED, Counted, count, hours, main, page, state_bytes, utilisation

ROOT = Path(__file__).parents[2]
MADE_UP = Counted(
    name="base", batch=8, parameters=100, block=10, gaussians=1, flops=10**12, saved=10**9,
    saved_recomputed=10**8, recomputed=10**12, sample=10**6,
)  # fmt: skip


@pytest.mark.slow
def test_the_page_is_what_the_command_prints(tmp_path):
    assert main(["-o", str(tmp_path / "scale.md")]) == 0
    wanted = (ROOT / "docs/scale.md").read_text()
    assert (tmp_path / "scale.md").read_text() == wanted, "run python -m tools.scale -o docs/scale.md"


def test_nano_by_another_way():
    found = count("nano")
    assert found.parameters == pytest.approx(9.9e6, rel=0.01) and found.gaussians == 8192
    assert found.flops == pytest.approx(5.3e9, rel=0.01)  # as a run on a GPU counted
    # That run's memory, which holds what libraries work with and keep, too.
    batch, _, peak = MEASURED["nano"]
    assert 0.7 < (batch * found.saved + 10 * found.parameters) / 1e9 / peak < 1.4
    assert found.saved_recomputed < 0.6 * found.saved
    assert 0.25 * found.flops < found.recomputed <= found.flops
    assert found.sample == 4 * (64 * 64 * (4 * 9 + 4) + 4 * 64 * 16 * 16)


def test_memory_and_hours_by_hand():
    assert state_bytes(MADE_UP, "DDP", 1) == 2200 and state_bytes(MADE_UP, "DDP", 8) == 2600
    assert state_bytes(MADE_UP, "FSDP2", 8) == 2000 / 8 + 200
    assert state_bytes(MADE_UP, "ZeRO-2", 8) == 200 + 25 + 200
    assert state_bytes(MADE_UP, "ZeRO-3", 8) == 50 + 200 + 80
    assert hours(MADE_UP, 8, 0.5) == pytest.approx(120_000 * 50 * 3e12 / (8 * 989e12 * 0.5) / 3600)
    assert hours(MADE_UP, 8, 0.5, recompute=True) == pytest.approx(4 / 3 * hours(MADE_UP, 8, 0.5))
    assert utilisation("base", MADE_UP) == pytest.approx(3e12 * 4 / 0.138 / 989e12)
    assert "| base at 9%, measured | " in page([MADE_UP])

"""What a distillation costs: counted by the command that the page is from, and by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dd3g.command.configuration import parse
from dd3g.hub_models import HUB_MODELS
from distill.train import DistillConfig
from tools.scale import (
    COMPACT,
    GB,
    MEASURED,
    PICTURES,
    TARGET,
    Counted,
    count,
    hours,
    main,
    page,
    state_bytes,
    utilisation,
    working_set,
)

ROOT = Path(__file__).parents[2]
MADE_UP = Counted(
    name="base", batch=8, parameters=100, trained=40, block=10, gaussians=1, flops=10**12, both=3 * 10**12,
    saved=10**9, saved_recomputed=10**8, recomputed=10**12, copies=80, sample=10**6, pixels=10**6,
)  # fmt: skip


@pytest.mark.slow
def test_the_page_is_what_the_command_prints(tmp_path):
    assert main(["-o", str(tmp_path / "scale.md")]) == 0
    wanted = (ROOT / "docs/scale.md").read_text()
    assert (tmp_path / "scale.md").read_text() == wanted, "run python -m tools.scale -o docs/scale.md"


@pytest.mark.slow
def test_the_figures_of_the_distil_page():
    """Its table follows from the counts, the configuration and the hub's sizes."""
    text, base = (ROOT / "docs/distil.md").read_text(), count("base")
    config = parse(["--config", "base"], DistillConfig)
    kept = config.checkpoints_total_limit
    writing, model = (kept + 1) * base.checkpoint / GB, 4 * base.parameters / GB
    assert f"{kept * base.checkpoint / GB:.0f} GB of checkpoints, {writing:.0f} while" in text
    assert f"{model:.0f} GB of model" in text
    samples = 8 * config.train_batch_size * config.max_train_steps
    assert (
        f"{hours(base, 8, TARGET, samples=samples):.1f} at 35 % of the peak for {samples / 1e6} mil" in text
    )
    state = state_bytes(base, "DDP", 8)
    assert f"{state / GB:.0f} GB of state, {base.saved / GB:.1f} GB a sample" in text
    assert f"{base.saved_recomputed / GB:.1f} with gradient_checkpointing" in text
    guided = 50 * 2 * 1.09e12 + 2.5e12  # of the teacher, an item
    assert f"{hours(replace(base, both=int(guided)), 8, TARGET, samples=PICTURES):.1f} at 35 %" in text
    assert f"{(guided + 1.78e12) / base.flops:.0f} times the FLOPs" in text
    fetched = sum(HUB_MODELS[name].size for name in ("imagedream", "lgm")) + 58.9e6 + 4.6e6
    assert text.count(f"{fetched / GB:.1f} GB") == 2


@pytest.mark.slow
def test_nano_by_another_way():
    found = count("nano")
    assert found.parameters == pytest.approx(9.9e6, rel=0.01) and found.gaussians == 8192
    assert found.flops == pytest.approx(5.3e9, rel=0.01)  # as a run on a GPU counted
    # That run's memory, which holds what libraries work with and keep, too.
    peak = MEASURED["nano"][2]
    assert 0.7 < working_set(found) / 1e9 / peak < 1.4
    assert found.trained == found.parameters and found.copies == pytest.approx(2 * found.parameters, rel=0.1)
    assert found.both == pytest.approx(3 * found.flops, rel=0.04)
    assert found.saved_recomputed < 0.6 * found.saved
    assert 0.25 * found.flops < found.recomputed <= found.flops
    assert found.sample == 4 * (64 * 64 * (4 * 9 + 4) + 4 * 64 * 16 * 16)


def test_memory_and_hours_by_hand():
    # 100 weights of 4 bytes; 40 gradients, 80 moments, 40 averages; 80 bytes of copies; 40 in buckets.
    assert state_bytes(MADE_UP, "DDP", 1) == 400 + 640 + 80
    assert state_bytes(MADE_UP, "DDP", 8) == 400 + 640 + 80 + 160
    assert state_bytes(MADE_UP, "FSDP2", 8) == 1040 / 8 + 200
    assert state_bytes(MADE_UP, "ZeRO-2", 8) == 200 + 10 + 80
    assert state_bytes(MADE_UP, "ZeRO-3", 8) == 35 + 80 + 80
    assert MADE_UP.checkpoint == 400 + 160 + 320
    assert hours(MADE_UP, 8, 0.5) == pytest.approx(120_000 * 50 * 3e12 / (8 * 989e12 * 0.5) / 3600)
    assert hours(MADE_UP, 8, 0.5, recompute=True) == pytest.approx(4 / 3 * hours(MADE_UP, 8, 0.5))
    assert utilisation(COMPACT, MADE_UP) == pytest.approx(3e12 * 4 / 0.138 / 989e12)
    text = page([MADE_UP, replace(MADE_UP, name=COMPACT)])
    assert f"| {COMPACT} at 9%, measured | " in text and "| base at 35%, target | " in text
    assert "| base at 9%" not in text  # nobody measured it
    rate = 989e12 * 0.35 / (8 * 3e12)  # steps a second, of 8 samples of a megapixel
    assert f"10.4 MB a step and GPU, at 35% of the\npeak {10.4 * rate:.0f} MB/s, and 1200 MB/s for 8" in text
    assert page([MADE_UP], gpus=[1]).count("150 MB/s for 1 GPU.") == 1


@pytest.mark.slow
def test_other_numbers_of_gpus_and_a_configuration_of_ones_own(tmp_path, capsys):
    own = tmp_path / "own.yaml"
    own.write_text("train_batch_size: 5\ngenerator: {depth: 1}\n")
    words = ["--gpus", "3", "--gpus", "17", "--pictures", "40000", "--epochs", "7", "--config", str(own)]
    assert main(words) == 0
    text = capsys.readouterr().out
    counted = count(str(own))
    assert counted.batch == 5 and 0 < counted.parameters < count("nano").parameters
    assert "| split | 3 GPUs | 17 GPUs |" in text and f"GB a GPU, for {own}:" in text
    assert (
        f"| DDP | {state_bytes(counted, 'DDP', 3) / 1e9:.2f} | {state_bytes(counted, 'DDP', 17) / 1e9:.2f} |"
        in text
    )
    assert "**Hours** for 40,000 pictures x 7 epochs" in text and "| 17, gradient_checkpointing |" in text
    found = hours(count("small"), 3, 0.35, samples=280_000)
    assert f"| small at 35%, target | {found:.2f} | {found * 3 / 17:.2f} |" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", "0"], "greater than or equal to 1"),
        (["--gpus", "-8"], "greater than or equal to 1"),
        (["--gpus", "two"], "valid integer"),
        (["--pictures", "0"], "greater than or equal to 1"),
        (
            ["--config", "huge"],
            "no file huge, and no packaged configuration of that name (base, nano, small)",
        ),
        (["--config", "{}/odd.yaml"], "width 33 must be a multiple of 8 and of heads 2"),
        (["--config", "{}/large.yaml"], "bounds.scale_min 0.003 and bounds.scale_max 0.1 must lie on either"),
    ],
)
def test_what_cannot_be_counted(words, message, tmp_path, capsys):
    (tmp_path / "odd.yaml").write_text("generator: {width: 33, heads: 2}\n")
    (tmp_path / "large.yaml").write_text("generator: {size: 320, latent_shape: [6, 4, 40, 40]}\n")
    assert main([word.format(tmp_path) for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.slow
def test_base_starts_from_imagedream():
    """By the published sizes: the U-Net, the image encoder without what ImageDream leaves out, half a VAE."""
    found, compact = count("base"), count(COMPACT)
    own = compact.parameters - 86e6  # about: dd3g's own phase 1
    assert found.parameters == pytest.approx(941.7e6 + 612e6 + 34e6 + own, rel=0.005)
    assert found.trained == pytest.approx(32.5e6 + 52.3e6 + own, rel=0.01)
    # 1.09 TFLOP of the U-Net in place of the compact stack's 1.06, and the encoders.
    assert found.flops == pytest.approx(compact.flops + 0.03e12 + 0.55e12, rel=0.02)

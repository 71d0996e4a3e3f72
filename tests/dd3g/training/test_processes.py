"""How a run stands on its machine, and what it says of it."""

from __future__ import annotations

import datetime

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from stand_ins import line_run
from stand_ins.forked import ROOT
from stand_ins.line_run import LINE, Line
from stand_ins.training_runs import fresh, metrics

from dd3g.command.configuration import launch
from dd3g.nn.recompute import recompute_blocks
from dd3g.training import LoopConfig, data, loop, optimizer, processes


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Several threads would take longer here."""


def line(folder, *words):
    fresh()
    settings = [f"{k}={v}" for k, v in LINE.items()]
    return launch(line_run.run, LoopConfig, [*settings, f"output_dir={folder}", *words])


def test_device_and_first_step_are_told(tmp_path, capsys):
    assert line(tmp_path) == 0
    error = capsys.readouterr().err
    assert "training 28 parameters on cpu, processes: 1, precision: no, from step 0 of 8\n" in error
    assert "step 1: loss " in error and " s after the start\n" in error


def test_the_device_is_spelled_as_for_other_commands(tmp_path, monkeypatch, capsys):
    assert LoopConfig(device="cpu").use_cpu and not LoopConfig(device="cuda", use_cpu=True).use_cpu
    assert LoopConfig(use_cpu=True).use_cpu
    assert line(tmp_path, "--device", "cuda:1") == 2
    assert "device 'cuda:1' is not one of auto, cpu, cuda" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert line(tmp_path, "--device", "cuda") == 2
    assert "torch finds no cuda device on this machine" in capsys.readouterr().err


def as_launched(name):
    """What `accelerate launch` sets for the processes that it starts by a file of configs/accelerate."""
    parser = launch_command_parser()
    args = parser.parse_args(["--config_file", str(ROOT / f"configs/accelerate/{name}.yaml"), "train.py"])
    args, _, _ = _validate_launch_command(args)
    if args.multi_gpu or args.use_fsdp:
        return prepare_multi_gpu_env(args) | {"WORLD_SIZE": str(args.num_processes)}
    return prepare_simple_launcher_cmd_env(args)[1]


@pytest.mark.parametrize(
    ("name", "word", "count"),
    [
        ("gpu8", "", 8), ("multi_node", "", 16), ("fsdp", "", 8), ("slurm", "", 16),
        ("gpu8", "use_cpu=true", 0), ("gpu8", "device=cpu", 0),
        ("gpu1", "", 0), ("cpu", "", 0), ("torchrun", "", 0),
    ],
)  # fmt: skip
def test_processes_for_gpus_do_not_train_on_cpus(tmp_path, monkeypatch, capsys, name, word, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    others = {"slurm": {"WORLD_SIZE": "16", "ACCELERATE_USE_CPU": "false"}, "torchrun": {"WORLD_SIZE": "8"}}
    for key, value in (others.get(name) or as_launched(name)).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(loop, "launcher_has_ended", lambda: False)  # nobody has started this process
    made = []
    monkeypatch.setattr(processes, "Accelerator", lambda **options: made.append(options) or 1 / 0)
    if count:
        assert line(tmp_path, *filter(None, [word])) == 2
        said = f"{count} processes were started for GPUs, but this machine shows no CUDA"
        assert said in capsys.readouterr().err
    else:
        with pytest.raises(ZeroDivisionError):
            line(tmp_path, *filter(None, [word]))
        assert made[0]["cpu"]


def test_a_rank_that_is_none_is_told_before_the_first_step(tmp_path, monkeypatch, capsys):
    """Not when all is done, where the main process alone says what was written."""
    monkeypatch.setenv("RANK", "gold")
    assert line(tmp_path) == 2
    assert "RANK is 'gold' in the environment" in capsys.readouterr().err
    assert not (tmp_path / "metrics.jsonl").exists()


def test_levers_reach_their_libraries(tmp_path, monkeypatch):
    made, loaded = [], []

    def spy(**options):
        made.append(options)
        return original(**options | {"dynamo_backend": "eager"})

    class Loader(data.DataLoader):
        def __init__(self, *args, **options):
            loaded.append(options)
            super().__init__(*args, **options | {"num_workers": 0, "prefetch_factor": None}
                             | {"multiprocessing_context": None})  # fmt: skip

    original = processes.Accelerator
    monkeypatch.setattr(processes, "Accelerator", spy)
    monkeypatch.setattr(data, "DataLoader", Loader)
    monkeypatch.setattr(data, "cores_each", lambda: 16)
    precision = torch.get_float32_matmul_precision()
    words = ["torch_compile=true", "allow_tf32=true", "ddp_timeout=77", "dataloader_prefetch_factor=5"]
    try:
        assert line(tmp_path, *words, "dataloader_num_workers=3") == 0
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = True
    (options,) = made
    assert options["dynamo_backend"] == "inductor"
    assert options["kwargs_handlers"][0].timeout == datetime.timedelta(seconds=77)
    assert loaded[0]["prefetch_factor"] == 5 and loaded[0]["num_workers"] == 3
    assert len(metrics(tmp_path)) == 8


def test_out_of_memory_names_the_levers(tmp_path, monkeypatch, capsys):
    def forward(self, x):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.")

    monkeypatch.setattr(Line, "forward", forward)
    assert line(tmp_path) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "too little memory for step 1" in error and "lower train_batch_size 4" in error
    assert "gradient_checkpointing=true" in error


def test_recomputed_blocks_keep_values_and_gradients(tmp_path):
    torch.manual_seed(0)
    plain, forgetful = Line(), Line()
    forgetful.load_state_dict(plain.state_dict())
    assert recompute_blocks(forgetful) == 2
    calls = []
    forgetful.blocks[0].layer.register_forward_pre_hook(lambda *_: calls.append(1))
    x = torch.randn(5, 3)
    for model in (plain, forgetful):
        model(x).square().sum().backward()
    assert len(calls) == 2  # once more on the way back
    for a, b in zip(plain.parameters(), forgetful.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert line(tmp_path / "plain") == 0
    assert line(tmp_path / "forgetful", "gradient_checkpointing=true") == 0
    assert metrics(tmp_path / "plain") == metrics(tmp_path / "forgetful")


def test_deepspeed_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        processes.Accelerator, "distributed_type", property(lambda self: processes.DistributedType.DEEPSPEED)
    )
    assert line(tmp_path) == 2
    assert "configs/accelerate/fsdp.yaml" in capsys.readouterr().err


def test_fsdp_of_version_1_is_refused(tmp_path, monkeypatch, capsys):
    """accelerate takes it where a file names no version."""
    monkeypatch.setattr(
        processes.Accelerator, "distributed_type", property(lambda self: processes.DistributedType.FSDP)
    )
    monkeypatch.setattr(processes.Accelerator, "is_fsdp2", False)
    assert line(tmp_path) == 2
    assert "set fsdp_version: 2 in your file" in capsys.readouterr().err


def test_micro_steps_are_those_of_the_configuration(tmp_path, monkeypatch):
    """accelerate prefers a variable: it left out three steps of four, and divided losses by four."""
    words = ["gradient_accumulation_steps=2"]
    assert line(tmp_path / "a", *words) == 0
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert line(tmp_path / "b", *words) == 0
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_the_main_process_alone_needs_the_output_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(processes, "on_main", lambda work: None)  # of a process that only waits
    config = LoopConfig(report_to="none", use_cpu=True)
    assert processes.make_accelerator(config, tmp_path / "file/run").num_processes == 1


def test_fused_adamw_on_gpus(tmp_path, monkeypatch):
    """The optimiser of a CUDA device is the fused one without being asked for."""
    asked = []
    original = optimizer.make_optimizer
    monkeypatch.setattr(
        loop, "make_optimizer", lambda m, c, fused: asked.append(fused) or original(m, c, fused)
    )
    assert line(tmp_path / "a") == 0 and line(tmp_path / "b", "adam_fused=true") == 0
    assert asked == [False, True]
    assert optimizer.make_optimizer(Line(), LoopConfig(), True).defaults["fused"] is True

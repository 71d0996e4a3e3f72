from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from omegaconf import OmegaConf

from data_gen.__main__ import main as commands
from data_gen.collect import CollectConfig
from data_gen.synthesize import SynthesizeConfig
from data_gen.train_tiny import TinyTrainConfig
from dd3g.command.configuration import explained, launch, parse
from dd3g.command.setting import setting
from dd3g.errors import UserError
from dd3g.pepd import Generator
from dd3g.pepd.config import GeneratorConfig, TeacherPhase
from dd3g.pepd.occupancy import OccupancyNet
from distill.config import ObjectiveConfig, StartConfig
from distill.evaluation.protocol import Protocol
from distill.train import DistillConfig, run
from distill.train_shape import ShapeConfig
from distill.train_teacher import TeacherConfig
from distill.train_teacher import run as run_teacher

ROOT = Path(__file__).parents[3]


def test_parse(tmp_path):
    (tmp_path / "a.yaml").write_text("seed: 3\ngenerator:\n  width: 64\nrenders: [a, b]\n")
    line = [
        "--config",
        str(tmp_path / "a.yaml"),
        "--max-minutes",
        "2.5",
        "--resume=latest",
        "generator.depth=2",
        "seed=4",
    ]
    config = parse(line, DistillConfig)
    assert (config.seed, config.max_minutes, config.resume_from_checkpoint) == (4, 2.5, "latest")
    assert (config.generator.width, config.generator.depth, config.renders) == (64, 2, ["a", "b"])
    assert parse(["--resume_from_checkpoint", "latest"], DistillConfig).resume_from_checkpoint == "latest"


@pytest.mark.parametrize("text", ["2025_12_01", "001", "1:30", "runs/a #1", "no", "[b", "@x"])
def test_a_text_is_taken_as_typed(text):
    assert parse([f"output_dir={text}"], DistillConfig).output_dir == text
    assert parse([f"start.teacher={text}"], DistillConfig).start.teacher == text
    assert parse(["--model.licence", text], SynthesizeConfig).model.licence == text


def test_a_text_may_be_quoted_or_empty():
    """As by those who write for YAML."""
    texts = {"'muon'": "muon", '"1:30"': "1:30", '""': "", "null": "", "~": "", "'": "'"}
    assert {t: parse([f"start.teacher={t}"], DistillConfig).start.teacher for t in texts} == texts


def test_texts_of_a_list_are_taken_as_typed():
    lists = {
        "[2025_11_30,001, no]": ["2025_11_30", "001", "no"], '["a b",c]': ["a b", "c"], "['a #1']": ["a #1"],
        "[]": [], "null": [], "~": [],
    }  # fmt: skip
    assert {text: parse([f"renders={text}"], DistillConfig).renders for text in lists} == lists


def test_a_text_that_may_be_none():
    @dataclass
    class Named:
        name: str | None = None

    assert [parse([f"name={text}"], Named).name for text in ("1_0", "null")] == ["1_0", None]


def test_a_key_without_a_value_is_empty(tmp_path):
    """The shell takes the quotes of start.teacher='' away; a file may have nothing behind the colon."""
    (tmp_path / "a.yaml").write_text("renders: [a]\nstart:\n  teacher: imagedream\nunpacked_dir:\n")
    line = ["--config", str(tmp_path / "a.yaml"), "start.teacher=", "renders=", "--validation-renders", ""]
    config = parse(line, DistillConfig)
    assert (config.start.teacher, config.renders, config.unpacked_dir) == ("", [], "")
    for word in ("seed=", "generator=", "push_to_hub="):
        with pytest.raises(UserError, match=word[:-1]):
            parse([word], DistillConfig)
    (tmp_path / "a.yaml").write_text("output_dir:\n")  # would be the current folder
    with pytest.raises(UserError, match="output_dir"):
        parse(["--config", str(tmp_path / "a.yaml")], DistillConfig)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["stray"], "'stray': expected --key value or key=value"),
        (["--seed"], "'--seed': expected"),
        (["sed=3"], "sed"),
        (["seed=x"], "seed"),
        (["mixed_precision=int8"], "int8"),
        (["optimizer=sgd"], "optimizer 'sgd' is not one of adamw, muon"),
        (["train_batch_size=0"], "train_batch_size must be between 1 and 100000, got 0"),
        ([f"train_batch_size={10**23}"], f"train_batch_size must be between 1 and 100000, got {10**23}"),
        (["gradient_accumulation_steps=100001"], "must be between 1 and 100000, got 100001"),
        (["objective.implicit_form=sds"], "sds"),
        (["generator.width=30"], "width 30"),
        (["renders=[rn"], "renders=[rn cannot be read (expected ',' or ']'"),
        (["seed=[1"], "): close brackets and quotes"),
        (["renders={a: b}"], "renders={a: b}: give a list as [A,B]"),
        (["generator.blocks=[1]"], "generator.blocks=[1]: give 3 values in brackets, got 1"),
        (["generator.blocks=[1,2,x]"], "generator.blocks=[1,2,x]: a value could not be converted to Integer"),
        (["generator=3"], "generator=3: a section has keys of its own, got int"),
        ([f"learning_rate={10**400}"], "0: int too large to convert to float"),
        (["generator.heads=0"], "heads must be at least 1, got 0"),
        (["generator.heads=-4"], "heads must be at least 1, got -4"),
        (["learning_rate=-1"], "learning_rate must be at least 0, got -1"),
        (["learning_rate=.nan"], "learning_rate must be at least 0, got nan"),
        (["checkpoints_total_limit=-1"], "checkpoints_total_limit must be at least 0"),
        (["adam_beta1=2"], "adam_beta1 must be at least 0 and below 1, got 2"),
        (["adam_beta2=1"], "adam_beta2 must be"),
        (["ema_decay=2"], "ema_decay must be between 0 and 1, got 2"),
        (["max_minutes=-1"], "max_minutes must be at least 0"),
        (["quadruples_share=-1"], "quadruples_share must be between 0 and 1, got -1"),
        (["scan_fraction=.nan"], "scan_fraction must be between 0 and 1"),
        (["targets=0"], "targets must be at least 1, got 0"),
        ([f"seed={10**20}"], f"seed must be below 2^63, got {10**20}"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)  # fmt: skip
def test_wrong_command_lines(line, message, capsys):
    assert launch(run, DistillConfig, line) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("condition_dropout=2", "condition_dropout must be between 0 and 1, got 2"),
        ("turned_fraction=.nan", "turned_fraction must be between 0 and 1"),
        ("teacher.heads=-2", "heads must be at least 1, got -2"),
        ("teacher.depth=-1", "depth must be at least 0, got -1"),
        ("teacher.steps=0", "steps must be at least 1, got 0"),
    ],
)
def test_wrong_values_for_the_teacher(line, message, capsys):
    assert launch(run_teacher, TeacherConfig, [line]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_packaged_configuration_is_found_by_name(tmp_path, monkeypatch):
    named = parse(["--config", "nano"], DistillConfig)
    assert named == parse(["--config", str(ROOT / "configs/distill/nano.yaml")], DistillConfig)
    assert named.max_train_steps == 1500
    assert parse(["--config", "nano"], TeacherConfig).teacher.steps == 4
    assert parse(["--config", "flux"], SynthesizeConfig).model.steps == 4
    with pytest.raises(UserError, match=r"no file huge.* packaged configuration .*\(base, nano, small\)"):
        parse(["--config=huge"], DistillConfig)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano").write_text("max_train_steps: 7")  # a file of one's own wins
    assert parse(["--config", "nano"], DistillConfig).max_train_steps == 7


def test_output_is_taken_as_it_is_spelled(tmp_path):
    for words in (["-o", "a=[b]"], ["--output", "a=[b]"], ["output=a=[b]"], ["--output=a=[b]"], ["-o=a=[b]"]):
        assert parse(words, DistillConfig).output_dir == "a=[b]"
        assert parse(words, SynthesizeConfig).output == "a=[b]"
    assert parse(["null", "-o", "x"], CollectConfig).source == "null"
    (tmp_path / "more.yaml").write_text("limit: 3")
    more = ("limit=3", "shard-size=3", "filters.min_fill=0.2", f"config={tmp_path}/more.yaml")
    for line in (["a", "output=b"], ["source=a", "output=b"], *([k, "source=a", "-o", "b"] for k in more)):
        assert (parse(line, CollectConfig).source, parse(line, CollectConfig).output) == ("a", "b")
    assert parse(["a=b", "-o", "x"], CollectConfig).source == "a=b"  # a file may be called so


def test_switches_need_no_value(capsys):
    assert parse(["--json", "--seed", "3"], SynthesizeConfig).json
    assert parse(["json=false"], SynthesizeConfig).json is False
    nested = parse(["--objective.implicit-shared", "--seed", "3", "--start.top-only"], DistillConfig)
    assert nested.objective.implicit_shared and nested.start.top_only and nested.seed == 3
    assert launch(lambda config: Path("run"), DistillConfig, ["--json"]) == 0
    assert capsys.readouterr().out == '{"output": "run"}\n'


def test_a_configuration_that_divides_by_zero():
    @dataclass
    class Shape:
        heads: int = 1

        def __post_init__(self):
            assert 8 % self.heads == 0

    with pytest.raises(UserError, match="configuration: integer modulo by zero"):
        parse(["heads=0"], Shape)


def test_ctrl_c_is_one_line_that_tells_how_to_go_on(capsys):
    def interrupted(config):
        raise KeyboardInterrupt

    assert launch(interrupted, DistillConfig, []) == 130
    assert capsys.readouterr().err == "stopped: continue with --resume latest\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"just text", "just text: Key 'just text' not in 'DistillConfig'"),
        (b"a: [", "a.yaml, line 2: "),
        (b"- a\n- b\n", "a.yaml: it holds no keys with values"),
        (b"\x7fELF\xd0\x00", "a.yaml holds what is no text ('utf-8' codec can't decode byte"),
        (b"a\0b: 1", "a.yaml holds what is no text (unacceptable character #x0000"),
        (b"generator: {blocks: [1]}", "a.yaml: give 3 values in brackets, got 1"),
    ],
)
def test_wrong_yaml(tmp_path, content, message, capsys):
    (tmp_path / "a.yaml").write_bytes(content)
    assert launch(run, DistillConfig, ["--config", str(tmp_path / "a.yaml")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: configuration: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "schema", [DistillConfig, TeacherConfig, SynthesizeConfig, CollectConfig, TinyTrainConfig]
)
def test_help_tells_of_every_key(schema, capsys):
    assert launch(run, schema, ["--help"]) == 0
    usage, empty, *listed = capsys.readouterr().out.splitlines()
    assert usage.startswith("Usage: ") and not empty
    keys = [line for line in listed if re.match(r" *\w+:", line)]
    assert len(keys) >= len(fields(schema)) and all(re.search(r"  # .{4,}$", key) for key in keys), keys
    # It can be saved as a --config.
    saved = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create("\n".join(listed)))
    assert OmegaConf.to_object(saved) == schema()


@pytest.mark.parametrize("schema", [GeneratorConfig, TeacherPhase, StartConfig, ObjectiveConfig, Protocol])
def test_help_names_every_choice(schema):
    for name, kind in get_type_hints(schema).items():
        if get_origin(kind) is Literal:
            one = schema.__dataclass_fields__[name]
            others = set(get_args(kind)) - {one.default}
            assert all(choice in one.metadata["help"] for choice in others), f"{name}: {one.metadata['help']}"


@dataclass
class Inner:
    """A section. It has more."""

    depth: int = setting(2, "layers")
    sizes: list[int] = setting([1, 2], "of each")


@dataclass
class Base:
    seed: int = setting(0, "of the run")
    name: str = setting("a", "in the log")


@dataclass
class Outer(Base):
    """What it is for.

    And more.
    """

    aliases: ClassVar[dict[str, str]] = {"layers": "inner.depth"}

    name: str = "b"
    depth: int = setting(7, "of the whole")
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize("helped", [commands, lambda words: launch(run, DistillConfig, words)])
def test_help_is_read_by_head(helped, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe, monkeypatch.context() as patch:  # closing it flushes once more
        patch.setattr(sys, "stdout", pipe)
        assert helped(["--help"]) == 0


def test_help_is_made_of_the_settings():
    assert explained(Outer) == (
        "# What it is for.\nseed: 0  # of the run\nname: b  # in the log\ndepth: 7  # of the whole\n"
        "inner:  # A section. It has more.\n  depth: 2  # layers\n  sizes:  # of each\n  - 1\n  - 2\n"
        "# layers stands for inner.depth\n"
    )


SIZES = [(c, n) for c in ("teacher", "distill") for n in ("nano", "small", "base")]
SIZES += [("shape", "nano"), ("shape", "small")]


@pytest.mark.parametrize(("command", "name"), SIZES)
def test_shipped_configurations_build(command, name):
    from distill.teachers.compact import CompactTeacher

    line = ["--config", str(ROOT / "configs" / command / f"{name}.yaml")]
    with torch.device("meta"):
        if command == "teacher":
            model = CompactTeacher(parse(line, TeacherConfig).teacher)
        elif command == "shape":
            model = OccupancyNet(parse(line, ShapeConfig).network)
        else:
            model = Generator(parse(line, DistillConfig).generator)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    low, high = {"nano": (3, 12), "small": (20, 90), "base": (90, 400)}[name]
    assert low < millions < high


@pytest.mark.parametrize("path", sorted((ROOT / "configs/accelerate").glob("*.yaml")), ids=lambda p: p.stem)
def test_accelerate_reads_its_configurations(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    kinds = {"cpu": "NO", "gpu1": "NO", "gpu8": "MULTI_GPU", "multi_node": "MULTI_GPU", "fsdp": "FSDP"}
    assert str(config.distributed_type).split(".")[-1] == kinds[path.stem]


def test_another_default_keeps_the_range_of_the_base():
    assert TinyTrainConfig(max_minutes=0).train_batch_size == 16
    for wrong in ({"train_batch_size": 0}, {"max_minutes": float("inf")}, {"ema_decay": float("nan")}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be "):
            TinyTrainConfig(**wrong)

"""Prompts become pictures, quadruples, a generator and splats; each stage takes the files of the last."""

import io
import json
from pathlib import Path

import pytest
from gsply import plyread
from PIL import Image
from stand_ins.training_runs import fresh, metrics

from data_gen import synthesize
from data_gen.prompts import generation as prompts
from data_gen.reports import verify
from dd3g import infer
from dd3g.command.configuration import parse
from dd3g.io.shards import Shards
from distill import simulate
from distill.train import DistillConfig
from distill.train import run as distill

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.mark.slow
def test_from_prompts_to_splats(here, one_thread):
    assert prompts.main(["--count", "6", "-o", "prompts.jsonl"]) == 0
    config = ["--config", str(CONFIGS / "data_gen/shapes.yaml"), "prompts=prompts.jsonl", "output=pictures"]
    assert synthesize.main([*config, "shard_size=4", "batch_size=3", "matte.size=64"]) == 0
    assert verify.main(["pictures"]) == 0
    pictures = Shards("pictures")
    asked = [json.loads(line)["id"] for line in Path("prompts.jsonl").read_text().splitlines()]
    assert [pictures.key(i) for i in range(len(pictures))] == asked

    words = ["pictures", "--teacher", "nano-teacher", "-o", "quadruples", "--seeds", "1", "--steps", "2"]
    assert simulate.main([*words, "--device", "cpu"]) == 0
    quadruples = Shards("quadruples")
    sources = [json.loads(quadruples[i]["json"])["source"] for i in range(len(quadruples))]
    assert sorted(sources) == sorted(asked)

    fresh()
    options = ["init_from=nano", "max_train_steps=2", "train_batch_size=2", "mixed_precision=no"]
    files = ["quadruples=[quadruples]", "output_dir=run", "report_to=none", "objective.bootstrap=0"]
    distill(parse([*options, *files], DistillConfig))
    assert metrics("run")[-1]["step"] == 2

    Image.open(io.BytesIO(pictures[0]["png"])).save("one.png")
    assert infer.main(["one.png", "--weights", "run/model", "-o", "out"]) == 0
    assert len(plyread("out/one.ply").means) > 100

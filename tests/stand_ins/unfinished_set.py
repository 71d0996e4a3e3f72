"""A set that was stopped in the middle of its last shard."""

import json
from pathlib import Path

from data_gen.filters.mattes import MatteConfig
from data_gen.picture_models.protocol import ModelConfig
from data_gen.prompts.lists import Prompt, to_jsonl
from data_gen.shards.manifest import ShardManifest
from data_gen.shards.storage import Storage
from data_gen.synthesize import SynthesizeConfig, synthesize

GROUPS = ("cups <&>", "chairs", "")


def unfinished_set(folder: Path) -> None:
    """Two shards of twenty prompts and, of a third, one part with three pictures and a rejected try."""
    prompts = [Prompt(f"{i:016x}", f"thing {i}", GROUPS[i % 3], f"noun {i}") for i in range(60)]
    (folder.parent / "p.jsonl").write_text(to_jsonl(prompts), "utf-8")
    model = ModelConfig(path="shapes", call_options={"faulty": 0.3})
    config = SynthesizeConfig(
        prompts=str(folder.parent / "p.jsonl"),
        output=str(folder),
        shard_size=20,
        attempts=2,
        device="cpu",
        model=model,
        matte=MatteConfig(size=48),
    )
    config.filters.max_colourfulness = 120.0
    synthesize(config)
    storage = Storage(folder)
    last = ShardManifest.read(storage, 2)
    for name in ("pictures-00002.tar", "pictures-00002.json", "index.json", "README.md"):
        (folder / name).unlink()
    verdicts = [r | {"reason": ""} for r in last.records[:3]]
    verdicts.append({"id": f"{59:016x}", "reason": "blur", "scores": {"sharpness": 0.11}, "hash": ""})
    seconds = {"draw": 1.0, "finish": 2.0, "wall": 4.0}
    journal = {"options": last.options, "verdicts": verdicts, "seconds": seconds}
    storage.write_shard(
        "parts/pictures-00002/00-00000.tar", [{"__key__": "_journal", "json": json.dumps(journal)}]
    )

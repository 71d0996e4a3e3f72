from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data_gen.__main__ import main
from data_gen.prompts.generation import make_prompts
from data_gen.prompts.lists import Prompt, prompt_id, prompts_from, read_prompts
from data_gen.prompts.rewriter import TASK, Rewriter, rewrite_prompts, usable
from dd3g.errors import UserError


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A language model of random weights with a vocabulary of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    folder = tmp_path_factory.mktemp("model")
    words = sorted({w.strip(",.") for p in make_prompts(40) for w in p.text.split()})
    vocabulary = {w: i for i, w in enumerate(["<unk>", "</s>", ",", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>").save_pretrained(
        folder
    )
    set_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(vocabulary), bos_token_id=None, eos_token_id=1, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


class Parrot:
    """A rewriter with prepared answers."""

    fingerprint, seed, batch_size = "parrot", 0, 2

    def __init__(self, answers: dict[str, str]) -> None:
        self.prepared, self.asked = answers, []

    def answers(self, texts):
        self.asked.append(list(texts))
        return [self.prepared.get(text, "") for text in texts]


FOX = Prompt("f", "studio photograph of a red fox, side view, centred, plain grey background", noun="red fox", view="side view")  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(
    ("answer", "phrase"),
    [
        (
            "studio photograph of a red fox with a bushy tail",
            "studio photograph of a red fox with a bushy tail",
        ),
        (
            ' "Studio photograph of a red fox, alert ears."\nAnd more',
            "Studio photograph of a red fox, alert ears",
        ),
        ("\n\nRewritten: photo of one red fox", "photo of one red fox"),
        ("studio photograph of a grey fox with a bushy tail", ""),
        ("a red fox", ""),
        ("", ""),
        ("red fox " * 50, ""),
        ("studio photograph of a red fox <|endoftext|> <|endoftext|> {{}}", ""),
        ("studio photograph of a red\x07 fox with a tail", ""),
    ],
)
def test_usable(answer, phrase):
    assert usable(answer, FOX) == phrase


def of_a_list(path, *texts):
    path.write_text("\n".join(texts))
    return prompts_from(path)[0]


def test_users_prompts_keep_most_of_their_words(tmp_path):
    (prompt,) = of_a_list(tmp_path / "list.txt", "shiny green robot holding flowers")
    assert usable("a tall shiny green robot of steel", prompt)
    assert not usable("a tall grey castle made of stone", prompt)


def test_rewritten_kept_and_never_twice(tmp_path):
    prompts = make_prompts(7)
    heads = [p.text.partition(f", {p.view}")[0] for p in prompts]
    richer = [f"{head} with fine visible details" for head in heads]
    parrot = Parrot(dict(zip(heads, richer, strict=True)) | {heads[1]: "nonsense", heads[3]: heads[3]})
    done: list[int] = []
    result, count = rewrite_prompts(prompts, parrot, tmp_path / "j", done.append)
    assert count == 5 and sum(done) == 7
    assert [len(batch) for batch in parrot.asked] == [2, 2, 2, 1]
    for i, (before, after) in enumerate(zip(prompts, result, strict=True)):
        if i in (1, 3):
            assert after == before
        else:
            assert after.text == before.text.replace(heads[i], richer[i])
            assert after.id == prompt_id(after.text)
            assert (after.noun, after.view, after.style) == (before.noun, before.view, before.style)
    # Two prompts that become the same one: the second stays as it was.
    twins = of_a_list(tmp_path / "list.txt", "big round wooden table", "big round wooden table, old")
    same = Parrot({p.text: "one big round wooden table with turned legs" for p in twins})
    result, count = rewrite_prompts(twins, same, tmp_path / "k")
    assert count == 1 and result[0].text.startswith("one big") and result[1] == twins[1]


def test_goes_on_with_the_same_answers(tmp_path, model_folder, monkeypatch):
    prompts = make_prompts(10)
    rewriter = Rewriter(model_folder, seed=1, batch_size=4, device="cpu")
    rewrite_prompts(prompts, rewriter, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    assert [len(json.loads(line)) for line in whole.splitlines()[1:]] == [4, 4, 2]

    def stop(count: int) -> None:
        if count:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewrite_prompts(prompts, rewriter, tmp_path / "j", stop)
    with open(tmp_path / "j", "ab") as stream:
        stream.write(whole.splitlines()[2][:20])  # killed in the middle of a line
    asked: list[int] = []
    rewriter.answers, answers = lambda texts: (asked.append(len(texts)), answers(texts))[1], rewriter.answers
    with monkeypatch.context() as patch:  # a second kill must find the answers of before the first
        patch.setattr(Path, "write_bytes", lambda *_: pytest.fail("the journal was written anew"))
        rewrite_prompts(prompts, rewriter, tmp_path / "j")
    assert asked == [4, 2]
    assert (tmp_path / "j").read_bytes() == whole
    other = Rewriter(model_folder, seed=2, batch_size=4, device="cpu")
    with pytest.raises(UserError, match="started with seed 1, now it is 2"):
        rewrite_prompts(prompts, other, tmp_path / "j")
    rewrite_prompts(prompts, other, tmp_path / "other")
    assert (tmp_path / "other").read_bytes().splitlines()[1:] != whole.splitlines()[1:]
    (tmp_path / "j").write_bytes(b"{\n" + whole)
    with pytest.raises(UserError, match="is damaged"):
        rewrite_prompts(prompts, rewriter, tmp_path / "j")


def test_questions(model_folder):
    rewriter = Rewriter(model_folder, device="cpu")
    assert rewriter._question("a red fox").endswith("\n\nDescription: a red fox\nRewritten:")
    rewriter.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[answer]"
    )
    assert rewriter._question("a red fox") == f"[user]{TASK}\n\na red fox[answer]"
    answers = rewriter.answers(["a red fox", "an owl, front view, plain background"])
    assert len(answers) == 2 and all(isinstance(a, str) for a in answers)


def test_command(tmp_path, model_folder, capsys):
    out = tmp_path / "p.jsonl"
    words = ["prompts", "--count", "6", "-o", str(out), "--batch-size", "4", "--device", "cpu", "--json"]
    assert main([*words, "--rewrite", str(model_folder)]) == 0
    report = json.loads(capsys.readouterr().out)
    # Random weights say nothing of use: every original is kept.
    assert report["rewritten"] == 0 and read_prompts(out) == make_prompts(6)
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]
    out.unlink()
    folders = {"nowhere": "is not a folder of a language model"}
    for name, missing in (("plain", "*"), ("weightless", "*.safetensors"), ("wordless", "tokenizer*")):
        shutil.copytree(model_folder, tmp_path / name, ignore=shutil.ignore_patterns(missing))
        folders[name] = (
            "is not a folder of a language model" if name == "plain" else "cannot be used as a language model"
        )
    shutil.copytree(model_folder, tmp_path / "picture")
    (tmp_path / "picture" / "config.json").write_text('{"model_type": "vit"}')
    folders["picture"] = "cannot be used as a language model"
    for name, why in folders.items():
        assert main([*words[:-1], "--rewrite", str(tmp_path / name)]) == 2, name
        said = capsys.readouterr().err
        assert why in said and name in said and "Traceback" not in said
        assert not out.exists()

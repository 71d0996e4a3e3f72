"""Prompts reworded by a language model: a causal model of transformers in a local folder, no service."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_gen.prompts.lists import MAX_CHARACTERS, Prompt, prompt_id
from dd3g.errors import UserError, first_line, needed
from dd3g.fingerprint import fingerprint

MAX_NEW_TOKENS = 64
LONGEST = 300  # characters of a usable answer
TASK = (
    "Rewrite the description of a picture of a single object as one phrase. Keep the kind of picture, the "
    "object, its colour and its material, and add two or three visible details of its shape and surface. "
    "Name no other object, no place and no person. Answer with the phrase only."
)
# For models without a chat template; examples say more to them than instructions.
EXAMPLES = (
    (
        "studio photograph of a worn red armchair",
        "studio photograph of a worn red armchair with rolled arms, deep buttons and short turned legs",
    ),
    (
        "low-poly 3D render of an owl",
        "low-poly 3D render of an owl with broad folded wings, speckled plumage and large round amber eyes",
    ),
)
_SMALL = frozenset(
    "a an and at in of on pair set the under with".split()
)  # words of nouns that need not stay


class Rewriter:
    """A causal language model with the way it is asked.

    Args:
        folder: as `save_pretrained` writes it, with its tokenizer; weights in safetensors.
        seed: of the sampling. The answers follow from seed, prompts and batch size, on one kind of device.
        batch_size: prompts answered at once.
        device: auto, cpu, cuda, cuda:1, mps.

    Raises:
        UserError: when the folder holds no such model.
    """

    def __init__(self, folder: str | Path, seed: int = 0, batch_size: int = 16, device: str = "auto") -> None:
        from dd3g.nn.checkpoint import find_device

        self.folder, self.seed, self.batch_size = Path(folder), seed, batch_size
        self.device = find_device(device)
        self.fingerprint = _fingerprint(self.folder)
        self.tokenizer, self.model = _load(self.folder, self.device)

    def answers(self, texts: Sequence[str]) -> list[str]:
        """What the model answers to a batch of descriptions."""
        import torch

        asked = [self._question(text) for text in texts]
        inputs = self.tokenizer(asked, return_tensors="pt", padding=True, return_token_type_ids=False)
        inputs = inputs.to(self.device)  # (B, L), padded on the left
        key = f"{self.seed} {texts[0]}".encode()
        cards = [self.device.index or 0] if self.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(cards):
            torch.manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:7], "big"))
            tokens = self.model.generate(
                **inputs,
                max_new_tokens=MAX_NEW_TOKENS,
                do_sample=True,
                temperature=0.8,
                top_p=0.95,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        new = tokens[:, inputs["input_ids"].shape[1] :]
        return self.tokenizer.batch_decode(new, skip_special_tokens=True)

    def _question(self, text: str) -> str:
        if getattr(self.tokenizer, "chat_template", None):
            messages = [{"role": "user", "content": f"{TASK}\n\n{text}"}]
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        shown = "".join(f"Description: {plain}\nRewritten: {rich}\n\n" for plain, rich in EXAMPLES)
        return f"{TASK}\n\n{shown}Description: {text}\nRewritten:"


def rewrite_prompts(
    prompts: Sequence[Prompt],
    rewriter: Rewriter,
    journal: Path,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[list[Prompt], int]:
    """Rewrite a list, going on where an earlier run was stopped.

    Only what comes before the view is rewritten, so the whole object stays in view before a plain background.
    The journal is the file of the answers so far; the caller deletes it when the result is safe.

    Returns:
        The prompts in order, each rewritten or, where the answer is of no use or repeats another prompt, as
        it was; and how many were rewritten.

    Raises:
        UserError: when the journal is of another list, model, seed or batch size, or can't be written.
    """
    options = {
        "model": rewriter.fingerprint,
        "seed": rewriter.seed,
        "batch_size": rewriter.batch_size,
        "prompts": fingerprint("\n".join(p.id for p in prompts)),
    }
    answers = _resume(journal, options)
    advance(len(answers))
    try:
        with open(journal, "a", encoding="utf-8") as stream:
            while len(answers) < len(prompts):
                batch = prompts[len(answers) : len(answers) + rewriter.batch_size]
                answered = rewriter.answers([_head(p) for p in batch])
                stream.write(json.dumps(answered) + "\n")
                stream.flush()
                answers += answered
                advance(len(batch))
    except OSError as error:
        raise UserError(f"cannot write {journal} ({error.strerror or error}): free some space") from error
    taken = {p.id for p in prompts}  # originals that stay must stay the only ones
    result = []
    for prompt, answer in zip(prompts, answers, strict=True):
        head = usable(answer, prompt)
        text = head + prompt.text.removeprefix(_head(prompt))
        if head and len(text) <= MAX_CHARACTERS and prompt_id(text) not in taken:
            prompt = replace(prompt, id=prompt_id(text), text=text)
        taken.add(prompt.id)
        result.append(prompt)
    return result, sum(a != b for a, b in zip(result, prompts, strict=True))


def usable(answer: str, prompt: Prompt) -> str:
    """The phrase in a model's answer; empty when there is none that still names the object.

    Args:
        answer: what the model answered, perhaps with quotes, a label, or more lines after the first.
        prompt: what it was asked to rewrite.
    """
    line = next((part for part in answer.splitlines() if part.strip()), "")
    line = re.sub(r"^\W*(rewritten|description|answer|phrase)\s*:", "", line.strip(), flags=re.IGNORECASE)
    text = " ".join(line.split()).strip(" \"'*`.\u201c\u201d")
    words = re.findall(r"[^\W\d_]+", text.lower())
    letters = sum(c.isalpha() or c in " ,-'" for c in text)
    if len(words) < 4 or len(text) > LONGEST or not text.isprintable() or letters < 0.9 * len(text):
        return ""
    wanted = set(re.findall(r"[^\W\d_]+", prompt.noun.lower())) - _SMALL
    if prompt.noun:
        return text if wanted <= set(words) else ""
    # A user's own prompt does not mark its noun: most of its longer words must be there.
    wanted = {w for w in re.findall(r"[^\W\d_]+", _head(prompt).lower()) if len(w) > 3}
    return text if 2 * len(wanted & set(words)) >= len(wanted) else ""


def _head(prompt: Prompt) -> str:
    return prompt.text.partition(f", {prompt.view}")[0] if prompt.view else prompt.text


def _resume(journal: Path, options: dict[str, Any]) -> list[str]:
    """Answers so far; a line that a killed run cut short is cut off."""
    try:
        journal.parent.mkdir(parents=True, exist_ok=True)
        data = journal.read_bytes() if journal.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole:
            before, *batches = map(json.loads, whole.splitlines())
            for key, value in options.items():
                if before.get(key) != value:
                    raise UserError(
                        f"{journal} was started with {key} {before.get(key)}, now it is {value}: use the "
                        "same, or delete it to begin again"
                    )
        else:
            whole, batches = (json.dumps(options) + "\n").encode(), []
        if whole != data and data.startswith(whole):
            os.truncate(journal, len(whole))  # in place: a second kill finds all answers too
        elif whole != data:
            journal.write_bytes(whole)
    except OSError as error:
        raise UserError(f"cannot write {journal} ({error.strerror or error}): choose another -o") from error
    except (ValueError, AttributeError) as error:
        raise UserError(f"{journal} is damaged ({error}): delete it to begin again") from error
    return [answer for batch in batches for answer in batch]


def _fingerprint(folder: Path) -> str:
    """Hash of the model's configuration and of the names and sizes of its files."""
    try:
        parts = [f"{p.name} {p.stat().st_size}" for p in sorted(folder.iterdir()) if p.is_file()]
        parts.append((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{folder} is not a folder of a language model ({getattr(error, 'strerror', '') or error}): give "
            "one that holds config.json, *.safetensors and a tokenizer"
        ) from error
    return fingerprint("\n".join(parts))


def _load(folder: Path, device: Any) -> tuple[Any, Any]:
    with needed("--rewrite needs the extra 'data': pip install 'dd3g[data]'"):
        from transformers import AutoModelForCausalLM, AutoTokenizer
    try:
        local = {"local_files_only": True, "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", **local)
        load: Any = AutoModelForCausalLM.from_pretrained
        model, about = load(folder, use_safetensors=True, dtype="auto", output_loading_info=True, **local)
        if about["missing_keys"]:
            raise ValueError(f"its weights lack {sorted(about['missing_keys'])[0]}")
    except Exception as error:  # transformers raises what its parts raise
        raise UserError(
            f"{folder} cannot be used as a language model ({first_line(error)}): give a folder of a causal "
            "model of transformers, with its tokenizer and weights in safetensors"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, model.to(device).eval()

"""The trunk alone scores requests as before: log-likelihoods in the way of lm-eval's model ``hf``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from speech_mtp import hub
from speech_mtp.exports.base import open_trunk
from speech_mtp.exports.ntp import NTP
from speech_mtp.lm.text_lm import TextLM
from tests.exports.tiny import trained, trunk, trunk_folder

REQUESTS = [
    ("Hello there! Good", " morning."),
    ("the quick brown fox jumps over ", "the lazy dog"),
    ("doesn't it?", " the"),
    ("the brown " * 30, "fox"),
]


def log_likelihoods(folder: Path) -> list[tuple[float, bool]]:
    """Of every continuation given its context: the sum of log-probabilities, and whether it is the greedy one.

    Spaces at the end of a context belong to the continuation; of what is too long the end is kept.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for context, continuation in REQUESTS:
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        whole = tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
        asked = whole[len(tokenizer(context, add_special_tokens=False)["input_ids"]) :]
        fed = torch.tensor([whole[-(model.config.max_position_embeddings + 1) :][:-1]])
        with torch.no_grad():
            law = model(fed).logits[0, -len(asked) :].float().log_softmax(-1)
        chosen = law.gather(1, torch.tensor(asked)[:, None])
        found.append((float(chosen.sum()), law.argmax(-1).tolist() == asked))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_likelihoods_are_those_of_the_base(tmp_path: Path, dtype: torch.dtype) -> None:
    base = trunk_folder(tmp_path / "base")
    if dtype == torch.bfloat16:
        AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(base)
    lm = open_trunk(base)
    assert lm.dtype == dtype
    NTP().write(tmp_path / "out", trained(lm, name="medusa"), lm)
    assert log_likelihoods(tmp_path / "out") == log_likelihoods(base)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], str(dtype).removeprefix("torch."))
    assert GenerationConfig.from_pretrained(tmp_path / "out").bos_token_id == 1
    assert not list((tmp_path / "out").glob("*.bin"))


def test_heads_of_the_base_know_it_again(tmp_path: Path) -> None:
    lm = trunk(tmp_path / "base")
    head = trained(lm, name="medusa")
    hub.save_head(head, tmp_path / "head", {"name": "medusa"}, lm.fingerprint)
    NTP().write(tmp_path / "out", head, lm)
    again = NTP().read(tmp_path / "out")
    assert isinstance(again, TextLM)
    assert hub.load_head(tmp_path / "head", again).offsets == head.offsets


def test_a_jointly_trained_trunk_is_exported_as_it_then_is(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from speech_mtp.training.lora import Adapters, LoRAConfig

    base = trunk_folder(tmp_path / "base")
    lm = TextLM.from_folder(base)
    adapters = Adapters(lm, LoRAConfig(rank=2))
    with torch.no_grad():
        for weight in adapters.weights:
            weight.normal_(0, 0.3)
    adapters.save_merged(tmp_path / "run" / "backbone")
    merged = open_trunk(tmp_path / "run" / "backbone")
    NTP().write(tmp_path / "out", trained(merged, name="medusa"), merged)
    found, before = log_likelihoods(tmp_path / "out"), log_likelihoods(base)
    ids = torch.tensor([[5, 9, 200, 31]])
    with torch.no_grad():
        with_adapters = lm.model(ids).logits
        torch.testing.assert_close(NTP().read(tmp_path / "out").model(ids).logits, with_adapters, rtol=0, atol=1e-4)
    assert all(abs(a - b) > 1e-2 for (a, _), (b, _) in zip(found, before, strict=True))

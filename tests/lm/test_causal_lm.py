"""The trunk that is trained: the same logits as ``transformers``, out and in again, and documents that are alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from speech_mtp.lm.backbone import load_tokenizer
from speech_mtp.lm.byte_tokens import END
from speech_mtp.lm.causal_lm import CausalLM, CausalLMConfig
from speech_mtp.lm.llama_folder import read_llama, write_llama
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.nn.transformer import causal
from speech_mtp.nn.visibility import mask_of, within_segments
from tests.llama import llama_config
from tests.lm.tiny import tiny_tokenizer


def logits(lm: CausalLM, tokens: Tensor) -> Tensor:
    x = lm.embed(tokens)
    return lm.output.logits(lm(x, *causal(x)).top)


# -- folders --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("more", [{}, {"num_kv_heads": None, "head_dim": 12, "rope_theta": 500.0}])
def test_what_is_written_is_a_llama_of_transformers(
    tmp_path: Path, tokenizer: Path, tied: bool, more: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    lm = CausalLM.tiny(tied=tied, **more)
    tokens = torch.randint(257, (2, 40))
    write_llama(lm, tmp_path / "out", tokenizer)
    theirs, told = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert isinstance(theirs, LlamaForCausalLM)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    torch.testing.assert_close(theirs(tokens).logits, logits(lm, tokens), atol=1e-5, rtol=1e-5)
    assert theirs.config.pad_token_id is None  # its embedding would not be trained any more
    assert (theirs.config.eos_token_id, theirs.generation_config.eos_token_id) == (256, 256)
    again = read_llama(tmp_path / "out")
    assert again.config.block() == lm.config.block()
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), lm.parameters(), strict=True))
    assert TextLM.from_folder(tmp_path / "out").ends == {256}


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_of_transformers_is_read(tmp_path: Path, tied: bool) -> None:
    torch.manual_seed(1)
    config = llama_config(300, 32, tie_word_embeddings=tied, rope_theta=2000.0, rms_norm_eps=1e-3)
    theirs = LlamaForCausalLM(config)
    theirs.save_pretrained(tmp_path / "llama", max_shard_size="40KB")
    assert len(list((tmp_path / "llama").glob("*.safetensors"))) > 1
    tokens = torch.randint(300, (2, 30))
    lm = read_llama(tmp_path / "llama")
    torch.testing.assert_close(logits(lm, tokens), theirs(tokens).logits, atol=1e-5, rtol=1e-5)
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    write_llama(lm, tmp_path / "back", tmp_path / "tokenizer")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    torch.testing.assert_close(back(tokens).logits, theirs(tokens).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "qwen3"}, "holds a 'qwen3' model; a trunk that is trained on must be a 'llama'"),
        ({"attention_bias": True}, "has attention_bias True"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, r"scales its rotary angles \('llama3'\)"),
        ({"num_hidden_layers": 3}, "do not fit together"),
    ],
)
def test_what_our_block_is_not_is_refused(tmp_path: Path, tokenizer: Path, change: dict[str, Any], words: str) -> None:
    write_llama(CausalLM.tiny(), tmp_path / "out", tokenizer)
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=words):
        read_llama(tmp_path / "out")


def test_a_folder_without_a_model_and_a_damaged_one_are_told(tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no language model"):
        read_llama(tmp_path)
    write_llama(CausalLM.tiny(), tmp_path / "out", tokenizer)
    weights = tmp_path / "out" / "model.safetensors"
    assert set(load_file(weights)) == set(CausalLM.tiny().state_dict())
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="truncated or damaged"):
        read_llama(tmp_path / "out")
    save_file({"other": torch.zeros(2)}, weights)
    with pytest.raises(ValueError, match="do not fit together"):
        read_llama(tmp_path / "out")


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"dim": 30, "num_heads": 4}, "width 30 does not divide into 4 heads"),
        ({"dim": 12, "num_heads": 4}, "heads have 3 numbers, which must be even"),
        ({"num_heads": 4, "num_kv_heads": 3}, "4 heads cannot share 3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CausalLMConfig(**sizes)


# -- reading --------------------------------------------------------------------------------------------------------
def test_a_document_reads_the_same_packed_and_alone() -> None:
    torch.manual_seed(0)
    lm, sizes = CausalLM.tiny(), (30, 7, 50)
    documents = [torch.randint(257, (1, size)) for size in sizes]
    segment = torch.cat([torch.full((1, size), i) for i, size in enumerate(sizes)], 1)
    index = torch.cat([torch.arange(size)[None] for size in sizes], 1)
    mask = mask_of(within_segments(segment), 1, sum(sizes), torch.device("cpu"))
    packed = lm(lm.embed(torch.cat(documents, 1)), index, mask, taps=(1, -1))
    for states, tokens in zip(packed.hidden.split(sizes, 1), documents, strict=True):
        x = lm.embed(tokens)
        alone = lm(x, *causal(x), taps=(1, -1))
        torch.testing.assert_close(states, alone.hidden, atol=1e-5, rtol=1e-4)
    assert torch.equal(packed.hidden[:, :, 1], packed.top)


def test_compiled_it_is_one_graph_for_all_documents() -> None:
    """As a GPU computes it: block masks, whose rule is another function at every step."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    lm, counters = CausalLM.tiny(), torch._dynamo.utils.counters
    counters.clear()
    compiled = torch.compile(lm, backend="eager", fullgraph=True)
    x, index = torch.randn(2, 128, 32), torch.arange(128).expand(2, -1)
    for border in (30, 31, 90):
        segment = (torch.arange(128) >= border).long().expand(2, -1)
        blocks = create_block_mask(within_segments(segment), 2, None, 128, 128, "cpu")
        expected = lm(x, index, mask_of(within_segments(segment), 2, 128, torch.device("cpu")))
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, index, blocks).top, expected.top, atol=1e-4, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1


def test_every_byte_is_its_own_token(tokenizer: Path) -> None:
    found = load_tokenizer(tokenizer)
    text = "".join(map(chr, range(256))) + "héllo 猫\n\t  x"
    assert found(text)["input_ids"] == list(text.encode())
    assert found.decode(list(text.encode())) == text
    assert (len(found), found.convert_tokens_to_ids(END), found.eos_token_id, found.bos_token_id) == (257, *[256] * 3)


def test_at_first_every_token_is_as_likely() -> None:
    torch.manual_seed(0)
    lm = CausalLM(CausalLMConfig(dim=64, num_layers=4), 257)
    law = logits(lm, torch.randint(257, (2, 60))).log_softmax(-1)
    assert -law.mean().item() == pytest.approx(math.log(257), abs=0.3)

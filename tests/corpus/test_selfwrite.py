from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("wordfreq", reason="needs the train extra")

from transformers import LlamaConfig, LlamaForCausalLM

from speech_mtp.corpus.manifest import read_lines
from speech_mtp.corpus.selfwrite import WriteConfig, expand_prompts, read_prompts, write

RECIPE = Path(__file__).parents[2] / "recipes" / "corpus" / "prompts.yaml"


class Characters:
    """A tokenizer of characters (ids 3 to 130) with a chat template."""

    pad_token_id = None
    eos_token_id = 1
    chat_template = "as below"

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [3 + ord(c) % 128 for c in text]

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": self.encode(text, add_special_tokens)}

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(chr(i - 3) for i in ids if i > 2)

    def apply_chat_template(
        self, turns: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool = False
    ) -> str:
        assert not tokenize
        return f"<{turns[0]['content']}>" + "!" * add_generation_prompt


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=131, max_position_embeddings=64, **shape)).eval()


def _config(folder: Path) -> WriteConfig:
    return WriteConfig(prompts=RECIPE, out=folder / "out.jsonl", batch=2, max_new_tokens=8)


PROMPTS = ["Say hi.", "", "Tell me about tea.", "Ask.", "Again."]


def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, model: Any) -> None:
    whole, parts = _config(tmp_path / "whole"), _config(tmp_path / "parts")
    assert write(model, Characters(), PROMPTS, whole) == 5
    assert write(model, Characters(), PROMPTS[:2], parts) == 2
    with parts.out.open("a") as file:
        file.write('{"index": 2, "prom')  # the line that a kill cut off
    assert write(model, Characters(), PROMPTS, parts) == 3
    lines = list(read_lines(whole.out))
    assert [line["prompt"] for line in lines] == PROMPTS
    assert list(read_lines(parts.out)) == lines
    assert len({line["text"] for line in lines}) > 1


def test_caller_keeps_its_random_state(tmp_path: Path, model: Any) -> None:
    before = torch.random.get_rng_state()
    write(model, Characters(), PROMPTS[:1], _config(tmp_path))
    assert torch.equal(before, torch.random.get_rng_state())


def test_other_prompts_are_refused(tmp_path: Path, model: Any) -> None:
    write(model, Characters(), PROMPTS[:2], _config(tmp_path))
    with pytest.raises(ValueError, match="written from other prompts"):
        write(model, Characters(), ["Other.", *PROMPTS[1:]], _config(tmp_path))


def test_recipe_prompts() -> None:
    book = read_prompts(RECIPE)
    prompts = expand_prompts(book, 400, seed=1)
    assert expand_prompts(book, 50, seed=1) == prompts[:50]
    assert 5 <= prompts.count("") <= 40
    assert all("{" not in prompt for prompt in prompts)
    assert len(set(prompts)) > 300


def test_bad_prompt_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no prompt file"):
        read_prompts(tmp_path / "p.yaml")
    (tmp_path / "p.yaml").write_text("topics: []\n")
    with pytest.raises(ValueError, match=r"p\.yaml is not a valid prompt file.*topics"):
        read_prompts(tmp_path / "p.yaml")

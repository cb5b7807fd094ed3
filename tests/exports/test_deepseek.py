"""The DeepSeek layout, judged by the program that it is for: ``transformers`` itself drafts with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel

from speech_mtp.exports.base import open_trunk
from speech_mtp.exports.deepseek import FITTING, DeepSeek
from speech_mtp.heads.base import MTPHead
from speech_mtp.lm.text_lm import TextLM
from tests.exports.tiny import LAYERS, assert_same, scores, trained, trunk, trunk_folder

TRUNKS: list[dict[str, Any]] = [
    {"kind": "llama"},
    {"kind": "llama", "tie_word_embeddings": True, "attention_bias": True},
    {"kind": "mistral", "sliding_window": None},
    {"kind": "qwen2"},
]
HEADS: list[dict[str, Any]] = [
    {"name": "deepseek", "depth": 1},
    {"name": "deepseek", "depth": 3, "order": "hidden_first"},
    {"name": "fastmtp", "depth": 1},
]


@pytest.fixture(scope="module", params=TRUNKS, ids=str)
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextLM:
    return trunk(tmp_path_factory.mktemp("trunk") / "lm", **request.param)


def test_every_family_that_fits_is_tried() -> None:
    assert {trunk["kind"] for trunk in TRUNKS} == set(FITTING)


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def test_the_file_holds_the_layers_of_the_table(tmp_path: Path, lm: TextLM) -> None:
    DeepSeek().write(tmp_path / "out", trained(lm, **HEADS[1]), lm)
    tensors, config = (
        load_file(tmp_path / "out" / "model.safetensors"),
        json.loads((tmp_path / "out" / "config.json").read_text()),
    )
    block = {name.split(".", 3)[3] for name in tensors if name.startswith("model.layers.0.")}
    own = {f"{name}.weight" for name in ("enorm", "hnorm", "eh_proj", "shared_head.norm")}
    for k in range(3):
        start = f"model.layers.{LAYERS + k}."
        assert {name.removeprefix(start) for name in tensors if name.startswith(start)} == block | own
    assert config["num_mtp_layers"] == 3
    assert config["num_hidden_layers"] == LAYERS
    assert config.get("mtp_layer_types") == (["full_attention"] * 3 if "layer_types" in config else None)


@pytest.mark.parametrize("spec", HEADS, ids=str)
def test_it_is_read_back(tmp_path: Path, lm: TextLM, spec: dict[str, Any]) -> None:
    head = trained(lm, **spec)
    DeepSeek().write(tmp_path / "out", head, lm)
    again = open_trunk(tmp_path / "out")
    assert again.fingerprint == lm.fingerprint
    assert_same(head, DeepSeek().read(tmp_path / "out", again))


def test_a_draft_vocabulary_is_widened(tmp_path: Path, lm: TextLM) -> None:
    head = trained(lm, name="deepseek", draft_vocab=30)
    DeepSeek().write(tmp_path / "out", head, lm)
    back = scores(DeepSeek().read(tmp_path / "out", open_trunk(tmp_path / "out")))
    assert head.token_map is not None
    for offset, logits in scores(head).items():
        torch.testing.assert_close(back[offset][..., head.token_map], logits, rtol=0, atol=1e-6)


@torch.no_grad()
def drafts(head: MTPHead, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The scores ``[1, depth, V]`` of a greedy draft of ours after ``ids [1, T]``, ``hidden [1, T - 1, D]``."""
    state = head.open(1, hidden.device, hidden.dtype)
    head.read(state, hidden[:, :, None], head.embed(ids[:, 1:]), torch.tensor([ids.shape[1] - 1]))
    token = ids[:, -1:]
    found = [head.scores(head.root(state)[:, None], 0, token)]
    for depth in range(1, head.num_depths):
        token = found[-1].argmax(-1)
        states = head.expand(state, head.embed(token), torch.tensor([[depth - 2]]))
        found.append(head.scores(states, depth, token))
    return torch.cat(found, 1)


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("spec", HEADS, ids=str)
def test_transformers_drafts_what_we_draft(tmp_path: Path, lm: TextLM, spec: dict[str, Any]) -> None:
    head = trained(lm, **spec)
    DeepSeek().write(tmp_path / "out", head, lm)
    model = loaded(tmp_path / "out")
    ids = torch.randint(300, (1, 12), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids[:, :-1]).last_hidden_state
        theirs = MtpModel.from_pretrained(model)(
            input_ids=ids[:, 1:],
            last_hidden_states=hidden,
            attention_mask=None,
            position_ids=torch.arange(1, 12)[None],
            mtp_cache=MtpCache(config=model.config.get_mtp_config()),
        )[1]
    torch.testing.assert_close(theirs, drafts(head, hidden, ids), rtol=0, atol=1e-4)


@pytest.mark.usefixtures("modules")
def test_its_text_is_that_of_the_trunk(tmp_path: Path, lm: TextLM) -> None:
    DeepSeek().write(tmp_path / "out", trained(lm, **HEADS[1]), lm)
    model, prompt = loaded(tmp_path / "out"), torch.tensor([[5, 9, 200, 31]])
    expected = lm.model.generate(prompt, do_sample=False, max_new_tokens=40)
    assert expected.shape == (1, 44)
    assert torch.equal(model.generate(prompt, do_sample=False, max_new_tokens=40, use_mtp=True), expected)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(plain) is type(lm.model)
    assert torch.equal(plain.generate(prompt, do_sample=False, max_new_tokens=40), expected)


@pytest.mark.parametrize("kind", ["qwen3", "gemma"])
def test_other_trunks_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    lm = open_trunk(trunk_folder(tmp_path / kind, kind, head_dim=8))
    with pytest.raises(ValueError, match=f"layers of its '{kind}' trunk are not built as its own; .*llama, mistral"):
        DeepSeek().write(tmp_path / "out", trained(lm, name="deepseek"), lm)


def test_scaled_positions_are_refused(tmp_path: Path) -> None:
    lm = trunk(tmp_path / "lm", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0})
    with pytest.raises(ValueError, match="scales rotary positions"):
        DeepSeek().write(tmp_path / "out", trained(lm, name="deepseek"), lm)

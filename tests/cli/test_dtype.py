"""``--dtype q4``, ``int8`` and ``auto`` on the command line: what is loaded, and when drafting is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from speech_mtp import hub
from speech_mtp.cli import shared
from speech_mtp.cli.serve import load_author
from speech_mtp.hub import backbones, heads
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.nn.blocks import BlockLinear
from tests.cli.running import refused, run
from tests.llama import random_llama
from tests.lm.tiny import CHAT, tiny_tokenizer
from tests.nn.test_blocks import needs_kernels
from tests.text_tiny import tiny_head


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone in ``lm``, of a width that divides into blocks, and a head of it in ``medusa``."""
    root = tmp_path_factory.mktemp("text")
    tokenizer = tiny_tokenizer(CHAT)
    ends = {"bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id}
    random_llama(300, 64, num_hidden_layers=3, max_position_embeddings=512, **ends).save_pretrained(root / "lm")
    tokenizer.save_pretrained(root / "lm")
    tiny_head(TextLM.from_folder(root / "lm"), root / "medusa")
    return root


@pytest.mark.parametrize(
    ("compiled", "own", "given", "expected"),
    [
        (True, True, {}, "q4"),
        (False, True, {}, "fp32"),
        (True, False, {}, "fp32"),
        (True, True, {"backbone": "another"}, "fp32"),
        (True, True, {"backbone": "packaged"}, "q4"),
        (True, True, {"device": "cuda"}, "fp32"),
        (True, True, {"compile": True}, "fp32"),
    ],
)
def test_auto_is_q4_where_the_packaged_model_has_blocks_and_kernels(
    compiled: bool, own: bool, given: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speech_mtp.nn.blocks.is_native", lambda: compiled)
    monkeypatch.setattr(hub, "find_backbone", lambda *_: Path("lm"))
    monkeypatch.setattr(hub, "own_blocks", lambda *_: dict if own else None)
    asked = {"backbone": None, "device": "cpu", "compile": False, **given}
    assert shared.chosen_dtype("auto", **asked) == expected
    assert shared.chosen_dtype("bf16", **asked) == "bf16"


def test_what_has_no_blocks_is_refused_before_any_are_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*_: Any) -> Any:
        raise AssertionError("blocks were made")

    monkeypatch.setattr(backbones, "block_weights", made)
    lm = TextLM.from_folder(folder / "lm")
    with pytest.raises(ValueError, match="Llama-like models on a CPU that are not compiled"):
        hub.into_blocks(lm, folder / "lm", "q4", compile=True)


@pytest.mark.parametrize(("dtype", "blocks"), [("q4", "q8"), ("int8", "q8"), ("fp32", None)])
def test_a_head_is_kept_as_its_trunk_is(
    dtype: str, blocks: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPEECH_MTP_CACHE", str(tmp_path))
    lm = shared.load_text_lm(str(folder / "lm"), dtype, "cpu", threads=1)
    assert lm.head_blocks == blocks
    head = shared.load_head(str(folder / "medusa"), lm)
    kept = [getattr(module, "forward", None) for module in head.modules()]
    assert any(isinstance(one, BlockLinear) for one in kept) == (blocks is not None)


@pytest.mark.parametrize("pays", [True, False])
def test_drafting_that_does_not_pay_is_left_out_unless_it_was_asked_for(
    pays: bool,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("SPEECH_MTP_CACHE", str(tmp_path))
    monkeypatch.setattr(heads, "HEADS", folder)
    monkeypatch.setattr(heads, "DEFAULT_HEAD", "medusa")
    monkeypatch.setattr("speech_mtp.streaming.pays.drafting_pays", lambda *_: pays)

    def used(*more: str) -> str | None:
        given = ["Hello!", "--backbone", str(folder / "lm"), "--max-new-tokens", "4", "--json", *more]
        assert run(monkeypatch, "generate", *given) == 0
        found: str | None = json.loads(capsys.readouterr().out.splitlines()[-1])["head"]
        return found

    assert used("--dtype", "q4") == ("medusa" if pays else None)
    assert used("--dtype", "fp32") == "medusa"
    assert used("--dtype", "q4", "--head", "medusa") == "medusa"


def test_the_service_answers_in_the_usual_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load(*given: Any, **_: Any) -> None:
        asked.append(given)
        raise FileNotFoundError

    monkeypatch.setitem(load_author.__globals__, "load_text_lm", load)
    with pytest.raises(FileNotFoundError):
        load_author("packaged", None, None, None, 1, always_drafts=False)
    assert asked == [("packaged", "auto", "cpu")]


def test_layers_that_are_not_there_cannot_look_ahead(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = ["eval", "text", str(folder / "lm"), "--json", str(tmp_path / "r.json"), "--dtype", "q4", "--ahead", "2"]
    assert "q4 does without; use fp32 or bf16" in refused(monkeypatch, capsys, *given)


@needs_kernels
def test_the_shipped_voice_is_prepared() -> None:
    model = hub.load()
    assert model.lm.draws_groups is not None
    assert isinstance(model.lm.timbre.forward, BlockLinear)
    assert vars(model.maker)["backbone"]._decoder.fused is not None

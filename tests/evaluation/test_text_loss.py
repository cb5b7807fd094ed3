"""Held-out loss of any language model: each token once, whatever the windows, and bits a byte for any tokenizer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from speech_mtp.evaluation.text_loss import document_nats, fidelity, text_loss, windows
from speech_mtp.lm.document_ids import Encoder
from speech_mtp.lm.text_lm import TextLM
from tests.cli.running import run
from tests.lm.tiny import tiny_config, tiny_tokenizer
from tests.text_tiny import tiny_folder, tiny_text_lm


@pytest.mark.parametrize(("count", "length"), [(2, 8), (8, 8), (9, 8), (50, 8), (50, 7), (5, 2)])
def test_every_token_but_the_first_is_scored_once_with_something_before_it(count: int, length: int) -> None:
    found = windows(count, length)
    assert [t for _, fresh, end in found for t in range(fresh, end)] == list(range(1, count))
    for begin, fresh, end in found:
        assert end - begin <= length
        assert begin < fresh
        assert begin == 0 or fresh - begin >= length - length // 2


def test_nats_are_those_of_the_model_itself() -> None:
    lm = tiny_text_lm()
    ids = torch.randint(300, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.no_grad():
        scores = lm.model(torch.tensor([ids])).logits[0]
        whole = F.cross_entropy(scores[:-1], torch.tensor(ids[1:]), reduction="sum").item()
        assert document_nats(lm, ids, 64) == pytest.approx(whole, rel=1e-5)
        cut = 0.0
        for begin, fresh, end in windows(40, 16):
            scores = lm.model(torch.tensor([ids[begin:end]])).logits[0]
            cut += F.cross_entropy(scores[fresh - begin - 1 : -1], torch.tensor(ids[fresh:end]), reduction="sum").item()
    assert document_nats(lm, ids, 16) == pytest.approx(cut, rel=1e-5)
    assert cut != pytest.approx(whole, rel=1e-5)


def test_fidelity_is_by_hand() -> None:
    """Divergence of the model from the exact one, not the other way round."""
    ids = torch.randint(300, (30,), generator=torch.Generator().manual_seed(0)).tolist()
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(TextLM(LlamaForCausalLM(tiny_config()), tiny_tokenizer(), "tiny"))
    with torch.no_grad():
        ours, theirs = (lm.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1) for lm in found)
    at = torch.arange(29), torch.tensor(ids[1:])
    report = fidelity(*found, [ids], 64)
    assert report["kl"]["value"] == pytest.approx(float((theirs.exp() * (theirs - ours)).sum() / 29), rel=1e-4)
    assert report["same_choice"]["value"] == pytest.approx(float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()))
    dearer = float((theirs[at] - ours[at]).mean())
    assert report["perplexity_ratio"]["value"] == pytest.approx(math.exp(dearer), rel=1e-4)
    assert fidelity(found[0], found[0], [ids], 64)["same_choice"]["value"] == 1


def test_bits_are_counted_a_byte_of_text() -> None:
    lm = tiny_text_lm()
    texts = ["the lazy dog", "hello there! " * 9, "été"]
    rows = [
        (len(text.encode()), ids.tolist()) for text, ids in zip(texts, Encoder(lm.tokenizer).ids(texts), strict=True)
    ]
    report = text_loss(lm, rows, 32)
    nats = sum(document_nats(lm, ids, 32) for _, ids in rows)
    assert report["tokens"] == sum(len(ids) - 1 for _, ids in rows)
    assert report["loss"]["value"] == pytest.approx(nats / report["tokens"])
    assert report["bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / sum(size for size, _ in rows))
    low, high = report["bits_per_byte"]["interval"]
    assert low <= report["bits_per_byte"]["value"] <= high
    with pytest.raises(ValueError, match="There is no held-out document"):
        text_loss(lm, [], 32)
    with pytest.raises(ValueError, match="The length is 1000 tokens; the model reads 2 to 512"):
        text_loss(lm, rows, 1000)


def test_the_command_measures_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_folder(tmp_path / "model")
    for number in range(12):
        (tmp_path / f"{number}.txt").write_text(f"the fox number {number} jumps. " * 3, "utf-8")
    sources = f"{{name: files, paths: ['{tmp_path}/*.txt']}}"
    command = ["eval", "text", str(tmp_path / "model"), "--sources", sources, "--json", str(tmp_path / "scores.json")]
    assert run(monkeypatch, *command, "--dev-fraction", "0.5", "--limit", "3", "--ahead", "2", "--top", "4") == 0
    report = json.loads((tmp_path / "scores.json").read_text("utf-8"))
    assert report["documents"] == 3
    assert report["bits_per_byte"]["value"] > 1
    assert report["ahead"]["tokens"] == report["tokens"] - 3
    assert f"bits_per_byte {report['bits_per_byte']['value']:.4g}" in capsys.readouterr().out
    assert run(monkeypatch, *command, "--dev-fraction", "0") == 2
    assert "There is no held-out document to measure on" in capsys.readouterr().err

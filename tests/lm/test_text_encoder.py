"""The text encoder learns to spell, reads every word once, in its span, and late text exactly as whole text."""

from __future__ import annotations

import dataclasses
import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from speech_mtp import hub
from speech_mtp.lm.fingerprint import fingerprint_of
from speech_mtp.lm.text_encoder import (
    SOUNDS,
    Spelled,
    TextEncoder,
    TextEncoderConfig,
    collate,
    find_words,
    spell,
    to_sounds,
    to_units,
)
from speech_mtp.lm.units import UnitMaker, UnitStream
from speech_mtp.text.g2p.base import G2P
from speech_mtp.text.phonemes import VOWELS, Unit, merge_pauses, parse
from speech_mtp.training.loop import LoopConfig, train
from speech_mtp.training.text_encoder import TextEncoderTask, TextEncoderTaskConfig, label, read_texts
from tests.contracts.test_g2p import SENTENCES
from tests.lm.tiny import tiny_backbone
from tests.tiny import tiny_model

LEXICON = {
    "the": "ðə", "quick": "kwˈɪk", "brown": "bɹˈWn", "fox": "fˈɑks", "jumps": "ʤˈʌmps", "over": "ˈOvəɹ",
    "lazy": "lˈAzi", "dog": "dˈɔɡ", "doesn't": "dˈʌzᵊnt", "it": "ɪt", "hello": "həlˈO", "there": "ðˈɛɹ",
    "good": "ɡˈʊd", "morning": "mˈɔɹnɪŋ", "TV": "tˌivˈi", "co-operate": "kOˈɑpəɹˌAt", "bees": "bˈiz",
    "and/or": "ænd ɔɹ", "though": "ðˈO",
}  # fmt: skip
"""Besides "read": an order at the beginning of a text, else a verb in the past. Its letters do not tell which."""

SMALL = TextEncoderConfig(16, 2, dim=64, num_layers=2, hidden=128, heads=2, dropout=0.0, word_dropout=0.0)


class Toy(G2P):
    name = "toy"

    def phonemize(self, text: str) -> list[Unit]:
        units: list[Unit] = []
        for word in find_words(text):
            sound = LEXICON.get(text[word.start : word.end], "ɹˈɛd" if units else "ɹˈid")
            units += parse(sound, word.start, word.end) + parse(text[word.end : word.next[0]].strip(), 0, 0)
        return merge_pauses(units)


def sentences(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = [*LEXICON, "read"]
    texts = [" ".join(rng.choices(words, k=5)) + rng.choice([".", "?", ", though."]) for _ in range(count)]
    return [rng.choice(["", "", "read "]) + text for text in texts]


@pytest.fixture(scope="module")
def task() -> TextEncoderTask:
    torch.manual_seed(0)
    config = TextEncoderTaskConfig(batch=16, rare=1.0)
    return TextEncoderTask(TextEncoder(SMALL), tiny_backbone(2), Toy(), sentences(1000, 1), sentences(40, 2), config)


@pytest.fixture(scope="module")
def scores(task: TextEncoderTask, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    loop = LoopConfig(steps=300, learning_rate=3e-3, warmup=20, log_every=100, evaluate_every=1000)
    return train(task, loop, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def own(task: TextEncoderTask, scores: dict[str, float]) -> Spelled:
    return Spelled(task.backbone, task.encoder)


def test_it_learns_a_lexicon_with_a_heteronym_to_zero_error(scores: dict[str, float]) -> None:
    assert scores == {"phoneme_error_rate": 0.0, "word_accuracy": 1.0}


def test_a_learned_front_end_gives_the_units_of_its_teacher_with_spans_and_pauses(own: Spelled) -> None:
    text = "  hello there,\n the TV -- it read and/or jumps over: it read 'good'!  "
    found = own.phonemize(text)
    spoken = [u for u in found if not u.is_pause]
    assert spoken == [u for u in Toy().phonemize(text.replace("'", '"')) if not u.is_pause]
    pauses = [(u.phoneme, text[u.char_start : u.char_end]) for u in found if u.is_pause]
    assert pauses == [(",", ","), (",", "--"), (",", ":"), ("!", "!")]
    starts = " ".join(text[u.char_start : u.char_end] for u in spoken if u.word_start)
    assert starts == "hello there the TV it read and/or and/or jumps over it read good"


def test_readings_do_not_depend_on_earlier_calls(own: Spelled) -> None:
    texts = ["the quick", "the quick brown", "the quickly", "the quick brown", "it read", "it", "the quick brown fox."]
    fresh = [Spelled(own._backbone, own._encoder).phonemize(text) for text in texts]
    assert [own.phonemize(text) for text in texts] == fresh


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("trained", [True, False])
def test_late_text_is_read_as_the_whole_text(own: Spelled, size: int, trained: bool) -> None:
    torch.manual_seed(3)
    g2p = own if trained else Spelled(own._backbone, TextEncoder(SMALL))
    text = "it read the dog's fox, doesn't it? The U.S. TV and Mr. Brown - good morning: over there..."
    maker = UnitMaker(own._backbone, g2p)
    whole = maker.make([text])
    stream = UnitStream(maker)
    words = re.findall(r"\s*\S+", text)
    for at in range(0, len(words), size):
        stream.push("".join(words[at : at + size]))
    stream.finish()
    while stream.advance():
        continue
    for name in ("phoneme", "stress", "word_start", "token"):
        assert torch.equal(getattr(stream.units, name), getattr(whole, name)), name
    torch.testing.assert_close(stream.units.hidden, whole.hidden, atol=1e-4, rtol=0)


def test_even_an_untrained_encoder_loses_no_word() -> None:
    encoder = TextEncoder(SMALL)
    with torch.no_grad():
        encoder.out.bias[0] = 1e4  # blanks everywhere
    g2p = Spelled(tiny_backbone(2), encoder)
    for text in (*SENTENCES, "Even Xyzzy or naïve, is heard"):
        spoken = [u for u in g2p.phonemize(text) if not u.is_pause]
        assert all(u.word_start and u.phoneme.isalpha() for u in spoken)
        for word in re.finditer(r"\S*\w\S*", text):
            inside = [u for u in spoken if word.start() <= u.char_start and u.char_end <= word.end()]
            assert inside, f"{word.group()!r} vanished"


@pytest.mark.parametrize("text", ["", "  ", "...", " , "])
def test_text_without_words_has_no_units(own: Spelled, text: str) -> None:
    assert own.phonemize(text) == []


@pytest.mark.parametrize("word", ["105", "привет"])
def test_a_word_without_english_letters_is_refused_by_name(own: Spelled, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        own.phonemize(f"Say {word} now.")


def test_an_encoder_of_other_states_is_refused() -> None:
    with pytest.raises(ValueError, match="layer 2 of width 16, the backbone gives layer 1"):
        Spelled(tiny_backbone(1), TextEncoder(SMALL))


def test_sounds_are_the_inventory_and_go_back_and_forth() -> None:
    assert len(set(SOUNDS)) == len(SOUNDS)
    units = parse("tˌivˈi wʌn", 3, 9)
    assert to_units(to_sounds(units), 3, 9) == units
    assert {s for p, s in SOUNDS if p in VOWELS} == {0, 1, 2}


def test_a_saved_encoder_reads_the_same(own: Spelled, tmp_path: Path) -> None:
    hub.save_text_encoder(own._encoder, tmp_path / "text")
    loaded = hub.load_text_encoder(tmp_path / "text")
    text = sentences(1, 9)[0]
    assert loaded.config == own._encoder.config
    assert Spelled(own._backbone, loaded).phonemize(text) == own.phonemize(text)
    hub.save_text_encoder(own._encoder, tmp_path / "small", "int8")
    assert Spelled(own._backbone, hub.load_text_encoder(tmp_path / "small")).phonemize(text) == own.phonemize(text)
    with pytest.raises(ValueError, match="not a codec"):
        hub.load_checkpoint(tmp_path / "text", kind="codec")


def test_a_model_with_its_own_front_end_needs_no_other(own: Spelled, tmp_path: Path, monkeypatch: Any) -> None:
    trunk = tmp_path / "trunk"
    own._backbone.model.save_pretrained(trunk)
    own._backbone.tokenizer.save_pretrained(trunk)
    monkeypatch.setitem(sys.modules, "hibari", None)
    model = tiny_model()
    entries = {
        "backbone": {"sha256": fingerprint_of(trunk), "package": "none", "file": "none"},
        "hidden_layer": 2,
        "g2p": "own",
        "sampling": {},
    }
    with pytest.raises(ValueError, match="text encoder exactly when"):
        hub.save_model(tmp_path / "model", model.codec, model.lm, model.voices, entries)
    hub.save_model(tmp_path / "model", model.codec, model.lm, model.voices, entries, text_encoder=own._encoder)
    maker = hub.load(tmp_path / "model", backbone=str(trunk)).maker
    text = sentences(1, 9)[0]
    assert maker.g2p.phonemize(text) == own.phonemize(text)
    assert maker.words("hello there, TV") == [("hello", 0, 4), ("there", 4, 7), ("TV", 8, 12)]


def test_the_default_size_is_below_two_million() -> None:
    encoder = TextEncoder(TextEncoderConfig(576, 18))
    assert sum(p.numel() for p in encoder.parameters()) < 2_000_000


def learner(texts: list[str], dev: list[str], **settings: Any) -> TextEncoderTask:
    torch.manual_seed(0)
    config = TextEncoderTaskConfig(**{"batch": 8, "rare": 1.0, **settings})
    return TextEncoderTask(TextEncoder(SMALL), tiny_backbone(2), Toy(), texts, dev, config)


def test_held_out_sentences_are_not_trained_on_and_frequent_words_are_thinned() -> None:
    texts = sentences(40, 1)
    thin, thick = (learner(texts, texts[:10], rare=rare) for rare in (1e-9, 1.0))
    assert set(thin.train_data.texts) == set(texts[10:]) - set(texts[:10])
    counts = [len(t.labelled(texts[10:20], np.random.default_rng(0)).rows) for t in (thin, thick)]
    assert counts == [0, len(thin.labelled(texts[10:20]).rows)]


def test_words_that_no_training_sentence_holds_are_counted_apart() -> None:
    scores = learner(["the quick fox.", "the dog."], ["the lazy dog."]).evaluate()
    assert scores["new_word_accuracy"] == 0.0
    assert "new_word_accuracy" not in learner(["the quick fox.", "the dog."], ["the quick dog."]).evaluate()


def test_every_parameter_learns_and_gradients_are_clipped() -> None:
    task = learner(
        ["The TV, though. read it", "the dog and/or hello. Good"], ["the dog"], grad_clip=0.05, weight_decay=0.3
    )
    optimizer, norms = task.optimizers["text_encoder"], []

    def note(*_: Any) -> None:
        norms.append(
            float(torch.stack([p.grad.norm() for p in task.encoder.parameters() if p.grad is not None]).norm())
        )

    optimizer.register_step_pre_hook(note)
    assert task.step(0, 1e-3)["norm"] > 0.05
    assert norms == pytest.approx([0.05], rel=1e-2)
    assert [name for name, p in task.encoder.named_parameters() if p.grad is None or not p.grad.any()] == []
    decays = {p.ndim > 1: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {True: 0.3, False: 0.0}


@torch.no_grad()
def test_a_word_is_the_same_among_longer_ones_and_dropped_states_are_not_read() -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(dataclasses.replace(SMALL, word_dropout=1.0)).eval()
    text, spans = "it co-operates", [(0, 2), (2, 14)]
    rows, hidden = spell(text, find_words(text), spans), torch.randn(1, 2, 16)
    alone, among = encoder(collate(rows[:1]), hidden), encoder(collate(rows), hidden)
    torch.testing.assert_close(among[0, : 3 * 4], alone[0, : 3 * 4])
    assert not torch.equal(encoder(collate(rows), -hidden), among)
    encoder.train()
    assert torch.equal(encoder(collate(rows), -hidden), encoder(collate(rows), hidden))


def test_words_that_the_teacher_cuts_otherwise_are_left_out() -> None:
    class Fused(Toy):
        def phonemize(self, text: str) -> list[Unit]:
            return [
                dataclasses.replace(u, char_end=9) if u.char_start == 0 else u
                for u in super().phonemize(text)
                if u.char_start != 4
            ]

    text = "the quick fox"
    assert [text[w.start : w.end] for w, _ in label(text, Fused())] == ["fox"]


def test_texts_are_distinct_lines_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\none\n")
    assert read_texts([tmp_path / "a.txt"]) == ["one", "two"]
    with pytest.raises(FileNotFoundError, match=r"b\.txt"):
        read_texts([tmp_path / "b.txt"])

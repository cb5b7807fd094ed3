"""Training of the text encoder: any text, read by a grapheme-to-phoneme front end, teaches spelling -> phonemes.

The backbone stays frozen. It reads every batch anew, so the amount of text is not bounded by stored states; or stored
states are read instead (:class:`StoredStates`), which makes a step twenty times faster.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from pydantic import ConfigDict
from torch import Tensor, nn
from torchaudio.functional import edit_distance

from speech_mtp.lm.backbone import Backbone
from speech_mtp.lm.reader import Encoded, Span
from speech_mtp.lm.text_encoder import (
    FRAMES_PER_LETTER,
    TextEncoder,
    Word,
    collate,
    find_words,
    spell,
    to_device,
    to_sounds,
)
from speech_mtp.text.g2p.base import G2P
from speech_mtp.training.base import Task, begin_step
from speech_mtp.training.distributed import Workers
from speech_mtp.training.lm import UnitStore


@dataclass(frozen=True)
class TextEncoderTaskConfig:
    """``batch`` sentences a step. A word that makes up a share f of the text is kept with probability
    ``sqrt(rare / f)`` (at most 1), so that "the" does not take the place of a thousand other words."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    batch: int = 32
    rare: float = 2e-4
    grad_clip: float = 1.0
    weight_decay: float = 0.02
    seed: int = 0


@dataclass
class Labelled:
    """Words of a batch: rows of :func:`spell`, their sounds, their spelling, and the states ``[B, L, D]``."""

    rows: list[Tensor]
    sounds: list[list[int]]
    written: list[str]
    hidden: Tensor


class TextData:
    """Sentences by number, those of like length together: a pure function of the seed and the number."""

    def __init__(self, texts: list[str], batch: int, seed: int) -> None:
        if not texts:
            raise ValueError("There is no text to train on or to evaluate with; give files with one sentence a line.")
        self.texts, self.size, self.seed = texts, batch, seed
        self._lengths = np.array([len(text) for text in texts])
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])

    def __len__(self) -> int:
        return -(-len(self.texts) // self.size)

    def batch(self, number: int) -> list[str]:
        """Batch n is batch n % len of pass n // len."""
        epoch, at = divmod(number, len(self))
        if self._epoch[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            order = np.argsort(self._lengths * rng.uniform(0.8, 1.25, len(self.texts)), kind="stable")
            parts = np.array_split(order, len(self))
            self._epoch = (epoch, [parts[i] for i in rng.permutation(len(parts))])
        return [self.texts[i] for i in self._epoch[1][at]]


def read_texts(files: list[Path]) -> list[str]:
    """The distinct non-empty lines of text files, in order. Raises FileNotFoundError for a missing file."""
    lines: dict[str, None] = {}
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"There is no text file {file}; check the path.")
        lines.update(dict.fromkeys(line.strip() for line in file.read_text(encoding="utf-8").splitlines()))
    lines.pop("", None)
    return list(lines)


def label(text: str, g2p: G2P) -> list[tuple[Word, list[int]]]:
    """The words of ``text`` with the sounds that ``g2p`` gives them; a word that it cuts otherwise is left out."""
    spoken: dict[Span, list[int]] = {}
    for (start, end, pause), units in groupby(g2p.phonemize(text), lambda u: (u.char_start, u.char_end, u.is_pause)):
        if not pause:
            spoken[start, end] = to_sounds(units)
    return [(word, spoken[word.start, word.end]) for word in find_words(text) if (word.start, word.end) in spoken]


class StoredStates:
    """``encode`` of a backbone, from the states that the stage ``units`` stored, of texts that are ``known``."""

    def __init__(self, backbone: Backbone, store: UnitStore) -> None:
        self.backbone, self.store = backbone, store

    def known(self, texts: list[str]) -> list[str]:
        """Those of ``texts`` whose states are stored."""
        return [text for text in texts if text in self.store.index]

    def encode(self, texts: list[str]) -> Encoded:
        units = self.store.units(texts)
        spans = [self.backbone.spans(text) for text in texts]
        # The store ends with the last token that a unit belongs to; marks behind it have no state and need none.
        lengths = [self.store.index[text][3] - self.store.index[text][2] for text in texts]
        kept = [s[:n] for s, n in zip(spans, lengths, strict=True)]
        return Encoded(units.hidden.to(self.backbone.device), kept, torch.tensor(lengths))


class TextEncoderTask(Task):
    """Trains the text encoder; ``g2p`` labels, the frozen ``backbone`` gives the states, or ``states`` in its place."""

    def __init__(
        self,
        encoder: TextEncoder,
        backbone: Backbone,
        g2p: G2P,
        texts: list[str],
        dev_texts: list[str],
        config: TextEncoderTaskConfig,
        workers: Workers | None = None,
        states: StoredStates | None = None,
    ) -> None:
        self.workers = workers or Workers()
        self.states = states or backbone
        self.encoder, self.backbone, self.g2p, self.config = encoder.to(backbone.device), backbone, g2p, config
        held_out = set(dev_texts)
        self.train_data = TextData([t for t in texts if t not in held_out], config.batch, config.seed)
        self.dev_data = TextData(dev_texts, config.batch, config.seed)
        counts = Counter(w for text in self.train_data.texts for w in _spellings(text))
        total = counts.total()
        self.keep = {word: min(1.0, (config.rare * total / count) ** 0.5) for word, count in counts.items()}
        self.modules = {"text_encoder": encoder}
        groups = [
            {"params": [p for p in encoder.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in encoder.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizers = {"text_encoder": torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)}

    def step(self, number: int, learning_rate: float) -> dict[str, float]:
        self.encoder.train()
        drawn = self.workers.batch_number(number)
        loss = self.loss(self.labelled(self.train_data.batch(drawn), np.random.default_rng((self.config.seed, drawn))))
        optimizer = self.optimizers["text_encoder"]
        begin_step(optimizer, learning_rate)
        loss.backward()
        self.workers.average_gradients(list(self.encoder.parameters()))
        norm = nn.utils.clip_grad_norm_(self.encoder.parameters(), self.config.grad_clip)
        optimizer.step()
        return {"loss": float(loss.detach()), "norm": float(norm)}

    def labelled(self, texts: list[str], thin: np.random.Generator | None = None) -> Labelled:
        """Words and states of ``texts``; ``thin`` draws which of the frequent words are left out."""
        with torch.no_grad():
            encoded = self.states.encode(texts)
        batch = Labelled([], [], [], encoded.hidden)
        for b, text in enumerate(texts):
            pairs = label(text, self.g2p)
            if thin is not None:
                pairs = [(w, s) for w, s in pairs if thin.random() < self.keep[text[w.start : w.end].lower()]]
            words = [word for word, _ in pairs]
            batch.rows += spell(text, words, encoded.spans[b], b * encoded.hidden.shape[1])
            batch.sounds += [sounds for _, sounds in pairs]
            batch.written += [text[word.start : word.end].lower() for word in words]
        return batch

    def loss(self, batch: Labelled) -> Tensor:
        """CTC loss per sound; a word with more sounds than frames adds nothing."""
        if not batch.rows:
            return torch.stack([p.sum() for p in self.encoder.parameters()]).sum() * 0
        spelling = to_device(collate(batch.rows), batch.hidden.device)
        scores = self.encoder(spelling, batch.hidden).transpose(0, 1)
        sizes = torch.tensor([len(sounds) for sounds in batch.sounds])
        targets = torch.tensor([sound for sounds in batch.sounds for sound in sounds])
        frames = (FRAMES_PER_LETTER * spelling.sizes).cpu()
        device = batch.hidden.device
        total = nn.functional.ctc_loss(scores, targets.to(device), frames, sizes, reduction="sum", zero_infinity=True)
        return total / len(targets)

    def evaluate(self) -> dict[str, float]:
        """On the held-out sentences: edits per phoneme (stress counts), the share of words that are right, and the
        same share among the words that no training sentence holds."""
        self.encoder.eval()
        edits = sounds = 0
        right: list[bool] = []
        new: list[bool] = []
        for number in range(len(self.dev_data)):
            batch = self.labelled(self.dev_data.batch(number))
            read = self.encoder.read(batch.rows, batch.hidden)
            for said, meant, written in zip(read, batch.sounds, batch.written, strict=True):
                edits += edit_distance(said, meant)
                sounds += len(meant)
                right.append(said == meant)
                if written not in self.keep:
                    new.append(said == meant)
        scores = {"phoneme_error_rate": edits / max(1, sounds), "word_accuracy": sum(right) / max(1, len(right))}
        return scores | ({"new_word_accuracy": sum(new) / len(new)} if new else {})

    def export(self, folder: Path) -> None:
        from speech_mtp.hub import save_text_encoder

        save_text_encoder(self.encoder, folder)


def _spellings(text: str) -> list[str]:
    return [text[word.start : word.end].lower() for word in find_words(text)]

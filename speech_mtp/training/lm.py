"""Training of the speech LM: text units and aligned codes in, a talker out, or a backbone that speaks itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from pydantic import ConfigDict
from torch import Tensor, nn

from speech_mtp.corpus.codes import CodecFacts, CodeCorpus, CodeRow
from speech_mtp.corpus.texts import rows_of
from speech_mtp.files import replacing
from speech_mtp.layouts.base import Layout
from speech_mtp.lm.direct import DirectLM
from speech_mtp.lm.group_lm import GroupLM
from speech_mtp.lm.known_groups import Known
from speech_mtp.lm.speech_lm import SpeechLM
from speech_mtp.lm.token_maker import TokenMaker
from speech_mtp.objectives.base import Course, Objective
from speech_mtp.objectives.direct import Direct, paper_weights
from speech_mtp.objectives.ntp import NTP
from speech_mtp.text.phonemes import SYMBOLS, parse
from speech_mtp.training.base import Task, begin_step
from speech_mtp.training.distributed import Workers
from speech_mtp.training.precision import mixed
from speech_mtp.types import Codes, Kind, Positions, TextUnits

PACE_ROWS = 1000
"""About so many utterances are looked at to see whether the layout fits them."""


@dataclass(frozen=True)
class LMTaskConfig:
    """``noise`` is the share of input groups whose codes are replaced by random ones (they will be imperfect in
    decoding too); ``timbre_noise`` the spread added to timbre vectors; ``weights`` are those of the loss terms (None:
    those of the codec's spec, and for the direct form the paper's); ``zero_hidden`` trains without the backbone."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    batch: int = 48
    noise: float = 0.1
    timbre_noise: float = 0.05
    weights: dict[str, float] | None = None
    zero_hidden: bool = False
    amp: bool | None = None
    grad_clip: float = 1.0
    weight_decay: float = 0.05
    seed: int = 0


class TextStore(Protocol):
    """Where batches get their text units from."""

    def __contains__(self, text: str) -> bool: ...
    def units(self, texts: list[str]) -> TextUnits: ...

    def check(self, row: CodeRow) -> None:
        """Raises ValueError where the units of the row's text are not those that its codes are aligned with."""


class TokenStore:
    """Text units of the direct form. Tokens cost nothing to make, so that any text is there and nothing is stored."""

    def __init__(self, maker: TokenMaker) -> None:
        self._maker = maker

    def __contains__(self, text: str) -> bool:
        return True

    def check(self, row: CodeRow) -> None:
        """Tokens need no alignment."""

    def units(self, texts: list[str]) -> TextUnits:
        """A padded batch."""
        return self._maker.make(texts)


class UnitStore:
    """Text units of every sentence, with the backbone's states, as flat arrays on disk.

    ``hidden.f16 [tokens, D]`` is memory-mapped; ``units.npy [4, total]`` holds phoneme, stress, word start and token;
    ``index.json`` maps each text to its slices.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        meta = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        self.index: dict[str, list[int]] = meta["texts"]
        self.dim: int = meta["dim"]
        self._hidden = np.memmap(folder / "hidden.f16", np.float16, mode="r").reshape(-1, self.dim)
        self._units = np.load(folder / "units.npy")

    def __contains__(self, text: str) -> bool:
        return text in self.index

    def check(self, row: CodeRow) -> None:
        first, end, _, _ = self.index[row.text]
        stored = [SYMBOLS[i] for i in self._units[0, first:end]]
        aligned = [unit.phoneme for unit in parse(row.phonemes)]
        if stored != aligned:
            pairs = zip_longest(stored, aligned, fillvalue="nothing")
            at, (ours, theirs) = next((at, pair) for at, pair in enumerate(pairs, 1) if pair[0] != pair[1])
            raise ValueError(
                f"The units of {row.text!r} in {self.folder} do not fit the codes of {row.id}: phoneme {at} is {ours} "
                f"in the units and {theirs} in the codes; remove {self.folder} and make units with the corpus's G2P."
            )

    def states(self, text: str) -> Tensor:
        """The backbone's states of ``text``, ``[tokens, dim]``."""
        _, _, first, end = self.index[text]
        return torch.from_numpy(self._hidden[first:end].astype(np.float32))

    def units(self, texts: list[str]) -> TextUnits:
        """A padded batch."""
        slices = [self.index[t] for t in texts]
        arrays = [torch.from_numpy(self._units[:, a:b].astype(np.int64)).T for a, b, _, _ in slices]
        hidden = [torch.from_numpy(self._hidden[c:d].astype(np.float32)) for _, _, c, d in slices]
        fields = nn.utils.rnn.pad_sequence(arrays, batch_first=True)
        lengths = torch.tensor([len(a) for a in arrays])
        return TextUnits(
            phoneme=fields[..., 0],
            stress=fields[..., 1],
            word_start=fields[..., 2],
            token=fields[..., 3],
            lengths=lengths,
            hidden=nn.utils.rnn.pad_sequence(hidden, batch_first=True),
            complete=torch.ones_like(lengths, dtype=torch.bool),
        )


def write_units(folder: Path, batches: Iterable[tuple[list[str], TextUnits]]) -> None:
    """Store units made elsewhere: ``batches`` of (texts, units), of which one at a time is held."""
    folder.mkdir(parents=True, exist_ok=True)
    texts: dict[str, list[int]] = {}
    columns = [np.zeros((4, 0), np.int32)]
    at_unit = at_token = dim = 0
    with (folder / "hidden.f16").open("wb") as file:
        for names, units in batches:
            dim = units.hidden.shape[-1]
            for b, text in enumerate(names):
                n = int(units.lengths[b])
                tokens = int(units.token[b, :n].max()) + 1
                parts = (units.phoneme, units.stress, units.word_start, units.token)
                columns.append(torch.stack([p[b, :n] for p in parts]).numpy().astype(np.int32))
                units.hidden[b, :tokens].half().numpy().tofile(file)
                texts[text] = [at_unit, at_unit + n, at_token, at_token + tokens]
                at_unit, at_token = at_unit + n, at_token + tokens
    np.save(folder / "units.npy", np.concatenate(columns, 1))
    (folder / "index.json").write_text(json.dumps({"dim": dim, "texts": texts}), encoding="utf-8")


def join_units(folder: Path, parts: list[Path]) -> int:
    """Join what :func:`write_units` wrote in ``parts``; states are copied from disk to disk, the index comes last.

    Returns the number of texts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts: dict[str, list[int]] = {}
    columns: list[np.ndarray] = []
    at_unit = at_token = dim = 0
    with replacing(folder / "hidden.f16") as path, path.open("wb") as file:
        for part in parts:
            meta = json.loads((part / "index.json").read_text(encoding="utf-8"))
            dim, shift = max(dim, meta["dim"]), (at_unit, at_unit, at_token, at_token)
            texts |= {t: [a + b for a, b in zip(at, shift, strict=True)] for t, at in meta["texts"].items()}
            columns.append(np.load(part / "units.npy"))
            with (part / "hidden.f16").open("rb") as states:
                shutil.copyfileobj(states, file)
            at_unit += columns[-1].shape[1]
            at_token += max((tokens for *_, tokens in meta["texts"].values()), default=0)
    with replacing(folder / "units.npy") as path:
        np.save(path, np.concatenate(columns, 1))
    with replacing(folder / "index.json") as path:
        path.write_text(json.dumps({"dim": dim, "texts": texts}), encoding="utf-8")
    return len(texts)


class Batching(Protocol):
    """What batches depend on."""

    @property
    def batch(self) -> int: ...
    @property
    def seed(self) -> int: ...


class LMData:
    """Batches by number, utterances of like length together: a pure function of the seed and the number."""

    def __init__(self, corpus: CodeCorpus, units: TextStore, config: Batching, split: str) -> None:
        self.corpus, self.units, self.config = corpus, units, config
        rows = [i for i in rows_of(corpus.rows, split) if corpus.rows[i].text in units]
        if not rows:
            raise ValueError(f"The code corpus has no {split} utterance whose text has stored units.")
        for i in rows:
            units.check(corpus.rows[i])
        self.rows = np.array(rows)
        self.frames = np.array([corpus.rows[i].frames for i in rows])
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])

    def __len__(self) -> int:
        return -(-len(self.rows) // self.config.batch)

    def _batches(self, epoch: int) -> list[np.ndarray]:
        """The rows of every batch of a pass: lengths are blurred before sorting, so neighbours differ by pass."""
        if self._epoch[0] != epoch:
            rng = np.random.default_rng((self.config.seed, epoch))
            order = np.argsort(self.frames * rng.uniform(0.9, 1.1, len(self.frames)), kind="stable")
            parts = np.array_split(self.rows[order], len(self))
            self._epoch = (epoch, [parts[i] for i in rng.permutation(len(parts))])
        return self._epoch[1]

    def batch(self, number: int) -> tuple[Codes, Tensor, TextUnits]:
        """Codes, unit of each frame, text units; number n is batch n % len of pass n // len."""
        epoch, at = divmod(number, len(self))
        picks = self._batches(epoch)[at].tolist()
        items = [self.corpus.item(i) for i in picks]
        frames = nn.utils.rnn.pad_sequence([f.T for f, _ in items], batch_first=True).transpose(1, 2)
        unit = nn.utils.rnn.pad_sequence([u for _, u in items], batch_first=True)
        lengths = torch.tensor([f.shape[1] for f, _ in items])
        timbre = self.corpus.timbre[picks].float()
        texts = [self.corpus.rows[i].text for i in picks]
        return Codes(frames, lengths, timbre), unit, self.units.units(texts)


def talker_weights(lm: GroupLM, codec: CodecFacts | None) -> dict[str, float]:
    """1 for the control channel, and for every stream what its codec says (1 where the codec is not known)."""
    streams = codec.loss_weights if codec else (1.0,) * len(lm.config.codebook_sizes)
    return {"control": 1.0, **{f"stream{k}": weight for k, weight in enumerate(streams)}}


def check_pace(layout: Layout, corpus: CodeCorpus) -> None:
    """Raises ValueError where more than one in a hundred utterances are spoken faster than the layout can tell."""
    rows = range(0, len(corpus), max(1, len(corpus) // PACE_ROWS)) if layout.points else ()
    late = [i for i in rows if not layout.can_end(corpus.item(i)[1], len(parse(corpus.rows[i].phonemes)))]
    if 100 * len(late) > len(rows):
        raise ValueError(
            f"In {len(late)} of {len(rows)} utterances, such as {corpus.rows[late[0]].id}, more text is spoken in "
            f"{layout.frames_per_group} frames than the layout allows; make groups shorter or its max_advance larger."
        )


class LMTask(Task):
    """Trains the talker, its embeddings and its output layer; the backbone stays frozen, its states are stored.

    The direct form trains in the same way, backbone included: its units are tokens, its objective ``direct``.
    """

    def __init__(
        self,
        lm: GroupLM,
        corpus: CodeCorpus,
        units: TextStore,
        config: LMTaskConfig,
        device: torch.device,
        workers: Workers | None = None,
        objective: Objective | None = None,
        steps: int | None = None,
    ) -> None:
        if config.zero_hidden and not lm.reads_states:
            raise ValueError("The direct form reads no stored states; leave task.zero_hidden out.")
        check_pace(lm.layout, corpus)
        direct = isinstance(lm, DirectLM)
        self.workers = workers or Workers()
        self.lm, self.config, self.device = lm.to(device), config, device
        self.train_data = LMData(corpus, units, config, "train")
        self.dev_data = LMData(corpus, units, config, "dev")
        self.measured: Objective = Direct() if direct else NTP()
        """What the dev split is measured by, whatever is learnt."""
        self.objective = objective or self.measured
        self.objective.bind_speech(lm, Course(lm.layout.frames_per_group, steps))
        self._number = 0
        self.weights = config.weights or (paper_weights(lm) if direct else talker_weights(lm, corpus.codec))
        decayed = [p for p in lm.parameters() if p.ndim > 1]
        plain = [p for p in lm.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.modules = {"lm": lm}
        if isinstance(self.objective, nn.Module):
            self.modules["objective"] = self.objective  # its place in a curriculum
        self.optimizers = {"lm": torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)}

    def step(self, number: int, learning_rate: float) -> dict[str, float]:
        self.lm.train()
        self._number = number
        self.objective.at_step(number)
        terms = self.terms(self.train_data.batch(self.workers.batch_number(number)), noise=self.config.noise)
        without = [name for name in terms if name not in self.weights]
        if without:
            raise ValueError(f"The loss term {without[0]!r} has no weight; add it to task.weights.")
        total = torch.stack([self.weights[k] * v for k, v in terms.items()]).sum()
        optimizer = self.optimizers["lm"]
        begin_step(optimizer, learning_rate)
        total.backward()
        # What a phase of a curriculum leaves out has no gradient, in no process, and must not be given zeros.
        self.workers.average_gradients([p for p in self.lm.parameters() if p.grad is not None])
        norm = nn.utils.clip_grad_norm_(self.lm.parameters(), self.config.grad_clip)
        optimizer.step()
        return {"loss": float(total.detach()), "norm": float(norm)} | {k: float(v.detach()) for k, v in terms.items()}

    def terms(
        self,
        batch: tuple[Codes, Tensor, TextUnits],
        noise: float = 0.0,
        zero: bool = False,
        objective: Objective | None = None,
    ) -> dict[str, Tensor]:
        """Named terms of one batch, by default those that are learnt; ``zero`` (or the setting) blanks the backbone's
        hidden states."""
        codes, unit, units = batch
        codes = Codes(codes.frames.to(self.device), codes.lengths.to(self.device), codes.timbre)
        units = units.to(self.device)
        if zero or self.config.zero_hidden:
            units.hidden = torch.zeros_like(units.hidden)
        assert codes.timbre is not None
        timbre = codes.timbre.to(self.device)
        positions = self.lm.layout.pack(codes, unit.to(self.device), units.lengths)
        if noise:
            timbre = timbre + self.config.timbre_noise * torch.randn_like(timbre)
            positions.tokens = self.corrupt(positions, noise)
        with mixed(self.config.amp, self.device):
            out = self.lm(positions, units, timbre)
            return dict((objective or self.objective).terms(self.lm, out, positions))

    def corrupt(self, positions: Positions, share: float) -> Tensor:
        """Replace the code channels of a share of input groups by random codes (never the control channel)."""
        tokens = positions.tokens.clone()
        hit = torch.rand(tokens.shape[:2], device=tokens.device) < share
        hit &= positions.kind == Kind.SPEECH
        for c, size in enumerate(self.lm.layout.channel_sizes):
            if c:
                random = torch.randint(size, tokens.shape[:2], device=tokens.device)
                tokens[..., c] = torch.where(hit, random, tokens[..., c])
        return tokens

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Mean terms over the dev split, and the same without the backbone's states (``blank/``) if any are read."""
        self.lm.eval()
        sums: dict[str, float] = {}
        passes = [("", False), ("blank/", True)][: 1 + self.lm.reads_states]
        for number in range(len(self.dev_data)):
            batch = self.dev_data.batch(number)
            for prefix, zero in passes:
                for name, value in self.terms(batch, zero=zero, objective=self.measured).items():
                    sums[prefix + name] = sums.get(prefix + name, 0.0) + float(value) / len(self.dev_data)
        loss = sum(self.weights.get(name, 0.0) * value for name, value in sums.items())
        self.objective.observe(self._number + 1, self.workers.of_main(loss))
        return sums

    def groups(self) -> Tensor:
        """All groups of the train split ``[N, C - 1]``, without their control tokens."""
        found = []
        for row in self.train_data.rows.tolist():
            frames = self.train_data.corpus.item(row)[0][None]
            codes = Codes(frames, torch.tensor([frames.shape[-1]]))
            found.append(self.lm.layout.group(self.lm.layout.pad_frames(codes)[0])[0].to(torch.int32))
        return torch.cat(found)

    def export(self, folder: Path) -> None:
        from speech_mtp.hub import save_speech_lm

        assert isinstance(self.lm, SpeechLM | DirectLM), type(self.lm)
        if isinstance(self.lm.output, Known):
            self.lm.output.know(self.groups().to(self.device))
        save_speech_lm(self.lm, folder)

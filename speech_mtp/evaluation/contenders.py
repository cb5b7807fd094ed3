"""Who takes part in a measurement of text decoding: every head with every rule that fits, plain decoding, and peers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from speech_mtp.decoding import catalogue
from speech_mtp.decoding.catalogue import Spec
from speech_mtp.decoding.text import Statistics, start
from speech_mtp.evaluation.peers import Greedy, Prompts, llama_cpp_greedy, transformers_greedy
from speech_mtp.evaluation.watch import Watch
from speech_mtp.heads.base import MTPHead
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.types import Sampling

OURS, TRANSFORMERS, LOOKUP, LLAMA_CPP = "speech_mtp", "transformers", "transformers prompt lookup", "llama.cpp"
NATIVE = "transformers native MTP"
LOOKUP_TOKENS = 10


@dataclass
class Answers:
    """New tokens of every prompt, when the first of them were there, and what drafting gave, in all and for every
    prompt (None: not known of a peer)."""

    tokens: list[list[int]]
    watch: Watch
    statistics: Statistics | None = None
    counts: list[Statistics] | None = None


@dataclass(frozen=True)
class Contender:
    """A way to answer prompts: ``answer(prompts, max_new_tokens)``.

    ``program`` says whose decoder it is; ``head`` and ``rule`` are None for a peer, ``head`` also for rules without.
    ``same_seed``: drawn text is that of plain decoding of the same seed, token by token.
    """

    program: str
    dtype: str
    head: str | None
    rule: str | None
    lossless: bool
    device: torch.device
    answer: Callable[[Prompts, int], Answers] = field(repr=False, compare=False)
    same_seed: bool = True

    @property
    def name(self) -> str:
        """Unique among the contenders of a measurement."""
        what = (self.program,) if self.rule is None else (self.head or "no head", self.rule)
        return " / ".join((*what, self.dtype))

    def entries(self) -> dict[str, Any]:
        """What a row of a report begins with."""
        return {key: getattr(self, key) for key in ("program", "head", "rule", "dtype", "lossless")}

    @property
    def is_vanilla(self) -> bool:
        return self.rule == "vanilla" and self.head is None


GREEDY = Sampling(temperature=0)


def ours(
    lm: TextLM,
    dtype: str,
    heads: Mapping[str, MTPHead],
    rules: Sequence[Spec] | None = None,
    sampling: Sampling = GREEDY,
) -> list[Contender]:
    """Plain decoding first, then what else needs no head, then every head with each of ``rules`` that fits (None: all).

    With another ``sampling`` a prompt's seed depends on its place among those that are answered with it.
    Raises ValueError for an unknown rule and for one that fits nothing here.
    """
    wanted = list(catalogue.names()) if rules is None else list(rules)
    pairs: list[tuple[str | None, MTPHead | None, Spec]] = [(None, None, "vanilla")]
    pairs += [
        (None, None, spec) for spec in wanted if catalogue.label(spec) != "vanilla" and catalogue.fits(spec, None)
    ]
    pairs += [(name, head, spec) for name, head in heads.items() for spec in wanted if catalogue.fits(spec, head)]
    used = {catalogue.label(spec) for _, _, spec in pairs}
    idle = [catalogue.label(spec) for spec in rules or () if catalogue.label(spec) not in used]
    if idle:
        raise ValueError(f"The rule {idle[0]} fits none of the heads ({', '.join(heads) or 'there is none'}).")
    return [_pair(lm, dtype, name, head, spec, sampling) for name, head, spec in pairs]


def _pair(lm: TextLM, dtype: str, name: str | None, head: MTPHead | None, spec: Spec, sampling: Sampling) -> Contender:
    rule = catalogue.build(spec, head)

    def answer(prompts: Prompts, max_new_tokens: int) -> Answers:
        watch = Watch(lm.device)
        run = start(lm, prompts, sampling, rule, max_new_tokens)
        run.advance()
        watch.note(len(run.tokens[0]))
        return Answers(run.complete(), watch, run.statistics, run.counts)

    same_seed = not (getattr(rule, "rejection", False) and sampling.temperature)
    return Contender(OURS, dtype, name, catalogue.label(spec), rule.lossless, lm.device, answer, same_seed)


def theirs(lm: TextLM, dtype: str, lookup: bool = True) -> list[Contender]:
    """``transformers``: plain, and with ``lookup`` its prompt lookup (which takes one prompt at a time)."""
    kinds = [(TRANSFORMERS, 0), *([(LOOKUP, LOOKUP_TOKENS)] if lookup else [])]
    return [_peer(name, dtype, lm.device, transformers_greedy(lm, tokens)) for name, tokens in kinds]


def native_mtp(lm: TextLM, dtype: str, folder: Path) -> Contender:
    """``transformers`` with the heads that ``speech-mtp export deepseek`` wrote into ``folder``, one prompt at a time.
    Raises ValueError for another folder."""
    return _peer(NATIVE, dtype, lm.device, transformers_greedy(lm, native=folder))


def llama_cpp(lm: TextLM, path: Path) -> Contender:
    """``llama.cpp`` on the CPU, with the GGUF file ``path`` of the same model."""
    return _peer(LLAMA_CPP, path.name, torch.device("cpu"), llama_cpp_greedy(path, lm.max_positions, lm.ends))


def _peer(program: str, dtype: str, device: torch.device, greedy: Greedy) -> Contender:
    def answer(prompts: Prompts, max_new_tokens: int) -> Answers:
        watch = Watch(device)
        return Answers(greedy(prompts, max_new_tokens, watch), watch)

    return Contender(program, dtype, None, None, True, device, answer)


def weights_of(head: MTPHead) -> str:
    """A short name of a head's weights: trained further, it is another head."""
    found = hashlib.sha256()
    for name, tensor in sorted(head.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]

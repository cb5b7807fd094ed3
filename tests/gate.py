"""The quality gate of the shipped model: ``python -m tests.gate``, one line a check, exit code 1 if one fails.

It speaks everyday sentences in every shipped voice and listens to them, holds streamed against offline sound,
recomputes greedy decoding without a cache, and lets the shipped head draft text. The bounds below are floors of a
release, not records.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import speech_mtp
from speech_mtp import hub
from speech_mtp.decoding import catalogue
from speech_mtp.decoding.base import DecodingRule
from speech_mtp.decoding.text import TextRun, start
from speech_mtp.decoding.vanilla import Vanilla
from speech_mtp.evaluation.identity import explain
from speech_mtp.evaluation.wer import WordErrors, total_errors, transcribe, word_errors
from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.lm.chat import opening
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.streaming.feed import sentences
from speech_mtp.streaming.pipeline import Ramp, speak
from speech_mtp.streaming.timed import Utterance, speak_timed
from speech_mtp.types import Codes, Sampling
from tests.replay import greedy_tokens, shortfall

MODEL = "tiny-en"
EXPECTED_WER = 0.03
"""Measured: 34 errors in 1,116 words, the sentences below and ``EVERYDAY`` in both voices."""
CHANCE = 0.01
"""Of a model with the expected word error rate to fail."""
SECONDS_PER_CHARACTER = (0.035, 0.15)
MIN_RMS = 0.01
MAX_DIFFERENCE = 1e-4
MIN_TOKENS_PER_FORWARD = 1.4
MAX_SHORTFALL = 1e-3  # nats: two logits so close may change places between two orders of summation

SENTENCES = [
    "Good morning, did you sleep well?",
    "The train to the city leaves at 9:45 from platform 3.",
    "Dr. Miller can see you on Tuesday at half past two.",
    "I bought two pounds of apples and a loaf of bread.",
    "It costs $12.50, but you can pay later.",
    "Please call me back when you have a minute.",
    "We walked along the river until it started to rain.",
    "My sister was born on March 3rd, 1998.",
    "Turn left at St. James Street, then go straight for 200 m.",
    "She said that dinner would be ready in ten minutes.",
    "There are 24 students in the class, and all of them passed.",
    "Thank you very much for your help, and have a nice day!",
]

EVERYDAY = (Path(__file__).parents[1] / "recipes/corpus/dev_sentences.txt").read_text("utf-8").splitlines()[:40]

PROMPTS = [
    "Why is the sky blue?",
    "Write a short story about a fox and a train.",
    "A baker sells 12 rolls at 3 dollars each and 5 cakes at 20 dollars each. How much does he earn?",
    "Translate to German: The weather is nice today.",
    "What are the advantages of riding a bicycle to work?",
    "Summarize: The committee met on Monday. It decided to close the bridge for repairs, which will take two weeks.",
    "Who wrote Romeo and Juliet?",
    "Write a Python function that adds two numbers.",
    "Give me three tips for a good night's sleep.",
    "Explain what a magnet is to a child.",
]

Check = tuple[str, bool, str]
"""What was checked, whether it holds, the figures."""


def sound_checks(model: SpeechModel, voice: str) -> Iterator[Check]:
    """Everyday sentences are spoken whole and at a natural pace."""
    spoken = [(text, speak_timed(model, text, voice)) for text in SENTENCES]
    quietest = min(float(u.wave.square().mean().sqrt()) for _, u in spoken)
    yield f"{voice}: not silent", quietest > MIN_RMS, f"lowest RMS {quietest:.3f}, bound {MIN_RMS}"
    reasons = [u.finish.reason for _, u in spoken]
    yield f"{voice}: ends by itself", set(reasons) == {"stop"}, f"{reasons.count('stop')} of {len(reasons)}"
    yield pace_check(voice, spoken)


def hearing_checks(model: SpeechModel) -> Iterator[Check]:
    """What all voices say is understood; they are judged together, as few words tell little."""
    said = [(text, speak_timed(model, text, voice)) for voice in model.voices for text in (*SENTENCES, *EVERYDAY)]
    errors = total_errors(word_errors(text, transcribe(u.wave, u.sample_rate)) for text, u in said)
    yield understood(errors)


def understood(heard: WordErrors) -> Check:
    most = most_errors(heard.words)
    figures = f"{heard.errors} errors in {heard.words} words, WER {heard.wer:.1%}, bound {most / heard.words:.1%}"
    return "understood", heard.errors <= most, figures


def most_errors(words: int) -> int:
    """So many errors in ``words`` words, or fewer, has a model of the expected rate but for ``CHANCE``; errors of
    different words are taken to be independent."""
    term = below = (1 - EXPECTED_WER) ** words
    errors = 0
    while below < 1 - CHANCE:
        term *= (words - errors) / (errors + 1) * EXPECTED_WER / (1 - EXPECTED_WER)
        errors += 1
        below += term
    return errors


def pace_check(voice: str, spoken: list[tuple[str, Utterance]]) -> Check:
    """Seconds per character of the text as it is read out."""
    paces = [u.seconds / len(" ".join(sentences(text))) for text, u in spoken]
    low, high = SECONDS_PER_CHARACTER
    figures = f"{min(paces):.3f} to {max(paces):.3f} s a character, bounds {low} and {high}"
    return f"{voice}: natural pace", low <= min(paces) and max(paces) <= high, figures


def streaming_checks(model: SpeechModel, voice: str) -> Iterator[Check]:
    """Chunks laid end to end are one decode of all frames, and pieces of text sound as the whole text."""
    text = " ".join(SENTENCES[:2])
    whole = speak_timed(model, text, voice).wave
    for groups in ((1,), (2,), (7,)):
        frames, wave = recorded(model, text, voice, Ramp(groups))
        offline = model.codec.decode(Codes(frames, torch.tensor([frames.shape[-1]]), model.timbre(voice)))[0, 0]
        yield same(f"{voice}: chunks of {groups[0]} groups equal offline decoding", wave, offline)
        yield same(f"{voice}: chunks of {groups[0]} groups equal the usual ones", wave, whole)
    for size in (1, 3, 11):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        wave = speak_timed(model, pieces, voice).wave
        yield same(f"{voice}: text in pieces of {size} characters equals the whole", wave, whole)


def recorded(model: SpeechModel, text: str, voice: str, ramp: Ramp) -> tuple[Tensor, Tensor]:
    """All frames ``[1, K, F]`` that the codec was given, and the sound ``[S]``."""
    given: list[Tensor] = []
    codec = model.codec
    push = codec.push

    def listen(state: object, frames: Tensor, lengths: Tensor) -> list[Tensor]:
        given.append(frames)
        return push(state, frames, lengths)

    codec.push = listen  # type: ignore[method-assign]
    try:
        wave = torch.cat([chunk.wave for chunk in speak(model, text, voice, ramp=ramp)])
    finally:
        del codec.push
    return torch.cat(given, -1), wave


def same(name: str, first: Tensor, second: Tensor) -> Check:
    if first.shape != second.shape:
        return name, False, f"{len(first)} and {len(second)} samples"
    difference = float((first - second).abs().max())
    return name, difference <= MAX_DIFFERENCE, f"greatest difference {difference:.1e}, bound {MAX_DIFFERENCE:.0e}"


def lossless_checks(model: SpeechModel, voice: str) -> Iterator[Check]:
    """Step by step with a cache, greedy decoding gives what one forward over all positions gives."""
    worst, tokens = 0.0, 0
    for text in SENTENCES[:10]:
        units = model.maker.make([" ".join(sentences(text))])
        found = greedy_tokens(model.lm, units, model.timbre(voice))
        worst = max(worst, float(shortfall(model.lm, units, model.timbre(voice), found).max()))
        tokens += found.numel()
    figures = f"{tokens} tokens of 10 prompts, greatest shortfall {worst:.1e} nats, bound {MAX_SHORTFALL:.0e}"
    yield "greedy decoding equals recomputation", worst <= MAX_SHORTFALL, figures


def text_checks() -> Iterator[Check]:
    """The shipped head drafts, and the text is that of plain decoding: in float32 but for ties, in invariant bfloat16
    always."""
    folder = hub.find_backbone(None)
    yield from drafting_checks("float32", TextLM.from_folder(folder).prepare(), ("chain", "tree", "cascade"))
    lm = TextLM.from_folder(folder, torch.bfloat16)
    try:
        lm.prepare(invariant=True)
    except ValueError as error:
        yield "invariant bfloat16", True, f"left out: {error}"
        return
    yield from drafting_checks("invariant bfloat16", lm, ("tree", "cascade"))


def drafting_checks(kind: str, lm: TextLM, rules: Sequence[str]) -> Iterator[Check]:
    head = hub.load_head(hub.find_head(hub.DEFAULT_HEAD), lm).to(lm.dtype).prepare()
    prompts = [opening(lm.tokenizer, [{"role": "user", "content": prompt}]) for prompt in PROMPTS]

    def said(rule: DecodingRule) -> TextRun:
        run = start(lm, prompts, Sampling(temperature=0), rule, 48)
        run.complete()
        return run

    plain = said(Vanilla())
    for name in rules:
        drafted = said(catalogue.build(name, head))
        parted = [i for i in range(len(prompts)) if drafted.tokens[i] != plain.tokens[i]]
        faults = [i for i in parted if not explain(lm, prompts[i], drafted.tokens[i], plain.tokens[i], i).tie]
        figures = f"{len(prompts) - len(parted)} of {len(prompts)} texts, {len(parted) - len(faults)} ties"
        yield f"{name} writes what plain decoding writes, {kind}", not faults, figures
    gained = drafted.statistics.tokens_per_forward
    figures = f"{gained:.2f} tokens per forward, bound {MIN_TOKENS_PER_FORWARD}"
    yield f"drafting saves forwards, {kind}", gained >= MIN_TOKENS_PER_FORWARD, figures


def seed_checks(model: SpeechModel) -> Iterator[Check]:
    """The same seed gives the same sound, another seed another."""
    first, again = (speak_timed(model, SENTENCES[0]).wave for _ in range(2))
    yield same("the same seed gives the same sound", first, again)
    other = speak_timed(model, SENTENCES[0], sampling=replace(model.sampling, seed=model.sampling.seed + 1)).wave
    differs = other.shape != first.shape or not torch.equal(other, first)
    yield "another seed gives another sound", differs or model.sampling.temperature == 0, f"{len(other)} samples"


def run(parts: Iterable[Callable[[], Iterator[Check]]]) -> int:
    """Print every check; the number of failures."""
    passed = failed = 0
    for part in parts:
        for name, holds, figures in part():
            print(f"{'ok  ' if holds else 'FAIL'}  {name} ({figures})", flush=True)
            passed, failed = passed + holds, failed + (not holds)
    print(f"{passed} passed, {failed} failed")
    return failed


def main() -> int:
    model = speech_mtp.load(MODEL)
    voices = list(model.voices)
    parts: list[Callable[[], Iterator[Check]]] = [lambda voice=v: sound_checks(model, voice) for v in voices]  # type: ignore[misc]
    parts += [
        lambda: hearing_checks(model),
        lambda: streaming_checks(model, voices[0]),
        lambda: lossless_checks(model, voices[0]),
    ]
    parts += [lambda: seed_checks(model), text_checks]
    return 1 if run(parts) else 0


if __name__ == "__main__":
    sys.exit(main())

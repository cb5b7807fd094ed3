"""What a codec keeps, and what it keeps apart: round trip, code usage, timbre swap, agreement, melody.

The parts that need a timbre vector or a stream called ``prosody`` are None for codecs without.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, TypeVar

import torch
from librosa.sequence import dtw
from torch import Tensor

from speech_mtp.codecs.base import Codec
from speech_mtp.evaluation.code_usage import code_usage, count_codes
from speech_mtp.evaluation.f0 import log_f0_correlation
from speech_mtp.evaluation.judges import Judges
from speech_mtp.evaluation.last_word import last_word_heard
from speech_mtp.evaluation.speaker_similarity import speaker_similarity
from speech_mtp.evaluation.wer import normalize, total_errors, word_errors
from speech_mtp.nn.spectral import LogMel
from speech_mtp.progress import progress
from speech_mtp.types import Codes

Item = TypeVar("Item")


@dataclass(frozen=True)
class Sample:
    """A recording ``wave [S]`` at the codec's sample rate. Without a ``text`` its own transcript is the reference.
    ``told``, where its teacher did: the ids of its phonemes, and the millisecond at which each ends."""

    voice: str
    text: str | None
    wave: Tensor
    told: tuple[list[int], list[int]] | None = None


@dataclass
class _Encoded:
    """A sample, its codes (a batch of one row), its decoding ``[S]`` and its text: empty if it holds no word."""

    sample: Sample
    codes: Codes
    decoded: Tensor
    text: str
    heard: str


def codec_report(
    codec: Codec,
    samples: Sequence[Sample],
    judges: Judges | None = None,
    seed: int = 0,
    max_pairs: int = 200,
    opinions: int | None = None,
) -> dict[str, Any]:
    """All parts as plain JSON; ``seed`` draws the pairs and shuffles.

    Opinion scores and melody, which take most of the time, are those of ``opinions`` samples, spread evenly over all
    (None: of all). Raises ``ValueError`` for no samples.
    """
    if not samples:
        raise ValueError("There is no audio to evaluate the codec on; give a folder with recordings.")
    judges = judges or Judges()
    rng = random.Random(seed)
    encoded = [_encode(codec, sample, judges) for sample in progress(samples, "encode")]
    judged = _spread(encoded, opinions)
    return {
        "utterances": len(samples),
        "voices": sorted({sample.voice for sample in samples}),
        "seconds": sum(len(sample.wave) for sample in samples) / codec.spec.sample_rate,
        "opinions": len(judged),
        "round_trip": {**_round_trip(codec, encoded, judges), **_opinions(codec, judged, judges)},
        "streams": _streams(codec, encoded),
        "frame_rate_hz": codec.spec.frame_rate_hz,
        "bits_per_second": sum(map(math.log2, codec.spec.codebook_sizes)) * codec.spec.frame_rate_hz,
        "swap": _swap(codec, encoded, judges, rng, max_pairs),
        "agreement": _agreement(codec, encoded, rng, max_pairs),
        "melody": _melody(codec, judged, judges, rng),
    }


def _spread(items: list[Item], number: int | None) -> list[Item]:
    """So many of the items (None: all), the same distance apart."""
    number = len(items) if number is None else min(number, len(items))
    return [items[i * len(items) // number] for i in range(number)]


def _encode(codec: Codec, sample: Sample, judges: Judges) -> _Encoded:
    codes = codec.encode(sample.wave[None, None])
    heard = judges.transcribe(sample.wave, codec.spec.sample_rate)
    text = sample.text or heard
    return _Encoded(sample, codes, _decode(codec, codes), text if normalize(text) else "", heard)


def _decode(codec: Codec, codes: Codes) -> Tensor:
    return codec.decode(codes)[0, 0]


def _round_trip(codec: Codec, encoded: list[_Encoded], judges: Judges) -> dict[str, float]:
    """Errors and share of last words heard, of the original and of what the codec makes of it."""
    rate = codec.spec.sample_rate
    spoken = [e for e in encoded if e.text]
    before = total_errors(word_errors(e.text, e.heard) for e in spoken)
    heard = [judges.transcribe(e.decoded, rate) for e in progress(spoken, "round trip")]
    after = total_errors(word_errors(e.text, text) for e, text in zip(spoken, heard, strict=True))
    if not before.words:
        raise ValueError("No words were heard in the audio, so no round trip can be judged; give recordings of speech.")
    return {
        "wer_original": before.wer,
        "wer": after.wer,
        "cer_original": before.cer,
        "cer": after.cer,
        "last_word_original": fmean(last_word_heard(e.text, e.heard) for e in spoken),
        "last_word": fmean(last_word_heard(e.text, text) for e, text in zip(spoken, heard, strict=True)),
    }


def _opinions(codec: Codec, judged: list[_Encoded], judges: Judges) -> dict[str, float | None]:
    """Mean scores of the original and of what the codec makes of it; None where nothing is judged."""
    rate = codec.spec.sample_rate
    found: dict[str, list[float]] = {}
    for e in progress(judged, "opinions"):
        for name, wave in (("_original", e.sample.wave), ("", e.decoded)):
            found.setdefault(f"dnsmos{name}", []).append(judges.opinion(wave, rate))
            found.setdefault(f"distill_mos{name}", []).append(judges.second_opinion(wave, rate))
    names = ("dnsmos_original", "dnsmos", "distill_mos_original", "distill_mos")
    return {name: fmean(found[name]) if name in found else None for name in names}


def words_by_voice(codec: Codec, samples: Sequence[Sample], judges: Judges) -> dict[str, dict[str, int]]:
    """Of every voice how many ``recordings`` and ``words`` there are, and how many of these are heard otherwise in the
    recordings (``errors_original``) and after the round trip (``errors``). Recordings without a word are left out."""
    found: dict[str, dict[str, int]] = {}
    for sample in progress(samples, "words"):
        one = _encode(codec, sample, judges)
        if not one.text:
            continue
        before = word_errors(one.text, one.heard)
        after = word_errors(one.text, judges.transcribe(one.decoded, codec.spec.sample_rate))
        counts = {"recordings": 1, "words": before.words, "errors_original": before.errors, "errors": after.errors}
        known = found.setdefault(sample.voice, dict.fromkeys(counts, 0))
        found[sample.voice] = {name: known[name] + count for name, count in counts.items()}
    return found


def _streams(codec: Codec, encoded: list[_Encoded]) -> dict[str, list[dict[str, float]]]:
    """Usage, perplexity and bits per second of every codebook of every stream."""
    sizes, rate = codec.spec.codebook_sizes, codec.spec.frame_rate_hz
    counts = [torch.stack(c).sum(0) for c in zip(*(count_codes(e.codes, sizes) for e in encoded), strict=True)]
    return {
        name: [
            {**asdict(code_usage(counts[k])), "bits_per_second": rate * math.log2(sizes[k])}
            for k in range(part.start, part.stop)
        ]
        for name, part in codec.spec.streams.items()
    }


def _swap(
    codec: Codec, encoded: list[_Encoded], judges: Judges, rng: random.Random, max_pairs: int
) -> dict[str, Any] | None:
    """Codes of A with the timbre of B: is it understood, and nearer to voice B (mean of its originals) than to A?"""
    pairs = [(a, b) for a in encoded for b in encoded if a.sample.voice != b.sample.voice and a.text]
    if not codec.spec.timbre_dim or not pairs:
        return None
    rate = codec.spec.sample_rate
    voices: dict[str, Tensor] = {}
    for e in encoded:
        vector = judges.embed(e.sample.wave, rate)
        voices[e.sample.voice] = voices.get(e.sample.voice, torch.zeros_like(vector)) + vector
    wins, errors, to_target, to_source = [], [], [], []
    for a, b in progress(rng.sample(pairs, min(max_pairs, len(pairs))), "swap"):
        wave = _decode(codec, replace(a.codes, timbre=b.codes.timbre))
        found = judges.speaker(wave, rate)
        to_target.append(0.0 if found is None else speaker_similarity(found, voices[b.sample.voice]))
        to_source.append(0.0 if found is None else speaker_similarity(found, voices[a.sample.voice]))
        wins.append(to_target[-1] > to_source[-1])
        errors.append(word_errors(a.text, judges.transcribe(wave, rate)))
    return {
        "trials": len(wins),
        "nearer_to_target": fmean(wins),
        "similarity_to_target": fmean(to_target),
        "similarity_to_source": fmean(to_source),
        "wer": total_errors(errors).wer,
    }


# -- agreement of two voices ------------------------------------------------------------------------------------------
def _agreement(codec: Codec, encoded: list[_Encoded], rng: random.Random, max_pairs: int) -> dict[str, float] | None:
    """Share of equal codes of the first stream along the best alignment of one sentence in two voices.

    ``chance`` is the same for different sentences in two voices, which are aligned in the same way.
    """
    pairs = [(a, b) for i, a in enumerate(encoded) for b in encoded[:i] if a.sample.voice != b.sample.voice and a.text]
    same = [(a, b) for a, b in pairs if a.text == b.text]
    other = [(a, b) for a, b in pairs if a.text != b.text]
    if not same or not other:
        return None

    def mean(chosen: list[tuple[_Encoded, _Encoded]]) -> float:
        drawn = rng.sample(chosen, min(max_pairs, len(chosen)))
        return fmean(code_agreement(codec, a.codes, b.codes) for a, b in progress(drawn, "agreement"))

    return {"pairs": min(max_pairs, len(same)), "same_sentence": mean(same), "chance": mean(other)}


@torch.inference_mode()  # codes of `encode` may not be asked for gradients
def code_agreement(codec: Codec, first: Codes, second: Codes) -> float:
    """Share of steps of a dynamic-time-warping path on which both have the same code of the first stream.

    The path is found on the quantised values of that stream where the codec tells them (``phoneme_values``), otherwise
    on equality of codes.
    """
    ours, theirs = first.frames[0, 0], second.frames[0, 0]
    equal = ours[:, None] == theirs
    values: Callable[[Tensor], Tensor] | None = getattr(codec, "phoneme_values", None)
    if values is None:
        cost = (~equal).float()
    else:
        cost = torch.cdist(values(first.frames)[0].float(), values(second.frames)[0].float())
    _, path = dtw(C=cost.cpu().numpy())
    return float(equal[path[:, 0].copy(), path[:, 1].copy()].float().mean())


# -- melody -----------------------------------------------------------------------------------------------------------
def _melody(
    codec: Codec, encoded: list[_Encoded], judges: Judges, rng: random.Random
) -> dict[str, float | int | None] | None:
    """Log-F0 correlation with the original and mel distance (mean absolute difference, nats), as decoded and with
    the prosody codes in random order."""
    part = codec.spec.streams.get("prosody")
    if part is None or not encoded:
        return None
    rate = codec.spec.sample_rate
    mel = LogMel(rate, 1024, rate // 100, 80)
    kept: list[float] = []
    lost: list[float] = []
    distances: list[tuple[float, float]] = []
    for e in progress(encoded, "melody"):
        order = list(range(e.codes.frames.shape[2]))
        rng.shuffle(order)
        frames = e.codes.frames.clone()
        frames[:, part] = frames[:, part, order]
        shuffled = _decode(codec, replace(e.codes, frames=frames))
        original = judges.pitch(e.sample.wave, rate)
        for wave, scores in ((e.decoded, kept), (shuffled, lost)):
            scores += _correlation(original, judges.pitch(wave, rate))
        distances.append((_distance(mel, e.sample.wave, e.decoded), _distance(mel, e.sample.wave, shuffled)))
    return {
        "voiced_utterances": len(kept),
        "f0_correlation": fmean(kept) if kept else None,
        "f0_correlation_shuffled": fmean(lost) if lost else None,
        "mel_distance": fmean(d for d, _ in distances),
        "mel_distance_shuffled": fmean(d for _, d in distances),
    }


def _correlation(first: Tensor, second: Tensor) -> list[float]:
    """One figure, or none where too little is voiced in both."""
    try:
        return [log_f0_correlation(first, second)]
    except ValueError:
        return []


def _distance(mel: LogMel, first: Tensor, second: Tensor) -> float:
    length = min(len(first), len(second))
    pair = torch.stack([first[:length], second[:length]]).cpu()
    a, b = mel(pair)
    return float((a - b).abs().mean())

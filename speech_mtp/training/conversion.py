"""The stages that turn what is there into something else: ``encode``, ``units`` and ``package``.

The first two work in parts (:mod:`speech_mtp.training.parts`), so that a killed one goes on and the work in memory is
that of one part; a stage that is done is not done again for the same inputs.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from speech_mtp import hub, plugins
from speech_mtp.corpus.codes import batches_of, encode_batches, load_codes, save_codes
from speech_mtp.corpus.store import AudioStore
from speech_mtp.lm.backbone import Backbone, load_tokenizer
from speech_mtp.lm.direct import DirectLM
from speech_mtp.lm.fingerprint import digest_of
from speech_mtp.lm.speech_lm import SpeechLM
from speech_mtp.lm.units import UnitMaker
from speech_mtp.storage import CONFIG, new_folder
from speech_mtp.training.lm import join_units, write_units
from speech_mtp.training.parts import Parts
from speech_mtp.training.stages import EncodeRun, PackageRun, UnitsRun
from speech_mtp.training.text_encoder import read_texts
from speech_mtp.types import TextUnits

BATCHES_A_PART = 16


def encode(stage: EncodeRun) -> dict[str, Any]:
    """Codes, alignment and timbre (if the codec has one) of every utterance of the stores."""
    codec = hub.load_codec(stage.codec)
    aligns_itself = stage.aligner is None and codec.spec.num_phonemes
    aligner = codec if aligns_itself else hub.load_aligner(stage.aligner or hub.DEFAULT_MODEL)
    store = AudioStore(stage.data)
    if not stage.durations:
        store.rows = [replace(row, ends_ms=None) for row in store.rows]
    rows = [{key: value for key, value in asdict(row).items() if value is not None} for row in store.rows]
    codecs = [codec.spec.num_streams, digest_of(codec), digest_of(aligner)]
    parts = Parts(stage.out, [codecs, rows, stage.batch, stage.part])
    if (report := parts.report()) is not None:
        return report
    batches = batches_of(store, stage.batch, stage.part)
    shares = [batches[at : at + BATCHES_A_PART] for at in range(0, len(batches), BATCHES_A_PART)]
    device = str(stage.torch_device())

    def write(number: int, folder: Path) -> None:
        save_codes(encode_batches(codec, aligner, store, shares[number], device), folder)

    corpus = load_codes(*parts.make(len(shares), write, "encode"))
    if not len(corpus):
        raise ValueError("No utterance of the stores could be aligned with its phonemes; train the aligner for longer.")
    save_codes(corpus, stage.out)
    hours = corpus.frames.shape[1] / codec.spec.frame_rate_hz / 3600
    return parts.finish({"utterances": len(corpus), "hours": hours})


def units(stage: UnitsRun) -> dict[str, Any]:
    """Phonemes and states of every text; those that the G2P cannot read are left out."""
    folder = hub.resolve_backbone(stage.backbone["sha256"], stage.backbone, None)
    dtype = torch.bfloat16 if stage.dtype == "bf16" else torch.float32
    backbone = Backbone.from_folder(folder, dtype, hidden_layer=stage.hidden_layer)
    maker = UnitMaker(backbone.to(stage.torch_device()), plugins.build("text.g2p", stage.g2p))
    spoken = {row.text for row in load_codes(*stage.codes).rows} if stage.codes else set()
    texts = sorted(spoken | set(read_texts(stage.texts)), key=lambda text: (len(text), text))
    if not texts:
        raise ValueError("There is no text to make units of; name code corpora (codes) or text files (texts).")
    parts = Parts(stage.out, [backbone.fingerprint, stage.dtype, stage.hidden_layer, stage.g2p, stage.batch, texts])
    if (report := parts.report()) is not None:
        return report
    size = stage.batch * BATCHES_A_PART

    def write(number: int, folder: Path) -> None:
        share = texts[number * size : (number + 1) * size]
        write_units(folder, _made(maker, share, stage.batch))

    stored = join_units(stage.out, parts.make(-(-len(texts) // size), write, "units"))
    if not stored:
        raise ValueError(f"The G2P {stage.g2p} can read none of the texts; name another one (g2p).")
    return parts.finish({"texts": stored, "refused": len(texts) - stored})


def _made(maker: UnitMaker, texts: list[str], size: int) -> Iterator[tuple[list[str], TextUnits]]:
    """Batches of ``texts`` and their units; a text that the G2P cannot read costs itself, not the others."""
    for at in range(0, len(texts), size):
        batch = texts[at : at + size]
        try:
            yield batch, _units_of(maker, batch)
        except ValueError:
            for text in batch:
                try:
                    yield [text], _units_of(maker, [text])
                except ValueError as error:
                    print(f"left out: {error}", file=sys.stderr)


@torch.inference_mode()
def _units_of(maker: UnitMaker, texts: list[str]) -> TextUnits:
    return maker.make(texts).to("cpu")


def package(stage: PackageRun) -> dict[str, Any]:
    """Join a codec and a speech LM into a model, which takes the place of an older one in ``out`` all at once.

    Raises ValueError when ``out`` holds other things than a model.
    """
    if stage.out.exists() and not _is_model(stage.out):
        raise ValueError(f"{stage.out} exists and is not a model, so it is not replaced; give another folder.")
    lm, tokenizer = hub.load_any_lm(stage.lm), None
    stage.sampling.check_codebooks(len(lm.config.codebook_sizes))
    entries: dict[str, Any] = {"backbone": stage.backbone, "sampling": stage.sampling.__dict__}
    if isinstance(lm, SpeechLM):
        entries |= {"hidden_layer": stage.hidden_layer, "g2p": stage.g2p}
    elif stage.text_encoder:
        raise ValueError("The direct form reads its text by itself; leave text_encoder out.")
    else:
        tokenizer = load_tokenizer(hub.resolve_backbone(stage.backbone["sha256"], stage.backbone, None))
    entries["voices_heard"] = len({row.voice for row in load_codes(*stage.codes).rows})
    with new_folder(stage.out) as aside:
        _write_model(stage, aside, lm, entries, tokenizer)
    return {"out": str(stage.out), "voices": list(stage.voices)}


def _is_model(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    config = folder / CONFIG
    return not any(folder.iterdir()) or (
        config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("kind") == "model"
    )


def _write_model(
    stage: PackageRun, folder: Path, lm: SpeechLM | DirectLM, entries: dict[str, Any], tokenizer: Any
) -> None:
    hub.save_model(
        folder,
        codec=hub.load_codec(stage.codec),
        lm=lm,
        voices=_voices(stage, lm.config.voices),
        entries=entries,
        storage=stage.storage,
        text_encoder=hub.load_text_encoder(stage.text_encoder) if stage.text_encoder else None,
        tokenizer=tokenizer,
        card=stage.card.read_text(encoding="utf-8"),
    )
    for name, recording in stage.references.items():
        (folder / "voices").mkdir(exist_ok=True)
        shutil.copyfile(recording, folder / "voices" / f"{name}{recording.suffix}")


def _voices(stage: PackageRun, known: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """Each voice's mean timbre in the code corpus, or its one-hot among the voices ``known`` to the speech LM."""
    corpus = load_codes(*stage.codes).told_apart(known)
    voices = {}
    for name, voice in stage.voices.items():
        mine = [i for i, row in enumerate(corpus.rows) if row.voice == voice]
        if not mine:
            hint = plugins.nearest(voice, {row.voice for row in corpus.rows})
            raise ValueError(f"No utterance of the code corpus has the voice {voice!r}; {hint}.")
        voices[name] = corpus.timbre[mine].float().mean(0)
    return voices

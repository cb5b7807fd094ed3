"""The stages of a recipe as strict settings; :mod:`speech_mtp.training.runs` carries them out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from speech_mtp.codecs.coupled import CoupledConfig
from speech_mtp.codecs.decoupled import DecoupledConfig
from speech_mtp.corpus import answers
from speech_mtp.corpus.continuations import ContinuationConfig
from speech_mtp.corpus.direct import VoiceShare
from speech_mtp.corpus.sentences import SentenceRules
from speech_mtp.corpus.texts import TextSource
from speech_mtp.lm.causal_lm import CausalLMConfig
from speech_mtp.training.codec_data import CodecTaskConfig
from speech_mtp.training.inventory import InventoryTaskConfig
from speech_mtp.training.lm import LMTaskConfig
from speech_mtp.training.loop import LoopConfig
from speech_mtp.training.speech_mtp import SpeechMTPTaskConfig
from speech_mtp.training.text_encoder import TextEncoderTaskConfig
from speech_mtp.training.text_mtp import HeadSettings, TextMTPTaskConfig
from speech_mtp.training.trunk import TrunkTaskConfig
from speech_mtp.types import Sampling


class Stage(BaseModel):
    """Common settings. ``device`` auto takes CUDA if it is there."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    out: Path
    device: str = "auto"

    def torch_device(self) -> torch.device:
        if self.device != "auto":
            return torch.device(self.device)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class StoreRun(Stage):
    """Lay the corpus in ``corpus`` (manifest and audio) out as an audio store."""

    kind: Literal["store"]
    corpus: Path


class SpeakRun(Stage):
    """Let teachers speak the sentences of the files ``texts`` (one a line, of ``characters``) straight into stores in
    ``out``, one a worker (0: as many as cores), until ``utterances`` are there or ``max_time_s`` has passed.

    A share ``dev`` of them are sentences of ``dev_texts``, which are the dev split. Utterances are numbered, each the
    same wherever it is made of the same files; with ``first`` they begin with that number, so that much speech can be
    made, encoded and let go part by part.
    """

    kind: Literal["speak"]
    texts: list[Path]
    dev_texts: list[Path]
    voices: list[VoiceShare] = Field(min_length=1)
    utterances: int
    first: int = Field(default=0, ge=0)
    dev: float = 0.02
    characters: tuple[int, int] = (20, 80)
    workers: int = 0
    max_time_s: float | None = None


class SentencesRun(Stage):
    """Gather the distinct speakable sentences of ``texts``, by names of your own, into ``out/sentences.txt``, without
    those of the files ``left_out``; what each source gave, into ``out/report.json``."""

    kind: Literal["sentences"]
    texts: dict[str, TextSource] = Field(min_length=1)
    left_out: list[Path] = []
    rules: SentenceRules = SentenceRules()


class FeaturesRun(Stage):
    """Let ``recogniser`` (a plug-in of ``frontends``) hear the stores ``data``; what its encoder makes of every
    utterance, in so many principal ``components`` of ``fit_on`` utterances, goes to ``out``."""

    kind: Literal["features"]
    data: list[Path]
    recogniser: str | dict[str, Any] = "faster_whisper"
    components: int = Field(default=64, ge=1)
    fit_on: int = Field(default=512, ge=1)
    batch: int = Field(default=8, ge=1)


class CodecRun(Stage):
    """Train a codec on the audio stores ``data``; the result is an inference checkpoint in ``out/export``.

    A folder of stores stands for all of them. ``start`` names a codec (as ``eval codec`` takes it) whose weights the
    training starts from; ``model`` must fit it, unless ``start_partly`` is set: then weights of other shapes, and those
    that ``start`` lacks, begin at random. ``features``, the folder of the stage of that name, is what
    ``task.weights.distil`` learns from, and ``aligned``, a folder of the stage ``encode`` on the same audio, tells
    ``task.weights.frame`` which phoneme a frame speaks.
    """

    kind: Literal["codec"]
    data: list[Path]
    features: Path | None = None
    aligned: Path | None = None
    start: str | None = None
    start_partly: bool = False
    model: DecoupledConfig = DecoupledConfig()
    task: CodecTaskConfig = CodecTaskConfig()
    loop: LoopConfig


class CoupledCodecRun(CodecRun):
    """The same for a codec without roles, or one whose first book alone has one."""

    kind: Literal["coupled_codec"]  # type: ignore[assignment]
    model: CoupledConfig = CoupledConfig()  # type: ignore[assignment]


class WaveformCodecRun(CodecRun):
    """The same for a codec of waveforms: ``model`` names it (encodec, mimi) and gives settings of its configuration in
    ``transformers``."""

    kind: Literal["waveform_codec"]  # type: ignore[assignment]
    model: dict[str, Any]  # type: ignore[assignment]


class EncodeRun(Stage):
    """Encode the stores ``data`` with ``codec`` and align them with their phonemes: a code corpus in ``out``. A
    folder of stores stands for all of them.

    ``codec`` is a packaged name, a folder, a hub id, or ``{name: encodec, source: folder or id, ...}`` with settings.
    Where the teacher told how long its phonemes last, that aligns them, unless ``durations`` is false. ``aligner`` is a
    codec whose phoneme head aligns the others: by default ``codec`` itself if it has one, else the packaged one.
    ``part`` (i, n) does the i-th of n shares of the work, so that several processes fill several folders.
    """

    kind: Literal["encode"]
    data: list[Path]
    codec: str | dict[str, Any]
    aligner: str | None = None
    durations: bool = True
    batch: int = 16
    part: tuple[int, int] = (0, 1)


class UnitsRun(Stage):
    """Store phonemes and backbone states of every text in the code corpora ``codes`` and the text files ``texts`` (one
    sentence a line). ``backbone`` names a source (see hub); ``dtype`` is that of its weights."""

    kind: Literal["units"]
    codes: list[Path] = []
    texts: list[Path] = []
    backbone: dict[str, Any]
    dtype: Literal["fp32", "bf16"] = "bf16"
    hidden_layer: int = -1
    g2p: str = "hibari"
    batch: int = 24


class LMRun(Stage):
    """Train a speech LM on ``codes``; ``start`` is the folder of one whose weights it starts from. With
    ``start_partly`` it takes those that have the same shape, so that a talker of other codes need not begin anew.

    ``objective`` names a plug-in of ``objectives`` (default: the next group, of the direct form with its text).
    ``model.name`` is its form: ``talker`` (the default), fed with the ``units`` that the stage of that name stored, or
    ``direct``, the ``backbone`` (a source, see hub) itself. The latter is trained as a whole, in fp32: weights,
    gradients and the two moments of AdamW take 16 bytes a parameter (2.2 GB for 135M) besides the activations, and
    a checkpoint 12.
    """

    kind: Literal["lm"]
    codes: list[Path]
    units: Path | None = None
    backbone: dict[str, Any] | None = None
    start: Path | None = None
    start_partly: bool = False
    model: dict[str, Any] = {}
    objective: dict[str, Any] | str | None = None
    task: LMTaskConfig = LMTaskConfig()
    loop: LoopConfig


class InventoryRun(Stage):
    """Train what finds an utterance of ``voice`` (the first one by default) in the code corpora ``codes`` by its text,
    or by a part of it, from the states in ``units``."""

    kind: Literal["inventory"]
    codes: list[Path]
    units: Path
    voice: str | None = None
    model: dict[str, int] = {}
    task: InventoryTaskConfig = InventoryTaskConfig()
    loop: LoopConfig


class TextEncoderRun(Stage):
    """Train a text encoder on the sentences of ``texts`` (one a line, normalised), labelled by ``g2p``; sentences of
    ``dev_texts`` are held out. ``backbone`` names a source (see hub). With ``units``, a folder of that stage, texts are
    not read anew, which makes a step twenty times faster; those that are not stored there are left out."""

    kind: Literal["text_encoder"]
    texts: list[Path]
    dev_texts: list[Path]
    units: Path | None = None
    backbone: dict[str, Any]
    hidden_layer: int = -1
    g2p: str = "hibari"
    model: dict[str, Any] = {}
    task: TextEncoderTaskConfig = TextEncoderTaskConfig()
    loop: LoopConfig


class PackageRun(Stage):
    """Join ``codec`` (named as for encoding) and the speech LM of ``lm`` into the model folder ``out``; ``voices`` maps
    names to corpus voices. The weights of either are copied, those of a published codec too.

    ``references`` maps voices to recordings (FLAC or WAV) that ship with the model, to compare its voice with. A talker
    comes with its ``backbone`` by reference, the ``hidden_layer`` it reads and its ``g2p``; with ``g2p`` own, the
    encoder in the folder ``text_encoder`` reads the text. The direct form holds the backbone's weights itself: of
    ``backbone`` the tokenizer is added, and it has neither of the other two.
    """

    kind: Literal["package"]
    codec: str | dict[str, Any]
    lm: Path
    codes: list[Path]
    voices: dict[str, str]
    references: dict[str, Path] = {}
    backbone: dict[str, Any]
    hidden_layer: int = -1
    g2p: str = "hibari"
    text_encoder: Path | None = None
    sampling: Sampling = Sampling()
    storage: Literal["int8", "bf16", "fp32"] = "int8"
    card: Path


class AnswersRun(Stage):
    """Let ``backbone`` answer the texts under ``field`` of the JSON-lines files ``prompts`` and prompts it invents.

    The result is ``out/answers.jsonl``. ``dtype`` is that of its weights (``q4`` and ``int8``: in blocks of 4 and 8
    bits, on a CPU; many times as fast). Files of ``selfwritten`` texts (which the
    corpus recipe's ``write`` makes, of at most ``selfwritten_tokens``) become ``out/selfwritten.jsonl``.
    """

    kind: Literal["answers"]
    prompts: list[Path] = []
    field: str = "prompt"
    backbone: dict[str, Any]
    dtype: Literal["fp32", "bf16", "q4", "int8"] = "fp32"
    selfwritten: list[Path] = []
    selfwritten_tokens: int = 80
    invent: answers.InventConfig = answers.InventConfig()
    answer: answers.AnswerConfig = answers.AnswerConfig()


class TextMTPRun(Stage):
    """Train ``heads`` on ``answers``, files that the stage of that name wrote with the same ``backbone``.

    The result is a folder per head in ``out/export``. ``start`` is such an export, whose heads of the same names the
    training starts from. ``dtype`` is that of the backbone's weights (bf16 needs ``task.amp``; ``q4`` and ``int8``
    give the states that a CPU decodes with, faster than fp32).
    """

    kind: Literal["text_mtp"]
    answers: list[Path]
    backbone: dict[str, Any]
    dtype: Literal["fp32", "bf16", "q4", "int8"] = "fp32"
    heads: dict[str, HeadSettings] = Field(min_length=1)
    start: Path | None = None
    task: TextMTPTaskConfig = TextMTPTaskConfig()
    loop: LoopConfig


class SpeechMTPRun(Stage):
    """Train draft ``heads`` on the speech LM ``lm`` (a model that speaks, or the export of the stage ``lm``), frozen,
    with the code corpora ``codes``. The result is a folder per head in ``out/export``; ``start`` as for text heads.

    A talker reads the ``units`` that the stage of that name stored, and utterances without them are left out; the
    direct form reads tokens of its ``backbone``.
    """

    kind: Literal["speech_mtp"]
    lm: str
    codes: list[Path]
    units: Path | None = None
    backbone: dict[str, Any] | None = None
    heads: dict[str, HeadSettings] = Field(min_length=1)
    start: Path | None = None
    task: SpeechMTPTaskConfig = SpeechMTPTaskConfig()
    loop: LoopConfig


class DocumentsRun(Stage):
    """Write the documents of ``sources`` (plug-ins of ``corpus.documents`` by a name of your own) as tokens into
    ``out``. ``tokenizer`` is ``bytes``, or the folder or hub id of a language model; a stable ``dev_fraction`` of the
    documents is held out."""

    kind: Literal["documents"]
    sources: dict[str, dict[str, Any]] = Field(min_length=1)
    tokenizer: str = "bytes"
    dev_fraction: float = Field(default=0.02, gt=0, lt=1)


class ContinuationsRun(Stage):
    """Let the language model ``model`` (a folder or hub id) go on with passages of ``documents``, the folder of the
    stage of that name, into ``out/continuations.jsonl``: documents of the source ``selfwritten``."""

    kind: Literal["continuations"]
    model: str
    documents: Path
    write: ContinuationConfig = ContinuationConfig()


class TrunkRun(Stage):
    """Train a trunk of text on ``documents``, the folder of the stage of that name. ``model`` are the sizes of one that
    begins from nothing, or the folder or hub id of a Llama to go on with (``packaged``: the packaged one); the
    documents' tokenizer must then be its own.

    The result is a plain Hugging Face folder, ``out/export``. ``objective`` names a plug-in of ``objectives``.
    """

    kind: Literal["trunk"]
    documents: Path
    model: CausalLMConfig | str = CausalLMConfig()
    objective: dict[str, Any] | str = "ntp"
    task: TrunkTaskConfig = TrunkTaskConfig()
    loop: LoopConfig


class PackageHeadRun(Stage):
    """Store the trained head in the folder ``head`` with fewer bits and a ``card``: the folder ``out``."""

    kind: Literal["package_head"]
    head: Path
    storage: Literal["int8", "bf16", "fp32"] = "int8"
    card: Path


class TrainConfig(BaseModel):
    """A recipe file holds one stage, told apart by ``kind``."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    run: Annotated[
        StoreRun
        | SpeakRun
        | SentencesRun
        | FeaturesRun
        | CodecRun
        | CoupledCodecRun
        | WaveformCodecRun
        | EncodeRun
        | UnitsRun
        | LMRun
        | InventoryRun
        | TextEncoderRun
        | PackageRun
        | AnswersRun
        | TextMTPRun
        | SpeechMTPRun
        | DocumentsRun
        | ContinuationsRun
        | TrunkRun
        | PackageHeadRun,
        Field(discriminator="kind"),
    ]

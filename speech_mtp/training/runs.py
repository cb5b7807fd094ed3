"""The stages of a recipe, one function each; their settings are in :mod:`speech_mtp.training.stages`.

``store`` lays a corpus out for training, ``speak`` makes such a store without a corpus, ``features`` lets a recogniser
hear it, ``codec``, ``coupled_codec`` and ``waveform_codec`` train a codec on it, ``encode`` turns it into aligned
codes, ``units`` stores the backbone's states of every text, ``lm`` trains a talker (or the backbone itself),
``speech_mtp`` heads that draft its groups, ``inventory`` what finds an utterance by its text, ``text_encoder`` our own
reader of spelling, and ``package`` joins them into a model that speaks. ``answers`` lets a language model answer
prompts and ``text_mtp`` trains heads on that; ``documents`` writes texts as tokens, ``trunk`` trains a language model
on them, and ``continuations`` lets one go on with them. Every stage goes on after a kill: training from its last
checkpoint, the others with what is missing; ``package`` and ``package_head`` take seconds and begin again, and a model
that is there stays whole until the new one takes its place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch

from speech_mtp import hub, plugins
from speech_mtp.codecs._rowwise import TrainableCodec
from speech_mtp.codecs.coupled import Coupled
from speech_mtp.codecs.decoupled import Decoupled, DecoupledConfig
from speech_mtp.corpus import answers
from speech_mtp.corpus.codes import CODEC, CodeCorpus, load_codes
from speech_mtp.corpus.direct import Speech, read_sentences, speak
from speech_mtp.corpus.features import Features
from speech_mtp.corpus.frame_phonemes import FramePhonemes
from speech_mtp.corpus.store import AudioStore, store_manifest
from speech_mtp.corpus.texts import SENTENCES, write_sentences
from speech_mtp.dtypes import DTYPES
from speech_mtp.files import check_inputs_of, replacing
from speech_mtp.lm.backbone import Backbone, load_causal_lm, load_tokenizer
from speech_mtp.lm.direct import DirectConfig, DirectLM
from speech_mtp.lm.group_lm import GroupLMConfig
from speech_mtp.lm.inventory import InventoryConfig
from speech_mtp.lm.speech_lm import SpeechLM, SpeechLMConfig
from speech_mtp.lm.text_encoder import TextEncoder, TextEncoderConfig
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.text.phonemes import SYMBOLS
from speech_mtp.threads import processors
from speech_mtp.training import conversion, speech_mtp, trunk_stages
from speech_mtp.training.answer_data import split
from speech_mtp.training.base import Task
from speech_mtp.training.codec import CodecTask
from speech_mtp.training.codec_data import CodecTaskConfig
from speech_mtp.training.coupled_codec import CoupledTask
from speech_mtp.training.distributed import Workers
from speech_mtp.training.inputs import check_inputs
from speech_mtp.training.inventory import InventoryTask, items_of
from speech_mtp.training.listening import listen
from speech_mtp.training.lm import LMTask, TextStore, TokenStore, UnitStore
from speech_mtp.training.loop import train
from speech_mtp.training.stages import (
    AnswersRun,
    CodecRun,
    CoupledCodecRun,
    FeaturesRun,
    InventoryRun,
    LMRun,
    PackageHeadRun,
    SentencesRun,
    SpeakRun,
    SpeechMTPRun,
    StoreRun,
    TextEncoderRun,
    TextMTPRun,
    TrainConfig,
    TrunkRun,
    WaveformCodecRun,
)
from speech_mtp.training.text_encoder import StoredStates, TextEncoderTask, read_texts
from speech_mtp.training.text_mtp import TextMTPTask, build_head
from speech_mtp.training.tracks import Track
from speech_mtp.training.waveform_codec import WaveformTask


def run(config: TrainConfig) -> dict[str, Any]:
    """Carry out one stage; returns what it has to report. Raises FileNotFoundError where an input is missing."""
    check_inputs(config.run)
    stages: dict[str, Callable[[Any], dict[str, Any]]] = {
        "store": _store,
        "speak": _speak,
        "sentences": _sentences,
        "features": _features,
        "codec": _codec,
        "coupled_codec": _codec,
        "waveform_codec": _waveform_codec,
        "encode": conversion.encode,
        "units": conversion.units,
        "lm": _lm,
        "inventory": _inventory,
        "text_encoder": _text_encoder,
        "package": conversion.package,
        "answers": _answers,
        "text_mtp": _text_mtp,
        "speech_mtp": _speech_mtp,
        "documents": trunk_stages.documents,
        "continuations": trunk_stages.continuations,
        "trunk": _trunk,
        "package_head": _package_head,
    }
    return stages[config.run.kind](config.run)


def _store(stage: StoreRun) -> dict[str, Any]:
    return {"utterances": store_manifest(stage.corpus, stage.out)}


def _speak(stage: SpeakRun) -> dict[str, Any]:
    speech = Speech(
        read_sentences(stage.texts, stage.characters),
        read_sentences(stage.dev_texts, stage.characters),
        stage.voices,
        stage.utterances,
        stage.dev,
        first=stage.first,
    )
    return dict(speak(speech, stage.out, stage.workers or processors(), stage.max_time_s))


def _sentences(stage: SentencesRun) -> dict[str, Any]:
    report = write_sentences(stage.texts, stage.rules, stage.left_out, stage.out)
    with replacing(stage.out / "report.json") as aside:
        aside.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    counts = {name: part["sentences"] for name, part in report.items()}
    return {"out": str(stage.out / SENTENCES), "sentences": sum(counts.values()), "of": counts}


def _features(stage: FeaturesRun) -> dict[str, Any]:
    return listen(stage, plugins.build("frontends", stage.recogniser))


def _codec(stage: CodecRun | CoupledCodecRun) -> dict[str, Any]:
    workers = Workers()
    return _finish(codec_task(stage, workers), stage, workers)


def codec_task(stage: CodecRun | CoupledCodecRun, workers: Workers | None = None) -> CodecTask | CoupledTask:
    """What ``stage`` trains, before its first step."""
    torch.manual_seed(stage.loop.seed)
    sizes = replace(stage.model, num_symbols=len(SYMBOLS))
    codec = Decoupled(sizes) if isinstance(sizes, DecoupledConfig) else Coupled(sizes)
    _start(codec, stage, hub.load_codec)
    given = _codec_inputs(stage, workers)
    return CodecTask(codec, *given) if isinstance(codec, Decoupled) else CoupledTask(codec, *given)


def _waveform_codec(stage: WaveformCodecRun) -> dict[str, Any]:
    workers = Workers()
    return _finish(waveform_task(stage, workers), stage, workers)


def waveform_task(stage: WaveformCodecRun, workers: Workers | None = None) -> WaveformTask:
    """What ``stage`` trains, before its first step."""
    torch.manual_seed(stage.loop.seed)
    sizes = dict(stage.model)
    kind: Any = plugins.find("codecs", sizes.pop("name", ""))
    if not issubclass(kind, TrainableCodec):
        raise ValueError(f"{kind.__name__} is no codec of waveforms that is trained here; name encodec or mimi.")
    codec = kind.from_sizes(sizes)
    _start(codec, stage, hub.load_codec)
    return WaveformTask(codec, *_codec_inputs(stage, workers))


def _codec_inputs(
    stage: CodecRun, workers: Workers | None
) -> tuple[AudioStore, CodecTaskConfig, torch.device, Workers | None, dict[str, Track]]:
    tracks: dict[str, Track] = {}
    if stage.features is not None:
        tracks["features"] = Features(stage.features)
    if stage.aligned is not None:
        tracks["aligned"] = FramePhonemes(stage.aligned)
    return AudioStore(stage.data), stage.task, stage.torch_device(), workers, tracks


def _lm(stage: LMRun) -> dict[str, Any]:
    workers = Workers()
    torch.manual_seed(stage.loop.seed)
    form, forms = stage.model.get("name", hub.TALKER), (hub.TALKER, hub.DIRECT)
    if form not in forms:
        raise ValueError(f"There is no form {form!r} of a speech LM (model.name); {plugins.nearest(form, forms)}.")
    lm: SpeechLM | DirectLM
    units: TextStore
    corpus = load_codes(*stage.codes)
    lm, units = _direct_form(stage, corpus) if form == hub.DIRECT else _talker(stage, corpus)
    _start(lm, stage, hub.load_direct_lm if form == hub.DIRECT else hub.load_speech_lm)
    told_apart = corpus.told_apart(lm.config.voices)
    objective = None if stage.objective is None else plugins.build("objectives", stage.objective)
    task = LMTask(lm, told_apart, units, stage.task, stage.torch_device(), workers, objective, stage.loop.steps)
    return _finish(task, stage, workers)


def _talker(stage: LMRun, corpus: CodeCorpus) -> tuple[SpeechLM, UnitStore]:
    if stage.units is None or stage.backbone is not None:
        raise ValueError("A talker is trained on stored states: give the folder `units`, and no `backbone`.")
    units = UnitStore(stage.units)
    fixed = {"num_phonemes": len(SYMBOLS), "backbone_dim": units.dim}
    return SpeechLM(SpeechLMConfig(**_lm_settings(stage, corpus, SpeechLMConfig, fixed))), units


def _direct_form(stage: LMRun, corpus: CodeCorpus) -> tuple[DirectLM, TokenStore]:
    if stage.backbone is None or stage.units is not None:
        raise ValueError("The direct form is the language model itself: give its source `backbone`, and no `units`.")
    folder = hub.resolve_backbone(stage.backbone["sha256"], stage.backbone, None)
    backbone, tokenizer = load_causal_lm(folder, torch.float32)
    lm = DirectLM(DirectConfig(**_lm_settings(stage, corpus, DirectConfig, {})), backbone)
    return lm, TokenStore(lm.text_maker(tokenizer))


def _lm_settings(
    stage: LMRun, corpus: CodeCorpus, schema: type[GroupLMConfig], fixed: dict[str, Any]
) -> dict[str, Any]:
    """The settings ``model`` of a recipe, with those that the corpus and ``fixed`` decide."""
    codec = corpus.codec
    if codec is None:
        raise FileNotFoundError(f"{stage.codes[0]} holds no {CODEC}; run the encode stage of the recipe first.")
    voices = () if codec.timbre_dim else tuple(sorted({row.voice for row in corpus.rows}))
    sizes = {"codebook_sizes": codec.codebook_sizes, "frame_rate_hz": codec.frame_rate_hz}
    fixed = {**fixed, **sizes, "timbre_dim": codec.timbre_dim, "voices": voices}
    given = {key: value for key, value in stage.model.items() if key != "name"}
    free = [key for key in schema.__dataclass_fields__ if key not in fixed]
    wrong = [key for key in given if key not in free]
    if wrong:
        hint = plugins.nearest(wrong[0], free)
        raise ValueError(f"A speech LM of this form has no setting model.{wrong[0]}; {hint}.")
    return {**fixed, **given}


def _inventory(stage: InventoryRun) -> dict[str, Any]:
    workers = Workers()
    torch.manual_seed(stage.loop.seed)
    free = set(InventoryConfig.__dataclass_fields__) - {"dim"}
    wrong = [key for key in stage.model if key not in free]
    if wrong:
        raise ValueError(f"An inventory has no setting model.{wrong[0]}; {plugins.nearest(wrong[0], free)}.")
    units = UnitStore(stage.units)
    items = items_of(load_codes(*stage.codes), units, stage.voice)
    config = InventoryConfig(units.dim, **stage.model)
    digest = hashlib.sha256(json.dumps(items).encode()).hexdigest()[:16]
    check_inputs_of(
        stage.out / "inventory.json", {"utterances": digest, **asdict(config)}, (stage.out / "last").exists()
    )
    return _finish(InventoryTask(config, items, units, stage.task, stage.torch_device(), workers), stage, workers)


def _text_encoder(stage: TextEncoderRun) -> dict[str, Any]:
    workers = Workers()
    torch.manual_seed(stage.loop.seed)
    free = set(TextEncoderConfig.__dataclass_fields__) - {"backbone_dim", "hidden_layer"}
    wrong = [key for key in stage.model if key not in free]
    if wrong:
        hint = plugins.nearest(wrong[0], free)
        raise ValueError(f"The text encoder has no setting {wrong[0]!r}; {hint}.")
    folder = hub.resolve_backbone(stage.backbone["sha256"], stage.backbone, None)
    backbone = Backbone.from_folder(folder, torch.bfloat16, hidden_layer=stage.hidden_layer)
    sizes = {"backbone_dim": backbone.dim, "hidden_layer": stage.hidden_layer}
    encoder = TextEncoder(TextEncoderConfig(**{**stage.model, **sizes}))
    g2p = plugins.build("text.g2p", stage.g2p)
    texts, held_out = read_texts(stage.texts), read_texts(stage.dev_texts)
    backbone = backbone.to(stage.torch_device())
    states = StoredStates(backbone, UnitStore(stage.units)) if stage.units else None
    if states is not None:
        texts, held_out = states.known(texts), states.known(held_out)
    task = TextEncoderTask(encoder, backbone, g2p, texts, held_out, stage.task, workers, states)
    return _finish(task, stage, workers)


def _text_lm(stage: AnswersRun | TextMTPRun) -> TextLM:
    folder = hub.resolve_backbone(stage.backbone["sha256"], stage.backbone, None)
    dtype = getattr(torch, DTYPES[stage.dtype].dtype)
    return TextLM.from_folder(folder, dtype, stage.backbone["sha256"]).to(stage.torch_device())


def _into_blocks(lm: TextLM, stage: AnswersRun | TextMTPRun, keep_layers: bool) -> None:
    """Put the weights of ``lm`` into blocks, if the recipe's ``dtype`` says so."""
    kind = DTYPES[stage.dtype].blocks
    if kind is not None:
        folder = hub.resolve_backbone(stage.backbone["sha256"], stage.backbone, None)
        hub.into_blocks(lm, folder, kind, stage.backbone, keep_layers)


def _answers(stage: AnswersRun) -> dict[str, Any]:
    lm = _text_lm(stage)
    _into_blocks(lm, stage, keep_layers=True)
    if lm.device.type == "cuda":  # elsewhere prompts are invented by the model's own layers
        lm.prepare()
    prompts = [text for path in stage.prompts for text in answers.read_prompts(path, stage.field)]
    if stage.invent.prompts:
        prompts += answers.invent_prompts(lm, stage.out / answers.PROMPTS, stage.invent)
    if not prompts:
        raise ValueError(
            "There is nothing to answer; name files of prompts (prompts) or let some be invented (invent)."
        )
    path = stage.out / answers.ANSWERS
    taken, beside = 0, stage.out / answers.SELFWRITTEN
    if stage.selfwritten:
        taken = answers.write_selfwritten(lm.tokenizer, stage.selfwritten, beside, stage.selfwritten_tokens)
    new = answers.write_answers(lm.prepare(), prompts, path, stage.answer)
    return {"out": str(path), "prompts": len(prompts), "new": new, "selfwritten": taken}


def _text_mtp(stage: TextMTPRun) -> dict[str, Any]:
    if stage.dtype == "bf16" and not stage.task.amp:
        raise ValueError("A backbone in bf16 needs mixed precision; set task.amp to true, or dtype to fp32.")
    if DTYPES[stage.dtype].blocks is not None and stage.task.lora:
        raise ValueError(f"Adapters are trained with the backbone's own layers, which {stage.dtype} does without.")
    workers, lm = Workers(), _text_lm(stage)
    said = answers.read_answers(stage.answers)
    told, _ = split(said, stage.task.data.dev_every)
    heads = {name: build_head(settings.head, lm, told, stage.loop.seed) for name, settings in stage.heads.items()}
    if stage.start is not None:
        for name, head in heads.items():
            _start_from(head, hub.load_head(stage.start / name, lm), str(stage.start / name))
    _into_blocks(lm, stage, keep_layers=False)
    lm.output.replace(lm.model.get_output_embeddings())  # in floats, whatever the layers are in: gradients pass it
    task = TextMTPTask(lm, heads, stage.heads, said, stage.task, workers)
    return _finish(task, stage, workers)


def _speech_mtp(stage: SpeechMTPRun) -> dict[str, Any]:
    workers = Workers()
    lm = hub.load_any_lm(stage.lm).to(stage.torch_device())
    heads = {name: speech_mtp.build_head(given.head, lm, stage.loop.seed) for name, given in stage.heads.items()}
    if stage.start is not None:
        for name, head in heads.items():
            _start_from(head, hub.load_head(stage.start / name, lm), str(stage.start / name))
    corpus, units = load_codes(*stage.codes).told_apart(lm.config.voices), _units_for(lm, stage)
    task = speech_mtp.SpeechMTPTask(lm, heads, stage.heads, corpus, units, stage.task, workers)
    return _finish(task, stage, workers)


def _units_for(lm: SpeechLM | DirectLM, stage: SpeechMTPRun) -> TextStore:
    talks = isinstance(lm, SpeechLM)
    if (stage.units is not None) != talks or (stage.backbone is not None) == talks:
        raise ValueError(
            "Heads of a talker are trained on stored states (units, and no backbone), those of the direct form on "
            "tokens (backbone, and no units); change one of the two."
        )
    if stage.units is not None:
        return UnitStore(stage.units)
    assert isinstance(lm, DirectLM)
    assert stage.backbone is not None
    folder = hub.resolve_backbone(stage.backbone["sha256"], stage.backbone, None)
    return TokenStore(lm.text_maker(load_tokenizer(folder)))


def _trunk(stage: TrunkRun) -> dict[str, Any]:
    workers = Workers()
    return _finish(trunk_stages.trunk_task(stage, workers), stage, workers)


def _package_head(stage: PackageHeadRun) -> dict[str, Any]:
    hub.repack_head(stage.head, stage.out, stage.storage, stage.card.read_text(encoding="utf-8"))
    return {"out": str(stage.out), "bytes": sum(path.stat().st_size for path in stage.out.iterdir())}


def _start(module: torch.nn.Module, stage: CodecRun | LMRun, load: Callable[[Any], torch.nn.Module]) -> None:
    """Begin with the weights that ``stage`` names, if it names any."""
    if stage.start is not None:
        _start_from(module, load(stage.start), str(stage.start), stage.start_partly)
    elif stage.start_partly:
        raise ValueError("start_partly needs start: name what the training starts from, or leave start_partly out.")


def _start_from(module: torch.nn.Module, trained: torch.nn.Module, name: str, partly: bool = False) -> None:
    """Copy the weights of ``trained``, or ``partly`` those that ``module`` has in the same shape. Raises ``ValueError``
    where its shapes are others, or all are."""
    state = trained.state_dict()
    if partly:
        own = module.state_dict()
        fitting = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
        if not fitting:
            raise ValueError(
                f"{name} cannot be started from: none of its weights has the shape of one that is trained."
            )
        state = own | fitting
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{name} cannot be started from: {str(error).splitlines()[-1].strip()} Give the settings `model` that "
            "it was trained with, or train without `start`."
        ) from error


def _finish(
    task: Task,
    stage: CodecRun | InventoryRun | LMRun | TextEncoderRun | TextMTPRun | SpeechMTPRun | TrunkRun,
    workers: Workers,
) -> dict[str, Any]:
    scores = train(task, stage.loop, stage.out, workers)
    if workers.main:
        task.export(stage.out / "export")
    return {"out": str(stage.out), **scores}

"""The stages ``encode``, ``units`` and ``package``: a killed one goes on to the result of an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from speech_mtp import hub
from speech_mtp.codecs.decoupled import Decoupled, DecoupledConfig
from speech_mtp.corpus.codes import CodeCorpus, CodeRow, load_codes, save_codes
from speech_mtp.corpus.store import AudioStoreWriter
from speech_mtp.hub import models
from speech_mtp.lm.backbone import fingerprint_of
from speech_mtp.lm.units import UnitMaker
from speech_mtp.text.phonemes import SYMBOLS, parse
from speech_mtp.training import conversion
from speech_mtp.training.lm import UnitStore
from speech_mtp.training.parts import Parts
from speech_mtp.training.runs import run
from speech_mtp.training.stages import PackageRun, TrainConfig
from speech_mtp.types import Codes, TextUnits
from tests.text_tiny import tiny_folder
from tests.tiny import tiny_lm

ROOT = Path(__file__).parents[2]
TEXTS = [f"{first} {second} jumps." for first in ("the", "a", "our") for second in ("fox", "dog", "zebra", "hen")]
LETTERS = "tests.lm.tiny:Letters"


class Killed(Exception):
    """What a kill looks like from inside."""


def run_stage(folder: Path, kind: str, **changes: Any) -> dict[str, Any]:
    """A stage on what :func:`prepare` wrote, in parts of one batch."""
    conversion.BATCHES_A_PART = 1
    hub.resolve_backbone = lambda *_: folder / "backbone"
    source = {"sha256": fingerprint_of(folder / "backbone")}
    stages: dict[str, dict[str, Any]] = {
        "encode": {"data": [folder / "store"], "codec": str(folder / "codec"), "batch": 2},
        "units": {"texts": [folder / "texts.txt"], "g2p": LETTERS, "backbone": source, "hidden_layer": 2, "batch": 3},
        "package": {
            "codec": str(folder / "codec"),
            "lm": folder / "lm",
            "codes": [folder / "codes"],
            "voices": {"first": "low"},
            "references": {"first": folder / "first.flac"},
            "backbone": source,
            "g2p": LETTERS,
            "card": folder / "card.md",
        },
    }
    return run(TrainConfig.model_validate({"run": {"kind": kind, "device": "cpu", **stages[kind], **changes}}))


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes what :func:`run_stage` sets."""
    monkeypatch.setattr(conversion, "BATCHES_A_PART", conversion.BATCHES_A_PART)
    monkeypatch.setattr(hub, "resolve_backbone", hub.resolve_backbone)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store of seven utterances, texts, a backbone and a codec."""
    writer = AudioStoreWriter(tmp_path / "store")
    for i in range(7):
        samples = 24_000 + 1_200 * i
        wave = 0.3 * np.sin(np.arange(samples) * (0.02 + 0.01 * i)).astype(np.float32)
        writer.append(f"{i}", "low", TEXTS[i], "həlˈO.", "train", wave, np.full(-(-samples // 240), 120.0))
    writer.close()
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    tiny_folder(tmp_path / "backbone")
    save_codec(tmp_path / "codec", seed=0)
    return tmp_path


def save_codec(folder: Path, seed: int) -> None:
    config = DecoupledConfig(**{**Decoupled.tiny().config.__dict__, "num_symbols": len(SYMBOLS)})
    torch.manual_seed(seed)
    hub.save_codec(Decoupled(config), folder)


def dies_at(call: int, function: Callable[..., Any], die: Callable[[], None]) -> Callable[..., Any]:
    """``function``, of which call number ``call`` (from 1 on) dies."""
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            die()
        return function(*args, **kwargs)

    return wrapped


WORK: dict[str, tuple[type, str]] = {"encode": (Decoupled, "encode"), "units": (UnitMaker, "make")}


def killed_in_mid_stage(folder: Path, kind: str) -> None:
    """What a process runs that kills itself in its third batch."""
    owner, name = WORK[kind]
    kill = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    setattr(owner, name, dies_at(3, getattr(owner, name), kill))
    run_stage(folder, kind, out=folder / "cut")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def counted(monkeypatch: pytest.MonkeyPatch, kind: str) -> list[int]:
    """A list that grows by one with every batch that is worked on."""
    owner, name = WORK[kind]
    calls: list[int] = []
    function = getattr(owner, name)

    def count(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, count)
    return calls


@pytest.mark.parametrize("kind", ["encode", "units"])
def test_a_killed_stage_goes_on_to_the_same_result(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"from pathlib import Path; from {__name__} import *; killed_in_mid_stage(Path({str(folder)!r}), {kind!r})"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    assert not (folder / "cut" / "made.json").exists()
    calls = counted(monkeypatch, kind)
    report = run_stage(folder, kind, out=folder / "cut")
    assert len(calls) == 2, "of four batches two were done before the kill"
    assert run_stage(folder, kind, out=folder / "whole") == report
    assert len(calls) == 6
    assert contents(folder / "cut") == contents(folder / "whole")
    assert not list((folder / "cut").glob("*parts*"))


@pytest.mark.parametrize("kind", ["encode", "units"])
def test_a_stage_that_is_done_is_not_done_again_unless_its_inputs_changed(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch, kind)
    report = run_stage(folder, kind, out=folder / "out")
    assert run_stage(folder, kind, out=folder / "out") == report
    assert len(calls) == 4
    run_stage(folder, kind, out=folder / "out", batch=5)
    assert len(calls) == 4 + (2 if kind == "encode" else 3)


def test_another_codec_never_goes_on_with_the_codes_of_the_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Decoupled, "encode", dies_at(3, Decoupled.encode, kill_from_inside))
        with pytest.raises(Killed):
            run_stage(folder, "encode", out=folder / "out")
    save_codec(folder / "codec", seed=1)
    run_stage(folder, "encode", out=folder / "out")
    run_stage(folder, "encode", out=folder / "afresh")
    assert contents(folder / "out") == contents(folder / "afresh")


def kill_from_inside() -> None:
    raise Killed


def test_codes_in_parts_are_the_codes_of_the_store(folder: Path) -> None:
    report = run_stage(folder, "encode", out=folder / "out")
    corpus = load_codes(folder / "out")
    assert report["utterances"] == len(corpus) == 7
    codec = hub.load_codec(folder / "codec")
    assert [row.start for row in corpus.rows] == [sum(r.frames for r in corpus.rows[:i]) for i in range(7)]
    frames, _ = corpus.item(6)
    wave = 0.3 * np.sin(np.arange(24_000 + 1_200 * 6) * 0.08).astype(np.float32)
    stored = torch.from_numpy((wave * 32767).round().astype("<i2").astype(np.float32) / 32768)
    alone: Codes = codec.encode(stored[None, None])
    assert torch.equal(frames, alone.frames[0])


def test_several_processes_share_the_work(folder: Path) -> None:
    done: list[set[str]] = []
    for i in range(2):
        run_stage(folder, "encode", out=folder / f"out{i}", part=(i, 2))
        done.append({row.id for row in load_codes(folder / f"out{i}").rows})
    assert not done[0] & done[1]
    assert done[0] | done[1] == set("0123456")


def test_a_voice_is_the_mean_of_its_own_utterances(tmp_path: Path) -> None:
    rows = [CodeRow(f"{i}", voice, "hello", "", "train", i, 1) for i, voice in enumerate(("low", "high", "low"))]
    timbre = torch.tensor([[1.0, 2.0], [9.0, 9.0], [3.0, 6.0]])
    save_codes(CodeCorpus(rows, torch.zeros(2, 3).long(), torch.zeros(3).long(), timbre), tmp_path)
    stage = PackageRun.model_construct(codes=[tmp_path], voices={"first": "low", "second": "high"})
    found = {name: value.tolist() for name, value in conversion._voices(stage).items()}
    assert found == {"first": [2.0, 4.0], "second": [9.0, 9.0]}
    with pytest.raises(ValueError, match="did you mean 'low'"):
        conversion._voices(PackageRun.model_construct(codes=[tmp_path], voices={"first": "lw"}))


def test_stored_units_in_parts_are_those_of_each_text(folder: Path) -> None:
    assert run_stage(folder, "units", out=folder / "out") == {"texts": 12, "refused": 0}
    store = UnitStore(folder / "out")
    backbone = conversion.Backbone.from_folder(folder / "backbone", torch.bfloat16, hidden_layer=2)
    maker = UnitMaker(backbone, conversion.plugins.build("text.g2p", LETTERS))
    for text in TEXTS:
        stored, made = store.units([text]), maker.make([text])
        assert torch.equal(stored.phoneme, made.phoneme)
        tokens = stored.hidden.shape[1]
        torch.testing.assert_close(stored.hidden, made.hidden[:, :tokens].float(), rtol=0.1, atol=0.1)
    assert store.dim == backbone.dim


def test_the_states_of_earlier_batches_are_not_kept_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    make = UnitMaker.make

    def watched(maker: UnitMaker, texts: list[str]) -> TextUnits:
        alive.append(sum(ref() is not None for ref in made))
        units = make(maker, texts)
        made.append(weakref.ref(units.hidden))
        return units

    monkeypatch.setattr(UnitMaker, "make", watched)
    run_stage(folder, "units", out=folder / "out", batch=1)
    assert len(alive) == 12
    assert max(alive) <= 1


def test_the_parts_of_a_job_that_was_given_up_go_when_another_is_done(tmp_path: Path) -> None:
    given_up, job = Parts(tmp_path, ["a"]), Parts(tmp_path, ["b"])
    given_up.make(1, lambda number, folder: (folder / "x").touch(), "parts")
    job.make(1, lambda number, folder: (folder / "x").touch(), "parts")
    job.finish({"n": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["made.json"]
    assert job.report() == {"n": 1}
    assert given_up.report() is None


def test_a_job_that_is_begun_ends_the_one_before_it(tmp_path: Path) -> None:
    """Its outputs may be half those of the other when it is killed."""
    first, second = Parts(tmp_path, ["a"]), Parts(tmp_path, ["b"])
    first.make(1, lambda number, folder: None, "parts")
    first.finish({})
    second.make(1, lambda number, folder: None, "parts")
    assert first.report() is None


# -- package ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def to_package(folder: Path) -> Path:
    run_stage(folder, "encode", out=folder / "codes")
    hub.save_speech_lm(tiny_lm(), folder / "lm")
    (folder / "card.md").write_text("# A model")
    (folder / "first.flac").write_bytes(b"sound")
    return folder


@pytest.mark.parametrize("step", ["save_codec", "save_speech_lm", "copyfile"])
def test_a_killed_package_leaves_the_older_model_whole_and_is_made_again(
    to_package: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = to_package
    run_stage(folder, "package", out=folder / "model")
    before = contents(folder / "model")
    (folder / "card.md").write_text("# Another model")
    owner: Any = conversion.shutil if step == "copyfile" else models
    with monkeypatch.context() as patch:
        patch.setattr(owner, step, dies_at(1, getattr(owner, step), kill_from_inside))
        with pytest.raises(Killed):
            run_stage(folder, "package", out=folder / "model")
    assert contents(folder / "model") == before
    run_stage(folder, "package", out=folder / "model")
    run_stage(folder, "package", out=folder / "undisturbed")
    assert contents(folder / "model") == contents(folder / "undisturbed")
    assert contents(folder / "model")["README.md"] == b"# Another model"
    assert not list(folder.glob(".model*"))


def test_a_model_tells_of_all_voices_of_its_codes(to_package: Path) -> None:
    """Also of those that it cannot speak with."""
    rows = to_package / "codes/rows.jsonl"
    heard = [json.loads(line) for line in rows.read_text().splitlines()]
    for row, voice in zip(heard, ("low", "low", "high", "ann"), strict=False):
        row["voice"] = voice
    rows.write_text("".join(json.dumps(row) + "\n" for row in heard))
    run_stage(to_package, "package", out=to_package / "model")
    config = json.loads((to_package / "model/config.json").read_text())
    assert (config["voices"], config["voices_heard"]) == (["first"], 3)


def test_a_folder_that_is_no_model_is_not_replaced(to_package: Path) -> None:
    (to_package / "notes").mkdir()
    (to_package / "notes" / "config.json").write_text(json.dumps({"kind": "codec"}))
    with pytest.raises(ValueError, match="is not a model, so it is not replaced"):
        run_stage(to_package, "package", out=to_package / "notes")


def test_what_teachers_told_may_be_left_out(folder: Path) -> None:
    """As if they had told nothing: the codes are aligned by what is heard, and count as made of another store."""
    rows = folder / "store/rows.jsonl"
    heard = load_codes(run_out(folder, "heard"))
    told = [json.loads(line) for line in rows.read_text().splitlines()]
    count = len(parse(told[0]["phonemes"]))
    rows.write_text("".join(json.dumps({**row, "ends_ms": list(range(40, 40 * count + 1, 40))}) + "\n" for row in told))
    assert torch.equal(load_codes(run_out(folder, "without", durations=False)).unit, heard.unit)
    found = load_codes(run_out(folder, "with"))
    frames, unit = found.item(0)
    assert unit.tolist() == [min(frame, count - 1) for frame in range(frames.shape[1])]


def run_out(folder: Path, name: str, **changes: Any) -> Path:
    run_stage(folder, "encode", out=folder / name, **changes)
    return folder / name

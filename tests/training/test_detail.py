"""The stream of detail: learnt, dropped in a share of the rows, and dropped for good without changing the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from speech_mtp import hub
from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.corpus.store import AudioStore
from speech_mtp.text.phonemes import SYMBOLS
from speech_mtp.training.codec import WITHOUT_DETAIL, CodecTask
from speech_mtp.training.codec_data import CodecTaskConfig
from speech_mtp.types import Codes

LEVELS = (4, 3)


def codec() -> Decoupled:
    return Decoupled.tiny(len(SYMBOLS), LEVELS)


def task_of(store: AudioStore, made: Decoupled, **settings: Any) -> CodecTask:
    config = CodecTaskConfig(
        **{"batch": 2, "crop_frames": 8, "max_seconds": 3.0, "amp": False, "resample": 0.0, **settings}
    )
    return CodecTask(made, store, config, torch.device("cpu"))


def test_it_is_a_stream_like_the_others(humming: AudioStore) -> None:
    made = codec()
    assert list(made.spec.streams) == ["content", "prosody", "detail"]
    assert made.spec.codebook_sizes[2] == 12
    codes = made.encode(humming.wave(0)[None, None])
    assert codes.frames.shape[1] == 3
    assert int(codes.frames[:, 2].max()) < 12
    again = Decoupled.from_config(made.to_config())
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.eval().decode(codes), made.decode(codes))


def test_it_is_heard_but_not_read_for_phonemes(humming: AudioStore) -> None:
    made = codec()
    codes = made.encode(humming.wave(0)[None, None])
    other = Codes(codes.frames.clone(), codes.lengths, codes.timbre)
    other.frames[:, 2] = (other.frames[:, 2] + 5) % 12
    assert not torch.equal(made.decode(other), made.decode(codes))
    assert torch.equal(made.phoneme_log_probs(other), made.phoneme_log_probs(codes))


def test_without_it_a_codec_decodes_as_where_it_is_dropped(humming: AudioStore) -> None:
    made = codec()
    plain = made.without_detail()
    wave = humming.wave(0)[None, None]
    codes, two = made.encode(wave), plain.encode(wave)
    assert torch.equal(codes.frames[:, :2], two.frames)
    dropped = made.detail_fsq
    made.values = lambda frames: (  # type: ignore[method-assign]
        torch.cat([made.content_fsq.values(frames[:, 0]), torch.zeros(*frames[:, 0].shape, len(LEVELS))], -1),
        made.prosody_fsq.values(frames[:, 1]),
    )
    assert torch.allclose(made.decode(codes), plain.decode(two), atol=1e-5)
    assert dropped is not None
    with pytest.raises(ValueError, match="no stream detail"):
        plain.without_detail()


def test_it_learns_and_is_dropped_in_a_share_of_the_rows(humming: AudioStore) -> None:
    task = task_of(humming, codec(), drop_detail=0.5)
    before = {name: value.detach().clone() for name, value in task.codec.named_parameters()}
    for number in range(4):
        task.step(number, 1e-3)
    assert task.codec.detail is not None
    moved = [name for name, value in task.codec.named_parameters() if not torch.equal(value, before[name])]
    assert {name.split(".")[0] for name in moved} >= {"content", "prosody", "detail", "decoder"}
    content = torch.ones(400, 3, len(task.codec.config.content_levels) + 2)
    given = task.decoded(content)
    assert torch.equal(given[..., :-2], content[..., :-2])
    kept = given[:, 0, -1]
    assert set(kept.tolist()) == {0.0, 1.0}
    assert 0.4 < float(kept.mean()) < 0.6
    assert torch.equal(given[..., -1], kept[:, None].expand(-1, 3))
    assert "detail_perplexity" in task.evaluate()


def test_both_forms_are_exported(humming: AudioStore, tmp_path: Path) -> None:
    task = task_of(humming, codec())
    for _ in range(2):  # a run that is gone on with exports again
        task.export(tmp_path / "export")
    whole, plain = hub.load_codec(tmp_path / "export"), hub.load_codec(tmp_path / WITHOUT_DETAIL)
    assert [len(found.spec.streams) for found in (whole, plain)] == [3, 2]
    wave = humming.wave(1)[None, None]
    assert torch.equal(whole.encode(wave).frames[:, :2], plain.encode(wave).frames)


def test_the_share_without_the_stream_is_refused(humming: AudioStore) -> None:
    with pytest.raises(ValueError, match=r"leave task\.drop_detail out"):
        task_of(humming, Decoupled.tiny(len(SYMBOLS)), drop_detail=0.2)

"""The direct form: the backbone learns to speak, decodes what it was taught, and rows do not see each other."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from speech_mtp import hub, plugins
from speech_mtp.corpus.codes import CodeCorpus, CodeRow
from speech_mtp.decoding import engine
from speech_mtp.lm.backbone import assistant_prefix
from speech_mtp.lm.direct import DirectConfig, DirectLM
from speech_mtp.lm.token_maker import VOICE, TokenMaker, next_tokens, token_units
from speech_mtp.objectives.direct import Direct, paper_weights
from speech_mtp.training.lm import LMTask, LMTaskConfig, TokenStore
from speech_mtp.types import Codes, Draft, Sampling
from tests.lm.tiny import tiny_config, tiny_tokenizer
from tests.replay import greedy_tokens, shortfall
from tests.tiny import tiny_lm

TEXTS = ["the quick brown fox jumps over the lazy dog.", "hello.", "good morning, it is good"]
SEEDS = [10, 11, 12]
TIMBRE = torch.randn(3, 8, generator=torch.Generator().manual_seed(3))
SMALL = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}
FAMILIES = [(Qwen3Config, Qwen3ForCausalLM), (PhiConfig, PhiForCausalLM), (GemmaConfig, GemmaForCausalLM)]


def direct_lm(backbone: object = None, **settings: object) -> DirectLM:
    torch.manual_seed(1)
    sizes = {"codebook_sizes": (20, 10), "frame_rate_hz": 25.0, "timbre_dim": 8, "frames_per_group": 2}
    lm = DirectLM(DirectConfig(**{**sizes, **settings}), backbone or LlamaForCausalLM(tiny_config())).eval()
    with torch.no_grad():  # speech that is not one group over and over, and ends one time in eight
        for weight in lm.output.parameters():
            weight.mul_(2.0)
        control = lm.output.down[0] if lm.config.output == "depth" else lm.output.heads[0]
        last = control[-1] if isinstance(control, nn.Sequential) else control
        last.weight.mul_(0.2)
        last.bias.copy_(torch.tensor([2.0, 0.0]))
    return lm


def maker(voice: str = "added") -> TokenMaker:
    tokenizer = tiny_tokenizer()
    return TokenMaker(tokenizer, assistant_prefix(tokenizer), voice_place=voice == "substituted")


def decode(lm: DirectLM, texts: list[str], timbre: Tensor, seeds: list[int], made: TokenMaker) -> list[Tensor]:
    run = engine.start(lm, made.make(texts), timbre, Sampling(), seeds=torch.tensor(seeds))
    rows: list[list[Tensor]] = [[] for _ in texts]
    while (step := run.advance()) is not None:
        for b, length in enumerate(step.lengths.tolist()):
            if length:
                rows[b].append(run.rows.last[b].clone())
    return [torch.stack(row) for row in rows]


@pytest.mark.parametrize("voice", ["added", "substituted"])
@pytest.mark.parametrize(("fusion", "output"), [("mean", "linear"), ("concat", "depth"), ("mean", "mlp")])
def test_the_cache_changes_nothing(voice: str, fusion: str, output: str) -> None:
    lm = direct_lm(voice=voice, fusion=fusion, output=output)
    for b, text in enumerate(TEXTS):
        units = maker(voice).make([text])
        tokens = greedy_tokens(lm, units, TIMBRE[b : b + 1], max_groups=100)  # more than the cache first has room for
        assert len(tokens.unique(dim=0)) > 1
        assert shortfall(lm, units, TIMBRE[b : b + 1], tokens).max() < 1e-4
        wrong = tokens.clone()
        wrong[-1, 1] = (wrong[-1, 1] + 1) % 20
        assert shortfall(lm, units, TIMBRE[b : b + 1], wrong).max() > 1e-3


@pytest.mark.parametrize(("config", "model"), FAMILIES)
def test_other_families_decode_what_they_score(config: type, model: type) -> None:
    torch.manual_seed(0)
    lm = direct_lm(model(config(**SMALL, **HEADS, initializer_range=0.3)))
    units = maker().make(TEXTS[:1])
    tokens = greedy_tokens(lm, units, TIMBRE[:1], max_groups=20)
    assert len(tokens.unique(dim=0)) > 1
    assert shortfall(lm, units, TIMBRE[:1], tokens).max() < 1e-4


@pytest.mark.parametrize("voice", ["added", "substituted"])
def test_a_row_alone_is_the_row_in_a_batch(voice: str) -> None:
    lm = direct_lm(voice=voice)
    together = decode(lm, TEXTS, TIMBRE, SEEDS, maker(voice))
    assert len({len(row) for row in together}) > 1, "rows must end at different times"
    for b, text in enumerate(TEXTS):
        (alone,) = decode(lm, [text], TIMBRE[b : b + 1], [SEEDS[b]], maker(voice))
        assert torch.equal(alone, together[b])


def test_the_voice_matters() -> None:
    for voice in ("added", "substituted"):
        lm, made = direct_lm(voice=voice), maker(voice)
        (low,), (high,) = (decode(lm, TEXTS[:1], timbre[None], [10], made) for timbre in TIMBRE[:2])
        assert low.shape != high.shape or not torch.equal(low, high)


def test_new_embeddings_are_as_large_as_the_backbones_own() -> None:
    backbone = LlamaForCausalLM(tiny_config())
    torch.nn.init.normal_(backbone.get_input_embeddings().weight, std=0.03)
    lm = direct_lm(backbone)
    tokens = torch.stack([torch.randint(size, (300,)) for size in lm.layout.channel_sizes], -1)
    assert float(lm.fusion(tokens[None]).std()) == pytest.approx(0.03, rel=0.2)


def test_the_rows_of_a_teacher_forced_batch_do_not_see_each_other() -> None:
    lm, units = direct_lm(), maker().make(TEXTS)
    rng = torch.Generator().manual_seed(0)
    frames = torch.stack([torch.randint(0, size, (3, 9), generator=rng) for size in (20, 10)], 1)
    lengths = torch.tensor([9, 3, 6])
    together = lm(lm.layout.pack(Codes(frames, lengths), frames[:, 0], units.lengths), units, TIMBRE)
    for b, n in enumerate(lengths.tolist()):
        one = maker().make(TEXTS[b : b + 1])
        codes = Codes(frames[b : b + 1, :, :n], lengths[b : b + 1])
        alone = lm(lm.layout.pack(codes, frames[b : b + 1, 0], one.lengths), one, TIMBRE[b : b + 1])
        torch.testing.assert_close(together.top[b, : -(-n // 2)], alone.top[0], atol=1e-5, rtol=1e-4)
        words = int(one.lengths[0])
        torch.testing.assert_close(together.text[b, :words], alone.text[0], atol=1e-5, rtol=1e-4)
        assert torch.equal(together.next_text[b, :words], alone.next_text[0])


def test_text_positions_are_the_backbone_as_it_was() -> None:
    backbone = LlamaForCausalLM(tiny_config()).eval()
    lm, units = direct_lm(backbone), maker().make(TEXTS[:1])
    positions = lm.layout.pack(Codes(torch.zeros(1, 2, 4).long(), torch.tensor([4])), torch.zeros(1, 4), units.lengths)
    logits = lm.text_logits(lm(positions, units, TIMBRE[:1]).text)
    torch.testing.assert_close(logits, backbone(units.phoneme).logits, atol=1e-4, rtol=1e-4)


def test_a_draft_tree_is_verified_as_plain_steps_are() -> None:
    lm, units = direct_lm(), maker().make(TEXTS[:1])
    state = lm.prefill(units, TIMBRE[:1])
    first, left, right = state.last[0], torch.tensor([0, 3, 4, 5, 6]), torch.tensor([0, 7, 1, 2, 3])
    tree = Draft(torch.stack([first, left, right])[None], torch.tensor([[-1, 0, 0]]))
    branched = lm.verify(state, tree).top[0]
    for node, token in ((1, left), (2, right)):
        chain = Draft(torch.stack([first, token])[None], torch.tensor([[-1, 0]]))
        straight = lm.verify(lm.prefill(units, TIMBRE[:1]), chain).top[0]
        torch.testing.assert_close(branched[[0, node]], straight, atol=1e-5, rtol=1e-4)


# -- the objective ----------------------------------------------------------------------------------------------------
def test_the_next_text_token_is_asked_for_inside_the_row_and_never_the_voice() -> None:
    units = token_units([[5, VOICE, 6, 7], [8, 9]])
    assert next_tokens(units).tolist() == [[-100, 6, 7, -100], [9, -100, -100, -100]]


def test_gradients_reach_the_backbone_from_text_and_from_speech() -> None:
    lm, units = direct_lm(), maker().make(TEXTS)
    positions = lm.layout.pack(
        Codes(torch.ones(3, 2, 4).long(), torch.tensor([4, 2, 3])), torch.zeros(3, 4), units.lengths
    )
    for name in ("text", "control", "stream0", "stream1"):
        lm.zero_grad()
        dict(Direct().terms(lm, lm(positions, units, TIMBRE), positions))[name].backward()
        reached = {
            key.partition(".")[0] for key, p in lm.named_parameters() if p.grad is not None and p.grad.abs().sum()
        }
        assert "trunk" in reached
        assert ("output" in reached) == (name != "text")
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lm.trunk.layers.parameters())


def test_the_weights_are_those_of_the_paper() -> None:
    lm, units = direct_lm(), maker().make(TEXTS)
    frames = torch.randint(0, 10, (3, 2, 6), generator=torch.Generator().manual_seed(0))
    positions = lm.layout.pack(Codes(frames, torch.tensor([6, 4, 5])), torch.zeros(3, 6), units.lengths)
    out = lm(positions, units, TIMBRE)
    terms = dict(Direct().terms(lm, out, positions))
    weights = paper_weights(lm)
    assert weights.keys() == terms.keys()
    assert math.isclose(sum(weights.values()), 0.2 + 0.8 * (1 / 5 + 2 * 2 / 5))
    channels = [
        torch.nn.functional.cross_entropy(score.flatten(0, 1), positions.labels[..., c].flatten())
        for c, score in enumerate(lm.output.score(out.top, positions.labels))
    ]
    text = torch.nn.functional.cross_entropy(lm.text_logits(out.text).flatten(0, 1), out.next_text.flatten())
    total = sum(weights[name] * value for name, value in terms.items())
    torch.testing.assert_close(total, 0.2 * text + 0.8 * torch.stack(channels).mean())


def test_a_talker_has_no_text_term() -> None:
    objective = plugins.build("objectives", "direct")
    lm = tiny_lm()
    with pytest.raises(ValueError, match="only the direct form gives"):
        next(objective.terms(lm, None, None))


def toy_task() -> LMTask:
    """Four sentences, each with codes that its length and the place in it decide."""
    texts = [*TEXTS, "the lazy fox"]
    rows, frames = [], []
    for i, text in enumerate([*texts, texts[0]]):
        n, start = 8 + 2 * i % 8, sum(f.shape[1] for f in frames)
        rows.append(CodeRow(f"{i}", "low", text, "", "dev" if i == 4 else "train", start, n))
        at = torch.arange(n)
        frames.append(torch.stack([(at * (i % 4 + 1)) % 20, (at + i % 4) % 10]))
    corpus = CodeCorpus(
        rows, torch.cat(frames, 1), torch.zeros(sum(row.frames for row in rows)).long(), TIMBRE[[0] * 5]
    )
    lm = direct_lm()
    config = LMTaskConfig(batch=2, noise=0.0, timbre_noise=0.0, amp=False, weights=paper_weights(lm))
    return LMTask(lm, corpus, TokenStore(maker()), config, torch.device("cpu"), objective=Direct())


def test_the_backbone_learns_a_toy_corpus_and_speaks_it(tmp_path: Path) -> None:
    task = toy_task()
    before = task.evaluate()
    assert before.keys() == {"text", "control", "stream0", "stream1"}
    trunk = task.lm.trunk.layers[0].mlp.up_proj.weight.detach().clone()
    for number in range(150):
        scalars = task.step(number, 5e-3)
    assert scalars["text"] < 0.5 * before["text"]
    assert scalars["stream0"] < 0.3 * before["stream0"]
    assert not torch.equal(trunk, task.lm.trunk.layers[0].mlp.up_proj.weight)
    # a checkpoint of it says the same
    (tmp_path / "export").mkdir()
    task.export(tmp_path / "export")
    units = maker().make(TEXTS[1:2])
    said = greedy_tokens(task.lm.eval(), units, TIMBRE[:1], max_groups=20)
    assert torch.equal(greedy_tokens(hub.load_direct_lm(tmp_path / "export"), units, TIMBRE[:1], max_groups=20), said)


# -- what is refused --------------------------------------------------------------------------------------------------
def test_sliding_windows_and_recurrent_models_are_refused() -> None:
    windowed = MistralForCausalLM(MistralConfig(**SMALL, **HEADS, sliding_window=8))
    with pytest.raises(ValueError, match="full attention"):
        direct_lm(windowed)


def test_wrong_places_for_the_voice_are_refused() -> None:
    with pytest.raises(ValueError, match="needs 1"):
        direct_lm(voice="substituted").prefill(maker().make(TEXTS[:1]), TIMBRE[:1])
    with pytest.raises(ValueError, match="needs 0"):
        direct_lm().prefill(maker("substituted").make(TEXTS[:1]), TIMBRE[:1])
    with pytest.raises(ValueError, match="must be 'added' or 'substituted'"):
        direct_lm(voice="sung")


def test_late_text_and_no_text_are_refused() -> None:
    lm, units = direct_lm(), maker().make(TEXTS[:1])
    with pytest.raises(ValueError, match="reads its text once"):
        lm.extend(lm.prefill(units, TIMBRE[:1]), 0, units)
    with pytest.raises(ValueError, match="no token"):
        token_units([[1], []])

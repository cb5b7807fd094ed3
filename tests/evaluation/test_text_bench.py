"""Measurements of text decoding: in turn, from where they stopped, and what is made of the numbers."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from speech_mtp.decoding.text import Statistics
from speech_mtp.evaluation import peers
from speech_mtp.evaluation import text_bench as text_bench_module
from speech_mtp.evaluation import watch as watch_module
from speech_mtp.evaluation.contenders import Answers, Contender, llama_cpp, native_mtp, ours, theirs, weights_of
from speech_mtp.evaluation.identity import Group, explain, faults, identity, tie_below
from speech_mtp.evaluation.intervals import estimate, ratio
from speech_mtp.evaluation.journal import Journal, computed_by
from speech_mtp.evaluation.memory import PeakMemory
from speech_mtp.evaluation.questions import Question, digest, read_questions
from speech_mtp.evaluation.tables import aligned
from speech_mtp.evaluation.text_bench import report, speedup, text_bench
from speech_mtp.evaluation.watch import Watch
from speech_mtp.exports.deepseek import DeepSeek
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.plugins import MissingExtra
from speech_mtp.types import Sampling
from tests.text_tiny import tiny_head, tiny_text_lm

CPU = torch.device("cpu")
QUESTIONS = [Question("a", ("Hello there!", "Good morning.")), Question("b", ("the fox",))]
Log = list[tuple[str, tuple[int, ...], int]]


def noted() -> Watch:
    watch = Watch(CPU)
    watch.note(1)
    return watch


def fake(name: str, log: Log, rule: str = "vanilla", said: tuple[int, ...] = (5, 6)) -> Contender:
    """Says the same to everything, and is written down."""

    def answer(prompts: peers.Prompts, count: int) -> Answers:
        log.append((name, tuple(prompts[0]), count))
        return Answers([list(said)], noted(), Statistics(forwards=1, emitted=2, tried=[1, 1], kept=[1, 0]))

    return Contender("speech_mtp", "fp32", None if rule == "vanilla" else name, rule, True, CPU, answer)


def journal(tmp_path: Path, **settings: object) -> Journal:
    return Journal(tmp_path / "j.jsonl", settings)


class TestInTurn:
    def test_all_answer_a_request_before_the_next_and_take_turns_at_being_first(self, tmp_path: Path) -> None:
        log: Log = []
        contenders = [fake("x", log), fake("y", log, "chain"), fake("z", log, "tree")]
        text_bench(tiny_text_lm(), contenders, QUESTIONS, 4, journal(tmp_path))
        warm, log = log[:3], log[3:]
        assert [name for name, _, _ in warm] == ["x", "y", "z"]
        assert [name for name, _, _ in log] == ["x", "y", "z", "x", "y", "z", "y", "z", "x"]
        assert {count for _, _, count in log} == {4}
        prompts = [prompt for _, prompt, _ in log]
        assert [len(set(prompts[i : i + 3])) for i in (0, 3, 6)] == [1, 1, 1]
        assert len(set(prompts)) == 3

    def test_the_first_plain_decoding_leads_the_conversation(self, tmp_path: Path) -> None:
        log: Log = []
        lm = tiny_text_lm()
        said = tuple(lm.tokenizer("fox")["input_ids"])
        text_bench(lm, [fake("y", log, "chain", (7,)), fake("x", log, said=said)], QUESTIONS[:1], 4, journal(tmp_path))
        assert "Hello there!<|im_end|>\n<|im_start|>assistant\nfox<|im_end|>" in lm.tokenizer.decode(log[-1][1])

    def test_an_interruption_loses_the_question_that_was_open_only(self, tmp_path: Path) -> None:
        log: Log = []

        def interrupt(prompts: peers.Prompts, count: int) -> Answers:
            if len(log) == 5:
                raise KeyboardInterrupt
            return Answers([[1]], noted(), Statistics(1, 0, 1))

        late = Contender("speech_mtp", "fp32", "late", "chain", True, CPU, interrupt)
        lm, contenders = tiny_text_lm(), [fake("x", log), late]
        with pytest.raises(KeyboardInterrupt):
            text_bench(lm, contenders, [*QUESTIONS, *QUESTIONS], 4, journal(tmp_path))
        assert [row["question"] for row in journal(tmp_path).rows] == ["a", "b"]
        made = text_bench(lm, contenders, [*QUESTIONS, *QUESTIONS], 4, journal(tmp_path))
        assert made["questions"] == 4
        again: Log = []
        text_bench(lm, [fake("x", again), late], [*QUESTIONS, *QUESTIONS], 4, journal(tmp_path))
        assert again == []

    def test_turns_that_do_not_fit_are_left_out(self, tmp_path: Path) -> None:
        long = Question("c", ("the fox " * 400,))
        made = text_bench(tiny_text_lm(), [fake("x", [])], [*QUESTIONS, long], 4, journal(tmp_path))
        assert (made["questions"], made["requests"]) == (2, 3)
        with pytest.raises(ValueError, match="None of the questions fits"):
            text_bench(tiny_text_lm(), [fake("x", [])], [long], 4, Journal(tmp_path / "other.jsonl", {}))


class TestFigures:
    def test_sums_and_ratios(self) -> None:
        log: Log = []
        contenders = [fake("x", log), fake("y", log, "chain")]
        slow = {"requests": 2, "identical": 2, "tokens": 20, "seconds": 4.0, "forwards": 20, "emitted": 20}
        fast = {"requests": 2, "identical": 1, "tokens": 20, "seconds": 1.0, "forwards": 10, "emitted": 20}
        fast |= {"tried": [10, 6], "kept": [6, 3], "peak_bytes": 2**20}
        fast |= {"prompt_tokens": 50, "read_s": 0.25, "first_tokens": 3}
        slow |= {"prompt_tokens": 50, "read_s": 4.0, "first_tokens": 20}  # answered in one step
        lines = [{"answers": {contenders[0].name: slow, contenders[1].name: fast}}]
        lines.append({"answers": {contenders[0].name: slow, contenders[1].name: {**fast, "tried": [10], "kept": [4]}}})
        vanilla, chain = report(contenders, lines)["rows"]
        assert chain["speedup_over_vanilla"] == pytest.approx(4)
        assert chain["speedup_over_vanilla_interval"] == pytest.approx((4, 4))
        assert chain["tokens_per_forward"] == 2
        assert chain["acceptance"] == [0.5, 0.5]
        assert (chain["identical_fraction"], chain["peak_memory_mb"], chain["tokens_per_s"]) == (0.5, 1, 20)
        assert chain["reading"] == {"tokens": 100, "seconds": 0.5, "tokens_per_s": 200}
        assert chain["decoding"] == {"tokens": 34, "seconds": 1.5, "tokens_per_s": pytest.approx(34 / 1.5)}
        assert vanilla["decoding"]["tokens_per_s"] is None
        assert (vanilla["speedup_over_vanilla"], vanilla["acceptance"], vanilla["peak_memory_mb"]) == (1, [], None)

    def test_the_interval_is_that_of_the_questions(self) -> None:
        base = torch.tensor([[10.0, 1.0]] * 40)
        even, uneven = base.clone(), base.clone()
        even[:, 1] = 0.5
        uneven[:, 1] = torch.tensor([0.2, 0.8]).repeat(20)
        assert speedup(even, base) == (pytest.approx(2), pytest.approx((2, 2)))
        middle, (low, high) = speedup(uneven, base)
        assert middle == pytest.approx(2)
        assert 1.4 < low < 1.9 < 2.1 < high < 2.9

    def test_columns_line_up(self) -> None:
        assert aligned(["a", "bb"], [["ccc", "d"]]) == "a    bb\nccc  d"


class TestContenders:
    def test_every_pair_that_fits_and_plain_decoding_once(self) -> None:
        lm = tiny_text_lm()
        heads = {"medusa": tiny_head(lm), "leaps": tiny_head(lm, name="leap")}
        pairs = [(c.head, c.rule) for c in ours(lm, "fp32", heads, ["chain", "leap", "vanilla"])]
        assert pairs[0] == (None, "vanilla")
        assert sorted(pairs[1:], key=str) == [("leaps", "leap"), ("medusa", "chain"), ("medusa", "leap")]
        assert len({c.name for c in [*ours(lm, "fp32", heads), *theirs(lm, "fp32")]}) >= 6
        with pytest.raises(ValueError, match="rule leap fits none of the heads"):
            ours(lm, "fp32", {}, ["leap"])

    def test_weights_have_a_name(self) -> None:
        lm = tiny_text_lm()
        head = tiny_head(lm)
        before = weights_of(head)
        assert weights_of(tiny_head(lm)) == before
        with torch.no_grad():
            next(head.parameters()).add_(1e-3)
        assert weights_of(head) != before


class TestReadingAndDecoding:
    """A clock that only forwards move: one second for each token read, a tenth for each step."""

    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        at, forward = [0.0], LlamaForCausalLM.forward

        def forwarding(model: LlamaForCausalLM, *given: Any, **more: Any) -> Any:
            ids = more["input_ids"]
            at[0] += ids.shape[1] if ids.shape[1] > 4 else 0.1
            return forward(model, *given, **more)

        def verifying(lm: TextLM, *given: Any) -> Any:
            at[0] += 0.1
            return verify(lm, *given)

        def reading(lm: TextLM, state: Any, texts: list[list[int]], *more: Any) -> Any:
            at[0] += len(texts[0])
            return read(lm, state, texts, *more)

        verify, read = TextLM.verify, TextLM.read
        monkeypatch.setattr(LlamaForCausalLM, "forward", forwarding)
        monkeypatch.setattr(TextLM, "verify", verifying)
        monkeypatch.setattr(TextLM, "read", reading)
        for module in (text_bench_module, watch_module):
            monkeypatch.setattr(module, "now", lambda device: at[0])
        return at

    def test_of_ours_and_of_transformers(self, clock: list[float], tmp_path: Path) -> None:
        lm = tiny_text_lm()
        contenders = [*ours(lm, "fp32", {"medusa": tiny_head(lm)}, ["chain"]), *theirs(lm, "fp32")]
        made = text_bench(lm, contenders, QUESTIONS, 9, journal(tmp_path))
        plain, chain, peer, lookup = [*made["rows"], *made["peers"]]
        for row in (plain, chain, peer, lookup):
            reading, decoding = row["reading"], row["decoding"]
            assert reading["seconds"] + decoding["seconds"] == pytest.approx(row["seconds"])
            assert reading["tokens"] == plain["reading"]["tokens"] > 20
            assert decoding["tokens_per_s"] == pytest.approx(decoding["tokens"] / decoding["seconds"])
        assert plain["reading"]["seconds"] == pytest.approx(plain["reading"]["tokens"] + 3 * 0.1)
        assert peer["reading"]["seconds"] == pytest.approx(peer["reading"]["tokens"])
        for row in (plain, peer):
            assert row["decoding"]["tokens"] == row["tokens"] - row["requests"]
            assert row["decoding"]["tokens_per_s"] == pytest.approx(10)
        assert chain["decoding"]["tokens"] <= chain["tokens"] - chain["requests"]
        assert chain["decoding"]["tokens_per_s"] >= 10


class TestPeers:
    def test_transformers_says_in_a_batch_what_ours_says_alone(self) -> None:
        lm = tiny_text_lm()
        prompts = [lm.tokenizer(text)["input_ids"] for text in ("Hello there!", "the quick brown", "Good")]
        vanilla = ours(lm, "fp32", {}, [])[0]
        alone = [vanilla.answer([prompt], 12).tokens[0] for prompt in prompts]
        plain, lookup = theirs(lm, "fp32")
        assert plain.answer(prompts, 12).tokens == alone
        assert [lookup.answer([prompt], 12).tokens[0] for prompt in prompts] == alone

    def test_the_models_own_settings_are_put_aside_and_back(self) -> None:
        lm = tiny_text_lm()
        prompt = lm.tokenizer("the quick brown fox")["input_ids"]
        before = peers.transformers_greedy(lm)([prompt], 12)
        own = lm.model.generation_config
        own.repetition_penalty, own.no_repeat_ngram_size = 5.0, 1
        assert peers.transformers_greedy(lm)([prompt], 12) == before
        assert lm.model.generation_config is own

    def test_an_answer_ends_with_its_end_token(self) -> None:
        lm = tiny_text_lm()
        prompt = lm.tokenizer("the quick brown fox")["input_ids"]
        whole = peers.transformers_greedy(lm)([prompt], 12)[0]
        lm.model.generation_config.eos_token_id = whole[4]
        first = whole.index(whole[4])
        for contender in (ours(lm, "fp32", {}, [])[0], theirs(lm, "fp32")[0]):
            assert contender.answer([prompt, prompt], 12).tokens == [whole[: first + 1]] * 2

    def test_transformers_drafts_with_exported_heads(self, tmp_path: Path) -> None:
        lm = tiny_text_lm()
        prompt = lm.tokenizer("the quick brown fox")["input_ids"]
        with pytest.raises(ValueError, match="is no model with MTP layers"):
            native_mtp(lm, "fp32", tmp_path)
        DeepSeek().write(tmp_path / "out", tiny_head(lm, name="deepseek", depth=2, draft_vocab=50), lm)
        peer = native_mtp(lm, "fp32", tmp_path / "out")
        assert peer.answer([prompt], 12).tokens == theirs(lm, "fp32")[0].answer([prompt], 12).tokens
        assert (peer.program, peer.rule) == ("transformers native MTP", None)
        with torch.no_grad():
            lm.model.get_input_embeddings().weight[7] += 1
        with pytest.raises(ValueError, match="another model than the one that is measured"):
            native_mtp(lm, "fp32", tmp_path / "out")

    def test_llama_cpp_takes_part_if_it_is_there(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        lm = tiny_text_lm()
        with pytest.raises(FileNotFoundError, match="no GGUF file"):
            llama_cpp(lm, tmp_path / "m.gguf")
        (tmp_path / "m.gguf").touch()
        monkeypatch.setitem(sys.modules, "llama_cpp", None)
        with pytest.raises(MissingExtra, match="llama-cpp-python"):
            llama_cpp(lm, tmp_path / "m.gguf")
        end, clock = lm.tokenizer.eos_token_id, [0.0]
        forgotten: list[bool] = []
        monkeypatch.setattr(watch_module, "now", lambda device: clock[0])

        class Llama:
            def __init__(self, **settings: object) -> None:
                assert settings["n_ctx"] == 512

            def reset(self) -> None:
                forgotten.append(True)

            def generate(self, tokens: list[int], **settings: object) -> Iterator[int]:
                assert forgotten.pop()  # or it would keep what a prompt shares with the one before
                assert settings == {"top_k": 1, "temp": 0.0, "repeat_penalty": 1.0}
                clock[0] += len(tokens)
                for token in (*tokens, end, 9, 9):
                    yield token
                    clock[0] += 0.1

        module = types.ModuleType("llama_cpp")
        module.Llama = Llama  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "llama_cpp", module)
        peer = llama_cpp(lm, tmp_path / "m.gguf")
        assert peer.answer([[7, 8], [4]], 2).tokens == [[7, 8], [4, end]]
        assert (peer.program, peer.dtype) == ("llama.cpp", "m.gguf")
        watch = peer.answer([[7, 8, 6]], 3).watch
        assert (watch.seconds, watch.tokens) == (3, 1)


class TestTies:
    def test_a_gap_says_whether_rounding_decides(self) -> None:
        lm = tiny_text_lm()
        prompt = lm.tokenizer("the quick brown fox")["input_ids"]
        said = peers.transformers_greedy(lm)([prompt], 6)[0]
        twin = next(token for token in range(300) if token not in said)
        with torch.no_grad():
            lm.model.lm_head.weight[twin] = lm.model.lm_head.weight[said[3]]
        at = said.index(said[3])
        tie = explain(lm, prompt, said, [*said[:at], twin, 1], 7)
        assert (tie.prompt, tie.position, tie.token, tie.expected, tie.tie) == (7, at, said[3], twin, True)
        assert tie.gap == pytest.approx(0, abs=1e-6)
        fault = explain(lm, prompt, [said[0], (said[1] + 1) % 300], said[:2], 0)
        assert (fault.position, fault.tie) == (1, False)
        assert fault.gap is not None
        assert fault.gap >= fault.top2_gap > 1e-4

    def test_an_answer_that_stops_early_is_no_tie(self) -> None:
        lm = tiny_text_lm()
        cut = explain(lm, [5, 6, 7], [1, 2], [1, 2, 3], 0)
        assert (cut.position, cut.token, cut.expected, cut.gap, cut.tie) == (2, None, 3, None, False)

    def test_bf16_rounds_in_steps_of_its_format(self) -> None:
        assert tie_below(torch.float32, 20.0) == 1e-4
        assert tie_below(torch.bfloat16, 20.0) == 2 * 0.125
        assert tie_below(torch.bfloat16, -1.5) == 2 * 2**-7


class TestIdentity:
    def test_prompts_that_do_not_fit_are_left_out(self, tmp_path: Path) -> None:
        lm = tiny_text_lm()
        vanilla, peer = ours(lm, "fp32", {}, [])[0], theirs(lm, "fp32", lookup=False)[0]
        groups = [Group(lm, [vanilla, peer], {"vanilla": vanilla, "transformers": peer})]
        made = identity(groups, [[5, 6], [7] * 510, [8]], 4, 1, journal(tmp_path))
        assert (made["prompts"], made["left_out"], faults(made)) == (2, 1, 0)
        assert [row["tokens"] for row in made["rows"]] == [8, 8]
        assert identity(groups, [[5, 6], [7] * 510, [8]], 4, 1, journal(tmp_path)) == made
        with pytest.raises(ValueError, match="None of the prompts fits"):
            identity(groups, [[7] * 510], 4, 1, Journal(tmp_path / "other.jsonl", {}))

    def test_drawn_text_is_that_of_the_seed_whatever_drafts_it(self, tmp_path: Path) -> None:
        lm, drawn = tiny_text_lm(), Sampling(temperature=0.8, top_p=0.9, seed=3)
        rules = ["chain", {"name": "chain", "rejection": True}]
        vanilla, chain, rejection = ours(lm, "fp32", {"m": tiny_head(lm)}, rules, drawn)
        wrong = fake("wrong", [], "tree", (7, 7, 7, 7))
        group = Group(lm, [vanilla, chain, rejection, wrong], {"vanilla": vanilla}, drawn)
        made = identity([group], [[5, 6]], 4, 1, journal(tmp_path))
        found = {row["rule"]: row for row in made["rows"]}
        assert found["chain"]["vanilla"]["identical"] == 1
        assert [row["same_seed"] for row in made["rows"]] == [True, True, False, True]
        low, high = found["chain"]["interval"]
        figure = found["chain"]["tokens_per_forward"]
        assert 1 <= low <= figure + 1e-9
        assert figure - 1e-9 <= high <= 3
        assert faults(made) == 1, "of the one that says anything"
        (fault,) = found["tree"]["vanilla"]["mismatches"]
        assert fault["gap"] > fault["top2_gap"] > 0, "the token of plain decoding is the best with its noise"

    def test_tokens_a_forward_have_an_interval_over_prompts(self) -> None:
        found = estimate(torch.tensor([[10, 10], [30, 10]] * 20), ratio)
        low, high = found["interval"]
        assert found["value"] == pytest.approx(2)
        assert 1.5 < low < 1.9
        assert 2.1 < high < 2.5


class TestFiles:
    def test_questions_of_both_kinds(self, tmp_path: Path) -> None:
        (tmp_path / "q.txt").write_text("One.\n\n Two. \n", encoding="utf-8")
        assert [q.turns for q in read_questions(tmp_path / "q.txt")] == [("One.",), ("Two.",)]
        lines = [{"question_id": 81, "turns": ["a", "b"]}, {"prompt": "c"}]
        (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        found = read_questions(tmp_path / "q.jsonl")
        assert [(q.name, q.turns) for q in found] == [("81", ("a", "b")), ("2", ("c",))]
        assert read_questions(tmp_path / "q.jsonl", 1) == found[:1]
        assert digest(found) != digest(found[:1])

    @pytest.mark.parametrize(
        ("name", "text", "words"),
        [
            ("q.jsonl", '{"prompt": "a"}\n{"promt": "b"}\n', "line 2 has neither"),
            ("q.jsonl", '{"turns": []}\n', "line 1 has neither"),
            ("q.jsonl", "[1]\n", "line 1 is not an object"),
            ("q.jsonl", "{\n", "line 1 is not JSON"),
            ("q.txt", "\n", "holds no questions"),
            ("q.csv", "a\n", "neither .jsonl nor .txt"),
        ],
    )
    def test_what_is_no_question(self, tmp_path: Path, name: str, text: str, words: str) -> None:
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=words):
            read_questions(tmp_path / name)

    def test_a_journal_keeps_whole_lines_of_the_same_settings(self, tmp_path: Path) -> None:
        journal(tmp_path, tokens=4).add({"a": 1})
        with (tmp_path / "j.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"a": 2')
        again = journal(tmp_path, tokens=4)
        assert again.rows == [{"a": 1}]
        again.add({"a": 3})
        assert journal(tmp_path, tokens=4).rows == [{"a": 1}, {"a": 3}]
        with pytest.raises(ValueError, match="another setting of tokens"):
            journal(tmp_path, tokens=5)

    @pytest.mark.parametrize("other", ["nothing\n", '{"mine": 1}\n{"mine": 2}', '{"mine": 1}', '[1]\n{"tokens": 4}\n'])
    def test_a_file_that_is_no_journal_is_left_as_it_is(self, tmp_path: Path, other: str) -> None:
        (tmp_path / "j.jsonl").write_text(other, encoding="utf-8")
        with pytest.raises(ValueError, match=r"j\.jsonl is damaged or no file of measurements; move it away"):
            journal(tmp_path, tokens=4)
        assert (tmp_path / "j.jsonl").read_text("utf-8") == other

    def test_what_rounds_otherwise_is_a_setting(self) -> None:
        assert computed_by() == {"threads": torch.get_num_threads(), "torch": torch.__version__}

    def test_a_journal_keeps_every_letter(self, tmp_path: Path) -> None:
        row = {"text": "naïve\u2028two\x85lines 東京"}
        journal(tmp_path, tokens=4).add(row)
        with (tmp_path / "j.jsonl").open("ab") as file:
            file.write('{"text": "東'.encode()[:-1])  # cut off within a letter
        assert journal(tmp_path, tokens=4).rows == [row]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read from Linux")
def test_the_peak_is_that_of_the_block() -> None:
    def peak_of(megabytes: int) -> int:
        with PeakMemory(CPU) as peak:
            torch.ones(megabytes * 2**18).sum()
        assert peak.bytes is not None
        return peak.bytes

    large, small = peak_of(96), peak_of(1)
    assert 90 * 2**20 < large < 130 * 2**20
    assert small < 40 * 2**20

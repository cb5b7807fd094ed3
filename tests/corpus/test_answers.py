"""A model's own answers: resumable, token by token, and the ones that plain decoding gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("wordfreq", reason="needs the train extra")

from transformers import LlamaForCausalLM

from speech_mtp.corpus import answers
from speech_mtp.corpus.answers import (
    Answer,
    AnswerConfig,
    InventConfig,
    invent_prompts,
    like_lengths,
    read_answers,
    read_prompts,
    write_answers,
    write_selfwritten,
)
from speech_mtp.corpus.manifest import read_lines
from speech_mtp.corpus.selfwrite import Drawing, chat_tokens, sample_answers
from speech_mtp.decoding.static_batch import StaticBatch
from speech_mtp.lm.text_lm import TextLM
from tests.lm.tiny import tiny_config, tiny_tokenizer

PROMPTS = ["hello there", "the lazy dog", "jumps", "good morning, fox", "quick"]
TOKENIZER: Any = tiny_tokenizer()
END = TOKENIZER.eos_token_id


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(1)).eval()


@pytest.fixture(scope="module")
def ending(model: Any) -> Any:
    """A copy that likes to end its answers."""
    copy = LlamaForCausalLM(tiny_config(1)).eval()
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        copy.lm_head.weight[END] = copy.lm_head.weight.abs().sum(0)
    return copy


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, model: Any, temperature: float) -> None:
    config = AnswerConfig(batch=2, max_new_tokens=8, temperature=temperature)
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    lm = TextLM(model, TOKENIZER)
    assert write_answers(lm, PROMPTS, whole, config) == 5
    assert write_answers(lm, PROMPTS[:2], parts, config) == 2
    with parts.open("a") as file:
        file.write('{"index": 2, "prom')  # the line that a kill cut off
    assert write_answers(lm, PROMPTS, parts, config) == 3
    assert parts.read_text() == whole.read_text()
    with pytest.raises(ValueError, match="written from other prompts"):
        write_answers(lm, PROMPTS[::-1], whole, config)


@pytest.mark.parametrize("at_once", [0, 1, 2, 9])
def test_greedy_answers_are_what_the_model_says_alone(tmp_path: Path, model: Any, at_once: int) -> None:
    path = tmp_path / "answers.jsonl"
    config = AnswerConfig(batch=5, max_new_tokens=6, at_once=at_once)
    write_answers(TextLM(model, TOKENIZER), PROMPTS, path, config)
    lines = list(read_lines(path))
    assert [line["prompt"] for line in lines] == PROMPTS
    for line in lines:
        assert line["prompt_ids"] == chat_tokens(TOKENIZER, line["prompt"])
        ids = torch.tensor([line["prompt_ids"]])
        alone = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=END, pad_token_id=END)
        assert line["answer_ids"] == alone[0, ids.shape[1] :].tolist()


def test_who_answers_together_changes_nothing(tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows end at different times, and others take their places."""
    said, lm = [], TextLM(model, TOKENIZER)
    monkeypatch.setattr(TextLM, "ends", frozenset(range(0, lm.vocab_size, 5)))
    prompts = [f"{prompt} {i}" for i in range(4) for prompt in PROMPTS]
    for at_once in (0, 3, 8):
        path = tmp_path / f"{at_once}.jsonl"
        config = AnswerConfig(temperature=1.0, max_new_tokens=12, batch=20, at_once=at_once)
        assert write_answers(lm, prompts, path, config) == 20
        said.append(path.read_text())
    assert said[0] == said[1] == said[2]
    assert len({len(line["answer_ids"]) for line in read_lines(path)}) > 2


@pytest.mark.parametrize("at_once", [2, 0])
def test_so_many_are_answered_at_once(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    rows, verify = [], TextLM.verify

    def counting(lm: TextLM, state: Any, *given: Any) -> Any:
        rows.append(len(state.last))
        return verify(lm, state, *given)

    monkeypatch.setattr(TextLM, "verify", counting)
    config = AnswerConfig(batch=5, max_new_tokens=6, at_once=at_once)
    write_answers(TextLM(model, TOKENIZER), PROMPTS, tmp_path / "answers.jsonl", config)
    assert max(rows) == (at_once or len(PROMPTS))


@pytest.mark.parametrize("longest_first", [True, False])
def test_what_does_not_fit_into_the_context_is_refused(tmp_path: Path, model: Any, longest_first: bool) -> None:
    lm, prompts = TextLM(model, TOKENIZER), ["quick", "quick brown fox " * 20]
    room = lm.max_positions - len(chat_tokens(TOKENIZER, prompts[1])) + 1
    config = AnswerConfig(batch=2, max_new_tokens=room, max_prompt_tokens=10_000)
    with pytest.raises(ValueError, match=f"the model reads {lm.max_positions}"):
        write_answers(lm, prompts[:: -1 if longest_first else 1], tmp_path / "a.jsonl", config)


def test_the_end_is_kept_and_nothing_after_it(tmp_path: Path, ending: Any) -> None:
    path = tmp_path / "answers.jsonl"
    write_answers(TextLM(ending, TOKENIZER), PROMPTS, path, AnswerConfig(temperature=1.0, max_new_tokens=40))
    said = [line["answer_ids"] for line in read_lines(path)]
    ended = [answer for answer in said if END in answer]
    assert len(ended) >= 3
    assert all(answer.index(END) == len(answer) - 1 for answer in ended)
    greedy = tmp_path / "greedy.jsonl"
    write_answers(TextLM(ending, TOKENIZER), PROMPTS, greedy, AnswerConfig(max_new_tokens=40))
    said = [line["answer_ids"] for line in read_lines(greedy)]
    rows = [chat_tokens(TOKENIZER, prompt) for prompt in PROMPTS]
    cut = sample_answers(ending, TOKENIZER, rows, Drawing(temperature=0.0, top_k=1, max_new_tokens=40), seed=0)
    assert cut == [answer[:-1] if answer[-1] == END else answer for answer in said]


def test_the_same_prompt_is_answered_in_other_words(tmp_path: Path, model: Any) -> None:
    path = tmp_path / "answers.jsonl"
    config = AnswerConfig(temperature=1.0, max_new_tokens=12, batch=2)
    write_answers(TextLM(model, TOKENIZER), [PROMPTS[0]] * 4, path, config)
    said = {tuple(line["answer_ids"]) for line in read_lines(path)}
    assert len(said) == 4


def test_selfwritten_texts_are_answers_too(tmp_path: Path) -> None:
    source, path = tmp_path / "written.jsonl", tmp_path / "answers.jsonl"
    texts = ["the lazy dog", "hello there, the quick fox jumps over the lazy dog"]
    lines = [{"index": i, "prompt": PROMPTS[i], "text": text} for i, text in enumerate(texts)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    most = len(TOKENIZER(texts[1], add_special_tokens=False)["input_ids"])
    assert write_selfwritten(TOKENIZER, [source], path, most) == 2
    ended, cut = read_answers([path])
    assert ended.prompt == tuple(chat_tokens(TOKENIZER, PROMPTS[0]))
    assert TOKENIZER.decode(ended.answer[:-1]) == texts[0]
    assert ended.answer[-1] == END
    assert TOKENIZER.decode(cut.answer) == texts[1]


def test_many_at_once_are_the_answers_of_plain_decoding(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = AnswerConfig(batch=2, max_new_tokens=9, temperature=0.8, top_p=0.9, sample_every=2)
    copy = LlamaForCausalLM(tiny_config(1)).eval()
    copy.load_state_dict(model.state_dict())
    lm = TextLM(copy, TOKENIZER).prepare()
    monkeypatch.setattr(answers, "_many_at_once", lambda lm, *sizes: StaticBatch(lm, *sizes))
    write_answers(lm, PROMPTS, tmp_path / "many.jsonl", config)
    many = list(read_lines(tmp_path / "many.jsonl"))
    assert sorted(line["prompt"] for line in many) == sorted(PROMPTS)
    monkeypatch.undo()
    write_answers(lm, [line["prompt"] for line in many], tmp_path / "plain.jsonl", config)
    assert list(read_lines(tmp_path / "plain.jsonl")) == many
    greedy = AnswerConfig(batch=2, max_new_tokens=9)
    write_answers(lm, [line["prompt"] for line in many], tmp_path / "greedy.jsonl", greedy)
    same = [a == b for a, b in zip(many, read_lines(tmp_path / "greedy.jsonl"), strict=True)]
    assert same[:2] == [True, True], "the first batch is greedy"
    assert not all(same), "the second is drawn"


def test_batches_hold_prompts_of_like_length_in_a_random_order() -> None:
    prompts = [str(i) for i in range(100)]
    lengths = [7 * i % 100 for i in range(100)]
    made = like_lengths(prompts, lengths, 5, seed=0)
    assert sorted(made) == sorted(prompts)
    sizes = [lengths[int(prompt)] for prompt in made]
    spread = [max(sizes[at : at + 5]) - min(sizes[at : at + 5]) for at in range(0, 100, 5)]
    assert sum(spread) / len(spread) < 35
    assert 20 < sum(sizes[:20]) / 20 < 80, "the first ones are neither the short nor the long ones"
    assert made == like_lengths(prompts, lengths, 5, seed=0) != like_lengths(prompts, lengths, 5, seed=1)


def test_writing_stops_when_the_time_is_over_and_goes_on(tmp_path: Path, model: Any) -> None:
    path, lm = tmp_path / "answers.jsonl", TextLM(model, TOKENIZER)
    assert write_answers(lm, PROMPTS, path, AnswerConfig(batch=2, max_new_tokens=2, max_time_s=1e-9)) == 0
    assert write_answers(lm, PROMPTS, path, AnswerConfig(batch=2, max_new_tokens=2, max_time_s=1e9)) == 5


def test_prompts_are_invented_once(tmp_path: Path, model: Any) -> None:
    path, config = tmp_path / "prompts.jsonl", InventConfig(prompts=6, batch=4, max_new_tokens=3)
    prompts = invent_prompts(TextLM(model, TOKENIZER), path, config)
    assert len(prompts) == len(set(prompts)) > 2
    assert invent_prompts(TextLM(model, TOKENIZER), path, config) == prompts
    assert len(list(read_lines(path))) == 6
    assert not any("<|im" in prompt or prompt != prompt.strip() for prompt in prompts)


def test_long_prompts_are_left_out(tmp_path: Path, model: Any) -> None:
    longest = max(PROMPTS, key=lambda prompt: len(chat_tokens(TOKENIZER, prompt)))
    limit = len(chat_tokens(TOKENIZER, longest)) - 1
    path = tmp_path / "answers.jsonl"
    config = AnswerConfig(max_prompt_tokens=limit, max_new_tokens=2)
    assert write_answers(TextLM(model, TOKENIZER), [longest, "quick"], path, config) == 1
    assert [line["prompt"] for line in read_lines(path)] == ["quick"]


def test_prompts_and_answers_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "given.jsonl"
    path.write_text('{"question": " Why? "}\n{"question": "How?"}\n')
    assert read_prompts(path, "question") == ["Why?", "How?"]
    with pytest.raises(ValueError, match=r"line 1 has no text under 'questions'; did you mean 'question'\?"):
        read_prompts(path, "questions")
    lines = [{"prompt_ids": [1, 2], "answer_ids": [3]}, {"prompt_ids": [1], "answer_ids": [3, 4]}]
    written = tmp_path / "answers.jsonl"
    written.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0]]))
    assert read_answers([written]) == [Answer((1, 2), (3,)), Answer((1,), (3, 4))]
    with pytest.raises(ValueError, match=r"given\.jsonl, line 1 is no answer"):
        read_answers([path])

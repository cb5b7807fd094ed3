"""An answer that is written and spoken at once: both are what they are alone, and text goes first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from jinja2 import TemplateError

from speech_mtp.decoding import catalogue
from speech_mtp.lm.chat import opening
from speech_mtp.streaming.authors import AuthorError, OwnAuthor, TooLongError, Wish, fit
from speech_mtp.streaming.chat import Chat
from speech_mtp.streaming.conversation import Writer
from speech_mtp.streaming.endpoint import MOST_CHARS, Endpoint
from speech_mtp.streaming.pipeline import speak
from speech_mtp.streaming.reply import Reply, reply
from speech_mtp.streaming.scheduler import Scheduler, run_to_end
from speech_mtp.streaming.stream import Chunk
from tests.streaming.fake_endpoint import Script, endpoint
from tests.text_tiny import tiny_head, tiny_text_lm
from tests.tiny import tiny_model

MODEL = tiny_model()
LM = tiny_text_lm()
HELLO = [{"role": "user", "content": "Hello there!"}]
FOX = ["The qui", "ck **brown", "** fox jumps over", " 3 dogs. It is", " good, and we like it.", " Hello there."]


def scheduler(**more: Any) -> Scheduler:
    return Scheduler(MODEL, Writer(LM, catalogue.build("chain", tiny_head(LM))), **more)


def author() -> OwnAuthor:
    return OwnAuthor("tiny", LM.tokenizer, LM.max_positions)


def both(made: Reply) -> tuple[str, list[Chunk]]:
    items = list(made)
    text = "".join(item for item in items if isinstance(item, str))
    return text, [item for item in items if isinstance(item, Chunk)]


def wave(chunks: list[Chunk]) -> torch.Tensor:
    return torch.cat([chunk.wave for chunk in chunks])


def words(chunks: list[Chunk]) -> list[str]:
    return [word.word for chunk in chunks for word in chunk.words]


@pytest.fixture
def remote() -> Iterator[Callable[..., tuple[Endpoint, Script]]]:
    stacks = []

    def start(pieces: list[str], **more: Any) -> tuple[Endpoint, Script]:
        stacks.append(endpoint(Script(pieces, **more)))
        script = stacks[-1].__enter__()
        return Endpoint(script.url, "theirs", "the key"), script

    yield start
    for stack in stacks:
        stack.__exit__(None, None, None)


# -- text and sound ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("temperature", [None, 0.8])
def test_both_are_what_they_are_alone(temperature: float | None) -> None:
    wish = Wish(temperature=temperature, seed=4, max_tokens=40)
    made = reply(scheduler(), author(), HELLO, "low", wish)
    text, chunks = both(made)
    assert text == made.text == both(reply(scheduler(), author(), HELLO, "high", wish))[0]
    if temperature is None:
        assert text == "".join(Chat(LM, catalogue.build("vanilla"), max_new_tokens=40).ask("Hello there!"))
    alone = list(speak(MODEL, [text], "low"))
    torch.testing.assert_close(wave(chunks), wave(alone), atol=1e-5, rtol=0)
    assert words(chunks) == words(alone) != []
    assert made.outcome is not None
    assert made.outcome.finish.reason == ("length" if temperature is None else "stop")
    assert made.outcome.tokens is not None
    assert (made.outcome.tokens == 40) == (temperature is None)
    assert made.outcome.prompt_tokens == len(opening(LM.tokenizer, HELLO))
    assert made.outcome.statistics is not None
    assert made.outcome.statistics.forwards < made.outcome.tokens
    assert made.first_text_s is not None
    assert made.first_audio_s is not None
    assert made.first_text_s < made.first_audio_s


def test_text_is_never_held_up_by_its_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 10  # sound always runs low
        return now[0]

    one = scheduler(clock=clock)
    talk = one.chat(max_new_tokens=60)
    talk.ask("Hello there!")
    ticks = 0
    while talk.writing:
        one.tick()
        ticks += 1
    talk.close()
    tick, ticked = one.tick, []
    monkeypatch.setattr(one, "tick", lambda: ticked.append(0) or tick())
    made = reply(one, author(), HELLO, "low", Wish(max_tokens=60))
    for item in made:
        if isinstance(item, str):
            needed = len(ticked)
    assert needed <= ticks
    assert len(ticked) > ticks, "it was spoken on when all was written"


def test_sound_comes_while_text_is_written(remote: Callable[..., tuple[Endpoint, Script]]) -> None:
    heard = threading.Event()
    pieces = ["The quick brown fox jumps over the lazy dog and the other fox. It is", " good."]
    theirs, _ = remote(pieces, before=lambda i: None if i == 0 else assert_set(heard))
    made = reply(Scheduler(MODEL), theirs, HELLO, "low")
    for item in made:
        if isinstance(item, Chunk) and len(item.wave):
            heard.set()
    assert made.text == "".join(pieces)


def assert_set(event: threading.Event) -> None:
    assert event.wait(20), "no sound came before the text had ended"


def test_leaving_stops_both() -> None:
    one = scheduler()
    items = iter(reply(one, author(), HELLO, "low", Wish(max_tokens=400)))
    while not isinstance(item := next(items), Chunk) or not len(item.wave):
        continue
    items.close()  # type: ignore[attr-defined]
    one.tick()
    assert not one.streams
    assert one.writer is not None
    assert not one.writer._writing
    assert not one.writer._placed
    assert not one.tick()
    assert both(reply(one, author(), HELLO, "low", Wish(max_tokens=12)))[0]


def test_what_is_asked_for_at_once_is_cancelled_before_it_was_read() -> None:
    one = scheduler()
    made = reply(one, author(), HELLO, "low")
    made.cancel()
    assert made.outcome is not None
    assert made.outcome.finish.reason == "cancelled"
    run_to_end(one)
    assert made.stream.done


def test_what_cannot_be_spoken_is_written_on(remote: Callable[..., tuple[Endpoint, Script]]) -> None:
    pieces = ["Это не английский текст, ", "и он продолжается дальше, ", "до самого конца."]
    made = reply(Scheduler(MODEL), remote(pieces)[0], HELLO, "low")
    assert both(made)[0] == "".join(pieces)
    assert made.speech_error is not None
    assert "English" in str(made.speech_error)


def test_an_answer_without_a_word_is_silent(remote: Callable[..., tuple[Endpoint, Script]]) -> None:
    made = reply(Scheduler(MODEL), remote(["!", " --"])[0], HELLO, "low")
    text, chunks = both(made)
    assert text == "! --"
    assert not len(wave(chunks))
    assert made.speech_error is None


# -- the history ------------------------------------------------------------------------------------------------------
def turns(count: int) -> list[dict[str, str]]:
    found = [{"role": "system", "content": "the lazy dog"}]
    for i in range(count):
        found += [
            {"role": "user", "content": f"Hello {i}, " * 9},
            {"role": "assistant", "content": "Good morning. " * 3},
        ]
    return [*found, {"role": "user", "content": "Hello there!"}]


def test_a_long_history_loses_its_oldest_turns_and_says_so() -> None:
    history = turns(12)
    made = reply(scheduler(), author(), history, "low", Wish(max_tokens=100))
    kept = made.question.messages
    assert made.dropped == len(history) - len(kept) > 0
    assert kept[0] == history[0]
    assert kept[1:] == history[1 + made.dropped :]
    assert kept[1]["role"] == "user"
    tokens = len(opening(LM.tokenizer, kept))
    assert tokens <= 512 - 100 < tokens + len(opening(LM.tokenizer, history[1:4]))
    assert both(made)[0] == both(reply(scheduler(), author(), kept, "low", Wish(max_tokens=100)))[0]
    assert reply(scheduler(), author(), turns(1), "low").dropped == 0


def test_one_message_that_is_too_long_is_refused() -> None:
    for history in (
        [{"role": "user", "content": "the quick brown fox " * 200}],
        [{"role": "system", "content": "fox " * 600}, *HELLO],
        [*turns(2), {"role": "user", "content": "the quick brown fox " * 200}],
    ):
        with pytest.raises(TooLongError, match="tokens longer than the 256 that the model can read"):
            author().prepare(history, Wish())


def test_roles_that_the_template_refuses() -> None:
    class Picky:
        chat_template = "{{ raise_exception('roles must alternate') }}"

        def apply_chat_template(self, *_: Any, **__: Any) -> str:
            raise TemplateError("Conversation roles must alternate.")

    with pytest.raises(ValueError, match="cannot read such a history: Conversation roles must alternate"):
        fit(Picky(), HELLO, 100)


# -- an endpoint ------------------------------------------------------------------------------------------------------
def test_an_endpoint_is_voiced(remote: Callable[..., tuple[Endpoint, Script]]) -> None:
    theirs, script = remote(FOX)
    wish = Wish(temperature=0.5, top_p=0.9, seed=3, max_tokens=20, stops=("END",))
    made = reply(Scheduler(MODEL), theirs, turns(1), "low", wish)
    text, chunks = both(made)
    assert text == "".join(FOX)
    assert words(chunks)[:7] == ["The", "quick", "brown", "fox", "jumps", "over", "three"]
    torch.testing.assert_close(wave(chunks), wave(list(speak(MODEL, [text], "low"))), atol=1e-5, rtol=0)
    assert made.outcome is not None
    assert (made.outcome.prompt_tokens, made.outcome.tokens) == (11, 7)
    assert made.outcome.finish.reason == "length"
    (asked,) = script.requests
    assert asked == {
        "model": "theirs",
        "messages": turns(1),
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "max_tokens": 20,
        "stop": ["END"],
    }
    assert script.headers[0]["path"] == "/v1/chat/completions"
    assert script.headers[0]["Authorization"] == "Bearer the key"
    both(reply(Scheduler(MODEL), theirs, HELLO, "low"))
    assert script.requests[1].keys() == {"model", "messages", "stream", "stream_options"}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"status": 400}, "refuses: too long for me"),
        ({"status": 401}, "answers with 401"),
        ({"status": 302}, "answers with 302"),
        ({"breaks": True}, "broke off in the middle"),
        ({"pieces": ["x" * (MOST_CHARS + 1)]}, "longer than"),
    ],
)
def test_an_endpoint_that_fails(
    remote: Callable[..., tuple[Endpoint, Script]], more: dict[str, Any], sentence: str
) -> None:
    theirs, _ = remote(**{"pieces": ["Hello."], **more})
    with pytest.raises(AuthorError, match=sentence) as failed:
        both(reply(Scheduler(MODEL), theirs, HELLO, "low"))
    assert "secret" not in str(failed.value)


def test_nobody_is_at_the_endpoint() -> None:
    with pytest.raises(AuthorError, match="cannot be reached"):
        both(reply(Scheduler(MODEL), Endpoint("http://127.0.0.1:1/v1", "x"), HELLO, "low"))
    for url in ("ftp://x/v1", "file:///etc/passwd", "127.0.0.1:8080", ""):
        with pytest.raises(ValueError, match="no address of HTTP"):
            Endpoint(url, "x")


def test_leaving_hangs_up_on_the_endpoint(remote: Callable[..., tuple[Endpoint, Script]]) -> None:
    going_on = threading.Event()
    theirs, script = remote(["Hello. "] * 5000, before=lambda i: None if i < 2 else bool(going_on.wait(20)))
    items = iter(reply(Scheduler(MODEL), theirs, HELLO, "low"))
    assert next(items)
    items.close()  # type: ignore[attr-defined]
    going_on.set()
    assert script.left.wait(20)


def test_drafting_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from speech_mtp.streaming import pays

    rule = catalogue.build("chain", tiny_head(LM))
    for drafted_s, plain_s, expected in ((1.0, 2.0, True), (2.0, 1.0, False)):
        monkeypatch.setattr(pays, "_seconds", lambda w, d=drafted_s, p=plain_s: d if w.rule is rule else p)
        assert pays.drafting_pays(LM, rule) is expected
    monkeypatch.undo()
    assert pays._seconds(Writer(LM, rule)) > 0

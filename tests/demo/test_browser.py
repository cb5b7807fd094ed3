"""The page as a person uses it, in a headless browser: each tab, and the states that go wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speech_mtp.serving.settings import Settings
from tests.demo.showing import CHROMIUM, Reciter, looking, showing
from tests.serving.hearing import FakeRecogniser
from tests.serving.running import LONG, Running, until
from tests.serving.talking import _by_loudness  # noqa: F401  # a fixture

pytestmark = pytest.mark.slow
ACCEPTING = "--use-fake-ui-for-media-stream"
ALLOWED = {"permissions": ["microphone"]}
QUESTION = "Why is the sky blue?"
RATE = 48_000


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with showing(recogniser=FakeRecogniser("Hello there")) as running:
        yield running


@pytest.fixture(scope="module")
def reciting() -> Iterator[Running]:
    """A server whose answers are words."""
    with showing(author=Reciter(LONG), make_writer=None) as running:
        yield running


@pytest.fixture(scope="module")
def playwright() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    with sync_api.sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def page(playwright: Any) -> Iterator[Any]:
    with looking(playwright, ACCEPTING, **ALLOWED) as page:
        yield page


def opened(page: Any, server: Running, tab: str | None = None) -> Any:
    """The page, drawn."""
    page.goto(f"{server.url}/demo/")
    page.wait_for_selector(".widget-chat .chat")
    if tab is not None:
        page.get_by_role("tab", name=tab).click()
    return page


def state(page: Any, *wanted: str) -> None:
    """Wait until the chat is in one of the states ``wanted``."""
    page.wait_for_function("names => names.includes(document.querySelector('.chat').dataset.state)", arg=list(wanted))


def ask(page: Any, text: str = QUESTION) -> None:
    page.get_by_label("Message").fill(text)
    page.get_by_role("button", name="Send").click()


def heard_words(page: Any) -> int:
    return int(page.locator(".word.heard").count())


# -- the voice chat ------------------------------------------------------------------------------------------------
def test_what_is_typed_is_answered_aloud_and_shown_as_it_is_made(page: Any, server: Running) -> None:
    opened(page, server)
    page.problems.clear()
    ask(page)
    state(page, "speaking")
    assert page.locator(".turns .you p").inner_text() == QUESTION
    page.wait_for_function("document.querySelectorAll('.word.heard').length > 0")
    assert page.locator(".word.now").count() <= 1
    assert page.locator(".orb-box .state").inner_text() == "Speaking"
    page.wait_for_function("document.querySelectorAll('.tokens .token').length > 10")
    assert page.locator(".bars i").count() > 3
    page.wait_for_function("/\\d/.test(document.querySelector('.figures dd').textContent)")
    page.keyboard.press("Escape")
    state(page, "idle")
    assert page.problems == []
    assert [address for address in page.asked if not address.startswith((server.url, "data:", "blob:"))] == []


def test_an_interruption_strikes_what_was_not_heard(page: Any, reciting: Running) -> None:
    server = reciting
    opened(page, server)
    ask(page)
    page.wait_for_function("document.querySelectorAll('.word.heard').length > 2")
    inside = """[...document.querySelectorAll('.word.now')].every(word => {
        const [one, box] = [word, document.querySelector('.transcript')].map(e => e.getBoundingClientRect());
        return one.top >= box.top && one.bottom <= box.bottom;
    })"""
    assert page.evaluate(inside), "the word that sounds is in sight, however long the text"
    page.get_by_role("button", name=re.compile("^Speaking")).click()
    page.wait_for_function("document.querySelectorAll('.word.struck').length > 0")
    assert page.locator(".orb-box").get_attribute("data-state") in ("interrupted", "idle")
    page.wait_for_function("document.querySelectorAll('.word.struck').length === 0")
    assert page.locator(".answer").inner_text().endswith("interrupted")
    assert heard_words(page) == page.locator(".word").count()
    until(lambda: not server.service.answering and not server.service.speaking)
    ask(page, "And the sea?")
    state(page, "speaking")
    assert page.locator(".turns li").count() == 4
    page.keyboard.press("Escape")


def test_drafting_can_be_turned_off_and_both_figures_stay(page: Any, server: Running) -> None:
    opened(page, server)
    for sides in (1, 2):
        ask(page)
        page.wait_for_function(
            "wanted => document.querySelectorAll('.sides b').length === 2 && "
            "[...document.querySelectorAll('.sides b')].filter(b => /\\d/.test(b.textContent)).length === wanted",
            arg=sides,
        )
        page.keyboard.press("Escape")
        state(page, "idle")
        page.get_by_role("switch", name="Drafting").click()
    assert page.locator(".sides b").nth(1).inner_text() == "1.00 ×"


def test_a_reload_in_mid_answer_leaves_nothing_behind(page: Any, server: Running) -> None:
    opened(page, server)
    ask(page)
    state(page, "speaking")
    page.reload()
    page.wait_for_selector(".widget-chat .chat")
    until(lambda: not server.service.answering and not server.service.speaking)
    state(page, "idle")
    ask(page)
    state(page, "speaking")


def test_a_server_that_leaves_is_told_of(playwright: Any) -> None:
    with looking(playwright, ACCEPTING, **ALLOWED) as page:
        with showing() as server:
            opened(page, server)
            ask(page)
            state(page, "speaking")
            server.server.should_exit = server.server.force_exit = True
            page.wait_for_selector(".talk .notice:not([hidden])")
        ask(page)
        page.wait_for_function("document.querySelector('.talk .notice').textContent.includes('server is running')")


def test_space_is_for_talking_and_not_while_typing(page: Any, server: Running) -> None:
    opened(page, server)
    page.get_by_label("Message").focus()
    page.keyboard.type("a b")
    assert page.get_by_label("Message").input_value() == "a b"
    page.evaluate("document.activeElement.blur()")
    page.keyboard.down("Space")
    state(page, "listening")
    page.keyboard.up("Space")
    state(page, "idle")


# -- the microphone -------------------------------------------------------------------------------------------------
def recording(path: Path) -> Path:
    """Two turns of something loud and uneven as speech is, with silence around them: 48 kHz, 16 bits."""
    time = np.arange(int(1.6 * RATE)) / RATE
    voice = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 12))
    turn = 0.4 * voice * (0.55 + 0.45 * np.sin(2 * np.pi * 4 * time))
    silence = np.zeros(2 * RATE)
    soundfile.write(path, np.concatenate([silence, turn, silence, silence, silence]), RATE, subtype="PCM_16")
    return path


@pytest.mark.usefixtures("_by_loudness")
def test_what_is_said_is_heard_answered_and_interrupted_by_speaking(playwright: Any, tmp_path: Path) -> None:
    file = recording(tmp_path / "turns.wav")
    flags = (ACCEPTING, f"--use-file-for-fake-audio-capture={file}")
    with showing(recogniser=FakeRecogniser("Hello there")) as server, looking(playwright, *flags, **ALLOWED) as page:
        opened(page, server)
        page.get_by_role("button", name=re.compile("Allow the microphone")).click()
        state(page, "listening")
        page.wait_for_function("document.querySelector('.turns .you p')?.textContent === 'Hello there'")
        state(page, "speaking")
        state(page, "interrupted")  # by the second turn of the recording, which repeats
        page.wait_for_function("document.querySelectorAll('.turns .you').length >= 2")
        page.keyboard.press("Escape")
        state(page, "idle")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ("NotAllowedError", "is blocked"),
        ("NotFoundError", "was found"),
        ("NotReadableError", "Another program"),
    ],
)
def test_why_there_is_no_microphone_is_said_with_the_next_step(
    page: Any, server: Running, error: str, sentence: str
) -> None:
    opened(page, server)
    page.evaluate(
        "name => navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', name))", error
    )
    page.locator(".orb").click()
    page.wait_for_function("words => document.querySelector('.talk .notice').textContent.includes(words)", arg=sentence)
    state(page, "idle")
    ask(page)
    state(page, "speaking")


def test_a_microphone_that_is_denied_leaves_typing(playwright: Any, server: Running) -> None:
    with looking(playwright, "--deny-permission-prompts", permissions=[]) as page:
        opened(page, server)
        page.locator(".orb").click()
        page.wait_for_function("document.querySelector('.talk .notice').textContent.includes('is blocked')")
        ask(page)
        state(page, "speaking")


def test_an_insecure_page_says_so_and_still_answers_in_writing(playwright: Any) -> None:
    host = "voice.example"
    with (
        showing(Settings(allowed_hosts=(host, "127.0.0.1"))) as server,
        looking(playwright, f"--host-resolver-rules=MAP {host} 127.0.0.1") as page,
    ):
        page.goto(f"http://{host}:{server.port}/demo/")
        page.wait_for_function("document.querySelector('.talk .notice')?.textContent.includes('localhost')")
        ask(page)
        page.wait_for_function("document.querySelectorAll('.word').length > 0")
        until(lambda: not server.service.answering)
        state(page, "idle")


# -- the other tabs ---------------------------------------------------------------------------------------------------
def test_a_text_is_spoken_paused_and_played_again(page: Any, server: Running) -> None:
    opened(page, server, "Speak")
    page.get_by_role("button", name="Story", exact=True).click()
    page.locator(".speak .primary").click()
    page.wait_for_selector(".speak[data-state=sounding]")
    page.wait_for_function("Number(document.querySelector('.speak').dataset.playedMs) > 0")
    page.get_by_role("button", name="Pause").click()
    page.wait_for_selector(".speak[data-state=paused]")
    page.get_by_role("button", name="Play", exact=True).click()
    page.wait_for_selector(".speak[data-state=done]", timeout=60_000)
    figures = page.locator(".speak p.line").inner_text()
    assert re.search(r"first sound \d+ ms.*\d s of sound", figures)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download").click()
    wave, rate = soundfile.read(saved.value.path())
    assert rate == 24_000
    assert f"{len(wave) / rate:.1f} s of sound" in figures
    drawn = "document.querySelector('canvas.wave').getContext('2d').getImageData(0, 0, 4000, 90).data.some(x => x > 0)"
    assert page.evaluate(drawn)
    page.get_by_role("button", name="Play", exact=True).click()
    page.wait_for_selector(".speak[data-state=sounding]")


def test_a_text_that_cannot_be_spoken_is_refused_in_a_sentence(page: Any, server: Running) -> None:
    opened(page, server, "Speak")
    page.get_by_label("Text to speak").fill("привет")
    page.locator(".speak .primary").click()
    page.wait_for_selector(".speak > .notice:not([hidden])")
    page.get_by_label("Seed").fill("seven")
    page.locator(".speak .primary").click()
    page.wait_for_function("document.querySelector('.speak > .notice').textContent.includes('whole number')")


def test_ways_of_decoding_race_and_are_measured(page: Any, server: Running) -> None:
    opened(page, server, "Text")
    page.wait_for_selector(".text-lab")
    page.get_by_role("button", name="Race plain").click()
    page.wait_for_function("document.querySelectorAll('.lane .tokens .token').length > 20")
    page.wait_for_function("document.querySelector('.text-lab').dataset.busy === 'false'")
    drafted, plain = (lane.inner_text() for lane in page.locator(".lane .tokens").all())
    assert drafted == plain
    assert page.locator(".tree .node").count() > 1
    page.get_by_role("button", name="Measure all").click()
    page.wait_for_function(
        "[...document.querySelectorAll('.results td:last-child')].every(td => /\\d/.test(td.textContent))"
    )


def test_a_recording_is_said_again_in_another_voice(page: Any, server: Running, tmp_path: Path) -> None:
    opened(page, server, "Voices")
    file = tmp_path / "mine.wav"
    soundfile.write(file, 0.3 * np.sin(np.arange(RATE) * 0.03), RATE)
    again = page.locator(".pair .card").nth(1)
    again.locator("input[type=file]").set_input_files(file)
    again.get_by_role("button", name="Say it again").click()
    page.wait_for_function("document.querySelector('.pair').textContent.includes('1.0 s said again')")
    own = page.locator(".pair .card").nth(0)
    own.get_by_role("button", name="Make voice").click()
    assert "Choose a recording first" in own.inner_text()


def test_a_voice_is_made_of_a_recording_and_deleted(playwright: Any, tmp_path: Path) -> None:
    with (
        showing(Settings(voices_dir=tmp_path)) as server,
        looking(playwright, ACCEPTING, **ALLOWED) as page,
    ):
        opened(page, server, "Voices")
        own = page.locator(".pair .card").nth(0)
        own.locator("input[type=file]").set_input_files(recording(tmp_path / "mine.wav"))
        own.get_by_label("Name of the new voice").fill("mine")
        own.get_by_role("button", name="Make voice").click()
        assert "must agree first" in own.inner_text()
        own.get_by_role("checkbox").check()
        own.get_by_role("button", name="Make voice").click()
        page.wait_for_function("document.querySelector('.pair').textContent.includes('The voice mine is ready')")
        card = page.locator(".voice", has_text="mine")
        card.get_by_role("button", name="Play sample").click()
        page.wait_for_function("![...document.querySelectorAll('.voice button')].some(button => button.disabled)")
        assert page.locator(".voices > .notice:not([hidden])").count() == 0
        page.locator(".top select[name=voice]").select_option(label="mine")
        card.get_by_role("button", name="Delete").click()
        page.wait_for_function("document.querySelectorAll('.voice').length === 2")
        assert page.locator(".top select[name=voice]").input_value() == "low"


# -- form ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen(playwright: Any, server: Running, width: int, scheme: str) -> None:
    with looking(
        playwright, viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce"
    ) as page:
        opened(page, server)
        for tab in ("Voice chat", "Speak", "Voices", "Text", "About"):
            page.get_by_role("tab", name=tab).click()
            page.wait_for_selector(f".widget-{tab.split()[-1].lower()} > *")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(244, 246, 245)", "dark": "rgb(16, 21, 20)"}[scheme]


def test_every_control_has_a_name(page: Any, server: Running) -> None:
    opened(page, server)
    for tab in ("Voice chat", "Speak", "Voices", "Text"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_selector(f".widget-{tab.split()[-1].lower()} > *")
        nameless = page.evaluate(
            "[...document.querySelectorAll('.widget :is(button, input, select, textarea)')].filter("
            "e => !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length)).map(e => e.outerHTML)"
        )
        assert nameless == [], tab


def test_a_browser_shows_a_key_once(playwright: Any) -> None:
    key = "a-key-of-the-tests"
    with showing(Settings(keys=(key,))) as server, looking(playwright, ACCEPTING, **ALLOWED) as page:
        page.goto(server.url)
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Enter").click()
        page.wait_for_selector(".widget-chat .chat")
        ask(page)
        state(page, "speaking")
        page.get_by_role("tab", name="Text").click()
        page.wait_for_selector(".text-lab")

"""Markdown in pieces: the same plain text however it is cut, and prose as it was."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech_mtp.text.markup import URL_LOOK, Markup, plain
from tests.growth import assert_linear

texts = st.one_of(
    st.text(alphabet="ab 1.#*-_>|`~[]()<&!\n\\/ˈx:=;", max_size=40),
    st.lists(
        st.sampled_from(
            [
                "1. ",
                "I. ",
                "II. ",
                "A. ",
                "b. ",
                "(i) ",
                "- ",
                "# ",
                "**",
                "_",
                "`",
                "```",
                "\n",
                "\n\n",
                "a",
                "Wash it",
                " ",
                "| ",
                "---",
                "> ",
                "[a](b)",
                "[",
                "](/kˈO/)",
                "(http://a.b)",
                "<b>",
                "</b>",
                "&amp;",
                "![",
                "\\*",
                "5",
                ". ",
                "~~",
            ]
        ),
        max_size=25,
    ).map("".join),
)


@given(texts, st.data())
def test_any_cuts_give_the_text_of_the_whole(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    markup = Markup()
    out = "".join(markup.push(text[a:b]) for a, b in pairwise([0, *cuts, len(text)]))
    assert out + markup.flush() == plain(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. Wash it\n2. Dry it", "1, Wash it.\n\n2, Dry it."),
        ("# Hi there\n\nSome **bold** text.", "Hi there.\n\nSome bold text."),
        ("Buy:\n- milk\n- [x] eggs\n", "Buy:\n\nmilk.\n\neggs."),
        ("A | B\n---|---\n1 | 2", "A, B.\n\n1, 2."),
        ("See [the guide](https://a.org/b).", "See the guide."),
        ("```python\nprint(1)\n```\nafter", "print(1).\n\nafter"),
        ("x < 3, a*b, 3 * 5 and <b>_so_</b>", "x < 3, a*b, 3 * 5 and so"),
        ("> quoted\n> 5 men", "quoted\n> 5 men"),
        ("[Kokoro](/kˈOkəɹO/)'s [New York](/nˈu jˈɔɹk/)", "[Kokoro](/kˈOkəɹO/)'s [New-York](/nˈu_jˈɔɹk/)"),
        ("[Help](/help/) me", "Help me"),
        ("R&amp;D \\*x\\*", "R&D *x*"),
    ],
)
def test_what_is_left(text: str, expected: str) -> None:
    assert plain(text).strip() == expected


@given(st.lists(st.sampled_from(["It", "is", "so.", "(Yes)", "5", "men,", "'tis", "e.g.", "$5", "a-b"]), min_size=1))
def test_prose_passes_unchanged(words: list[str]) -> None:
    text = "So " + " ".join(words)
    assert plain(text) == text


def test_an_object_that_was_flushed_is_as_new() -> None:
    markup = Markup()
    first = [markup.push(piece) for piece in ("# A\n| b | `c", " d")] + [markup.flush()]
    assert vars(markup) == vars(Markup())
    assert [markup.push(piece) for piece in ("# A\n| b | `c", " d")] + [markup.flush()] == first


def test_words_are_handed_out_at_once() -> None:
    markup = Markup()
    assert markup.push("Hello the") == "Hello the"
    assert markup.push("re *you") == "re you"


@pytest.mark.parametrize(
    "text", ["[" * 9000, "[a](" * 2500, "<a " * 3000, "*a" * 5000, "`" * 9000, "|" * 9000, "# " * 5000]
)
def test_adversarial_text_is_linear_and_little_is_held(text: str) -> None:
    def push(text: str) -> None:
        markup = Markup()
        for char in text:
            markup.push(char)
            assert len(markup._rest) <= 2 * URL_LOOK

    assert_linear(push, text)

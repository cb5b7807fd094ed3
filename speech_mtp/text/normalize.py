"""Written English -> words that can be spoken.

The result holds only letters ``A-Z a-z``, apostrophes, hyphens inside words, single spaces and the marks
``. , ! ? ; :``, and the forms of :mod:`speech_mtp.text.inline` as they are. Numbers, dates, times, money, units,
addresses and abbreviations are written out, accents are folded, emoji are left out; a script that cannot be read is
refused by name. The rules are in :mod:`speech_mtp.text.names` and :mod:`speech_mtp.text.amounts`.
"""

from __future__ import annotations

import re
import unicodedata

from speech_mtp.text import inline, measures, tables
from speech_mtp.text.amounts import NUMBERS, REST, SIGNS
from speech_mtp.text.language import check_language
from speech_mtp.text.markup import plain
from speech_mtp.text.names import ADDRESSES, DATES, NAMES

RULES = (*ADDRESSES, *DATES, *NAMES, *SIGNS, *NUMBERS, *REST)
"""Tried in this order; each reads the text that the earlier ones left."""

HELD = "\ue000"
"""Stands for a form of phonemes while the words around it are read."""
SIGNS_READ = measures.SYMBOLS


def check_text(text: str, max_chars: int = 10_000) -> None:
    """Raise ValueError, in one sentence, unless ``text`` holds something to say in at most ``max_chars``."""
    if len(text) > max_chars:
        raise ValueError(f"The text has {len(text)} characters, more than the {max_chars} allowed; split it.")
    _check_words(text)
    shown = plain(text)
    if not any(c.isalnum() for c in shown):
        raise ValueError("The text holds only markup; there are no words to say.")
    inline.check_neighbours(shown)
    check_language(shown)


def normalize(text: str) -> str:
    """``"Dr. Lee paid $5.99 on 3/4/2024."`` -> "Doctor Lee paid five dollars and ninety-nine cents on ...".

    Idempotent. Raises ValueError for text with nothing to say and for scripts other than Latin, naming the
    script and the first characters.
    """
    _check_words(text)
    inline.check_neighbours(text)
    forms = [m[0] for m in inline.FORM.finditer(text)] if "](/" in text else []
    text = _plain_characters(inline.FORM.sub(HELD, text.replace(HELD, " ")) if forms else text.replace(HELD, " "))
    for _ in range(8):  # what was cleared away can, rarely, leave a new abbreviation or address behind
        before, text = text, _tidy(_expand(text))
        if text == before:
            break
    if not text:
        raise ValueError("The text holds no letters or numbers that can be spoken; there is nothing to say.")
    return re.sub(HELD, lambda _: forms.pop(0), text) if forms else text


def check_script(text: str) -> None:
    """Raise ValueError, in one sentence, for a script in ``text`` that cannot be read: much cheaper than reading it."""
    _plain_characters(inline.FORM.sub(HELD, text))


def _check_words(text: str) -> None:
    if not text.strip():
        raise ValueError("The text is empty; there is nothing to say.")
    if not any(c.isalnum() for c in text):
        symbol = next((c for c in text if unicodedata.category(c) in ("So", "Sk", "Sc", "Sm", "Cs", "Co", "Cn")), None)
        if symbol:
            name = unicodedata.name(symbol, f"U+{ord(symbol):04X}")
            raise ValueError(f"The text holds only emoji or symbols (first: {name}); there are no words to say.")
        raise ValueError("The text holds only punctuation; there are no words to say.")


def _plain_characters(text: str) -> str:
    """Accents folded, typography plain, emoji out; other scripts raise."""
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", text.replace("℃", "°C").replace("℉", "°F"))
    text = re.sub("[μµ](?=[A-Za-z])", "µ", text)  # the Greek letter, where it means micro
    text = re.sub(r"([A-Za-z]{3}|[.,!?\"”])[¹²³⁴-⁹⁰]{1,3}(?![⁻\w])", r"\1", text)  # marks of footnotes
    text = re.sub(r"[⁰¹²³⁴-⁹⁺⁻ⁿ]{1,9}", lambda m: "^" + unicodedata.normalize("NFKD", m[0]).replace("−", "-"), text)
    text = re.sub(r"(?<![\u0370-\u03ff])[\u0391-\u03c9](?![\u0370-\u03ff])", _greek, text)
    kept: list[str] = []
    for at, written in enumerate(text):
        plain_char = tables.PUNCTUATION.get(written, tables.LETTERS.get(written, written))
        for char in plain_char if plain_char in SIGNS_READ else unicodedata.normalize("NFKD", plain_char):
            kind = unicodedata.category(char)
            if char.isascii():
                kept.append(" " if kind == "Cc" else char)
            elif char in SIGNS_READ or char == HELD:
                kept.append(char)
            elif char == "⁄":
                kept.append("/")
            elif kind[0] == "L" or kind in ("Nd", "Nl", "No"):
                _refuse_script(text[at : at + 8])
            elif kind[0] != "M" and kind != "Cf":
                kept.append(" ")
    return re.sub(r"\s+", " ", "".join(kept)).strip()


def _greek(m: re.Match[str]) -> str:
    if m[0] == "Ω" and m.string[: m.start()].rstrip(" k")[-1:].isdigit():
        return " ohms"
    return f" {tables.GREEK[m[0]]} " if m[0] in tables.GREEK else m[0]


def _refuse_script(text: str) -> None:
    """Raise for the first character of ``text``, naming its script."""
    script = unicodedata.name(text[0], f"U+{ord(text[0]):04X}").split(" ")[0]
    script = {"CJK": "Chinese", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean"}.get(script, script)
    script = "special Latin" if script == "LATIN" else script.capitalize()
    raise ValueError(f"The text holds {script} characters ({text!r}) that cannot be read; write it in English letters.")


def _expand(text: str) -> str:
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    return "".join(f" {SIGNS_READ[c]} " if c in SIGNS_READ else c for c in text)


def _tidy(text: str) -> str:
    """Only the output alphabet; one mark between words; hyphens and apostrophes only inside or at words."""
    text = re.sub(r"[()\[\]{}]", ", ", text)
    text = re.sub(r"(?<!\.)\.{2,}+(?= ?[a-z])", ",", text)
    text = re.sub(r"[^A-Za-z\ue000' .,!?;:-]", " ", text)
    text = re.sub(r"''+|(?<![A-Za-z\ue000])'(?![A-Za-z\ue000])", " ", text)
    text = re.sub(r" --? | --?$|--", ", ", text)
    text = re.sub(r"(?<![A-Za-z\ue000])-|-(?![A-Za-z\ue000])", " ", text)
    text = re.sub(r" +", " ", text)
    text = re.sub(r"[ .,!?;:]*[.,!?;:][ .,!?;:]*", lambda m: max(m[0], key=" ,:;.!?".index) + " ", text)
    return text.strip(" ,:;.!?-") + _final_mark(text)


def _final_mark(text: str) -> str:
    """The mark that the text ends with, if it has any words."""
    end = text.rstrip(" -")
    return end[-1] if re.search(r"[A-Za-z\ue000]", text) and end[-1:] in (*".,!?;:",) else ""

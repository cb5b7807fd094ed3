"""Written English -> words that can be spoken.

The result holds only letters ``A-Z a-z``, apostrophes, hyphens inside words, single spaces and the marks
``. , ! ? ; :``. Numbers, dates, times, money, units, addresses and abbreviations are written out, accents
are folded, emoji are left out; a script that cannot be read is refused by name. Every pattern is linear:
its repetitions are bounded or cannot overlap with what follows.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from speech_mtp.text import numbers as say
from speech_mtp.text import tables

NUM = r"(?:\d{1,3}(?:,\d{3}){1,5}(?!\d)|\d{1,40})(?:\.\d{1,40})?"
START = r"(?<![\w.,])"  # a number does not start inside a word or another number
MONTH = r"(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.?(?![a-z])|" + "|".join(tables.MONTHS)
BIG = "|".join(sorted(tables.MAGNITUDES, key=len, reverse=True))
UNIT = "|".join(re.escape(u) for u in sorted(tables.UNITS, key=len, reverse=True))
TOP_LEVEL = "com|org|net|edu|gov|io|ai|co|uk|de|fr|eu|info|dev|app|me|tv|us|ca|au"

Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]


def check_text(text: str, max_chars: int = 10_000) -> None:
    """Raise ValueError, in one sentence, unless ``text`` holds something to say in at most ``max_chars``."""
    if len(text) > max_chars:
        raise ValueError(f"The text has {len(text)} characters, more than the {max_chars} allowed; split it.")
    if not text.strip():
        raise ValueError("The text is empty; there is nothing to say.")
    if not any(c.isalnum() or c in tables.SYMBOLS for c in text):
        symbol = next((c for c in text if unicodedata.category(c) in ("So", "Sk", "Cs", "Co", "Cn")), None)
        if symbol:
            name = unicodedata.name(symbol, f"U+{ord(symbol):04X}")
            raise ValueError(f"The text holds only emoji or symbols (first: {name}); there are no words to say.")
        raise ValueError("The text holds only punctuation; there are no words to say.")


def normalize(text: str) -> str:
    """``"Dr. Lee paid $5.99 on 3/4/2024."`` -> "Doctor Lee paid five dollars and ninety-nine cents on ...".

    Idempotent. Raises ValueError for text with nothing to say and for scripts other than Latin, naming the
    script and the first characters.
    """
    check_text(text, max_chars=max(len(text), 1))
    text = _plain_characters(text)
    for _ in range(8):  # what was cleared away can, rarely, leave a new abbreviation or address behind
        before, text = text, _tidy(_expand(text))
        if text == before:
            break
    if not text:
        raise ValueError("The text holds no letters or numbers that can be spoken; there is nothing to say.")
    return text


def _plain_characters(text: str) -> str:
    """Accents folded, typography plain, emoji out; other scripts raise."""
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", text.replace("℃", "°C").replace("℉", "°F"))
    text = re.sub("μ(?=[A-Za-z])", "µ", text)  # the Greek letter, where it means micro
    kept: list[str] = []
    for at, written in enumerate(text):
        plain = tables.PUNCTUATION.get(written, tables.LETTERS.get(written, written))
        for char in plain if plain in tables.SYMBOLS else unicodedata.normalize("NFKD", plain):
            kind = unicodedata.category(char)
            if char.isascii():
                kept.append(" " if kind == "Cc" else char)
            elif char in tables.SYMBOLS:
                kept.append(char)
            elif char == "⁄":
                kept.append("/")
            elif kind[0] == "L" or kind in ("Nd", "Nl", "No"):
                _refuse_script(text[at : at + 8])
            elif kind[0] != "M" and kind != "Cf":
                kept.append(" ")
    return re.sub(r"\s+", " ", "".join(kept)).strip()


def _refuse_script(text: str) -> None:
    """Raise for the first character of ``text``, naming its script."""
    script = unicodedata.name(text[0], f"U+{ord(text[0]):04X}").split(" ")[0]
    script = {"CJK": "Chinese", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean"}.get(script, script)
    script = "special Latin" if script == "LATIN" else script.capitalize()
    raise ValueError(f"The text holds {script} characters ({text!r}) that cannot be read; write it in English letters.")


def _expand(text: str) -> str:
    shouted = re.findall("[A-Z]{2,}", text)
    if len(shouted) > 3 and max(map(len, shouted)) > 4 and not re.search("[a-z]", text):
        text = re.sub(r"\bi\b", "I", text.lower())
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    return "".join(f" {tables.SYMBOLS[c]} " if c in tables.SYMBOLS else c for c in text)


def _tidy(text: str) -> str:
    """Only the output alphabet; one mark between words; hyphens and apostrophes only inside or at words."""
    text = re.sub(r"[()\[\]{}]", ", ", text)
    text = re.sub(r"(?<!\.)\.{2,}+(?= ?[a-z])", ",", text)
    text = re.sub(r"[^A-Za-z' .,!?;:-]", " ", text)
    text = re.sub(r"''+|(?<![A-Za-z])'(?![A-Za-z])", " ", text)
    text = re.sub(r" --? | --?$|--", ", ", text)
    text = re.sub(r"(?<![A-Za-z])-|-(?![A-Za-z])", " ", text)
    text = re.sub(r" +", " ", text)
    text = re.sub(r"[ .,!?;:]*[.,!?;:][ .,!?;:]*", lambda m: max(m[0], key=" ,:;.!?".index) + " ", text)
    return text.strip(" ,:;.!?-") + _final_mark(text)


def _final_mark(text: str) -> str:
    """The mark that the text ends with, if it has any words."""
    end = text.rstrip(" -")
    return end[-1] if re.search(r"[A-Za-z]", text) and end[-1:] in (*".,!?;:",) else ""


def _date(year: str, month: int, day: int, whole: str) -> str:
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return whole.replace("/", " ").replace("-", " ")
    return f"{tables.MONTHS[month - 1]} {say.ordinal(day)}, {say.integer_or_year(year)} "


def _us_date(m: re.Match[str]) -> str:
    month, day = int(m[1]), int(m[2])
    month, day = (day, month) if month > 12 else (month, day)
    return _date(m[3] if len(m[3]) == 4 else ("19" if int(m[3]) > 50 else "20") + m[3], month, day, m[0])


def _month_day(m: re.Match[str]) -> str:
    return f"{tables.MONTH[m[1][:3].lower()]} {say.ordinal(int(m[2]))}"


def _day_month(m: re.Match[str]) -> str:
    the = "" if m.string[max(0, m.start() - 4) : m.start()].lower() == "the " else "the "
    return f"{the}{say.ordinal(int(m[1]))} of {tables.MONTH[m[2][:3].lower()]}"


def _time(m: re.Match[str]) -> str:
    hour, minute, half = int(m[1]), int(m[2] or 0), m[4]
    words = say.cardinal(hour)
    if minute:
        words += f" {'oh ' if minute < 10 else ''}{say.cardinal(minute)}"
    elif not half and not m[3]:
        words += " o'clock" if 0 < hour <= 12 else " hundred"
    if m[3]:
        words += f" and {say.cardinal(int(m[3]))} second{'' if int(m[3]) == 1 else 's'}"
    return words + (f" {half.upper()}M" if half else "") + _stop_if_last(m)


def _stop_if_last(m: re.Match[str]) -> str:
    """A full stop that belonged to an abbreviation also ends the text, or the sentence before a capital."""
    return "." if m[0].endswith(".") and re.match(r"\W*$", m.string[m.end() : m.end() + 4]) else ""


def _money(m: re.Match[str]) -> str:
    minus, symbol, amount, big = m["minus"], m["sign"], m["amount"], m["big"]
    one, many, cent, cents = tables.CURRENCY[symbol]
    start = "minus " if minus else ""
    if big:
        return f"{start}{say.number(amount)} {tables.MAGNITUDES[big.lower()]} {many}"
    whole, _, part = amount.partition(".")
    if len(part) == 2 and cent:
        coins = f"{say.cardinal(int(part))} {cent if part == '01' else cents}"
        coins = "" if part == "00" else coins
        notes = "" if not whole.strip("0,") and coins else f"{say.number(whole)} {one if say.is_one(whole) else many}"
        return start + " and ".join(filter(None, (notes, coins)))
    return f"{start}{say.number(amount)} {one if say.is_one(amount) else many}"


def _unit(m: re.Match[str]) -> str:
    one, many = tables.UNITS[m[2]]
    power = {"²": "square ", "2": "square ", "³": "cubic ", "3": "cubic "}.get(m[3] or "", "")
    return f"{say.number(m[1])} {power}{one if say.is_one(m[1]) else many}"


def _address(m: re.Match[str]) -> str:
    """An e-mail or web address, with its scheme and final punctuation left off."""
    text = re.sub(r"^(?:https?|ftp)://", "", m[0], flags=re.IGNORECASE)
    bare = text.rstrip(".,!?;:'-/")
    mark = next((c for c in text[len(bare) :] if c in ".,!?;:"), "")
    words = re.sub(r"^www\.", "w w w.", bare, flags=re.IGNORECASE)
    words = re.sub(r"\d", lambda d: f" {say.digits(d[0])} ", words)
    return "".join(f" {tables.ADDRESS_WORDS[c]} " if c in tables.ADDRESS_WORDS else c for c in words) + mark


def _phone(m: re.Match[str]) -> str:
    plus = "plus " if m[0].startswith("+") else ""
    return plus + ", ".join(say.digits(group) for group in re.findall(r"\d+", m[0]))


def _roman(m: re.Match[str]) -> str:
    values = [{"I": 1, "V": 5, "X": 10, "L": 50}[c] for c in m[2]]
    total = sum(-v if v < max(values[i:]) else v for i, v in enumerate(values))
    return f"{m[1]} the {say.ordinal(total)}" if m[1] in tables.MONARCHS.split("|") else f"{m[1]} {say.cardinal(total)}"


def _abbreviation(m: re.Match[str]) -> str:
    words = tables.ABBREVIATIONS[m[1].lower()]
    return (words.capitalize() if m[1][0].isupper() else words) + _stop_if_last(m)


def _rule(pattern: str, replacement: Callable[[re.Match[str]], str], flags: int = 0) -> Rule:
    return re.compile(pattern, flags), replacement


CASELESS = re.IGNORECASE
SIGN_AFTER = r"[€£¥₹¢]|\$(?!\d)|(?:USD|EUR|GBP)\b"
SIGN = r"[$€£¥₹]|(?:USD|EUR|GBP)(?= ?\d)"

RULES: tuple[Rule, ...] = (
    # addresses and telephone numbers
    _rule(r"[\w.%+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}", _address),
    _rule(r"\b(?:https?://|ftp://|www\.)\S{1,2000}", _address, CASELESS),
    _rule(
        rf"\b(?<![@.])(?:[a-z\d-]{{1,63}}\.){{1,6}}(?:{TOP_LEVEL})\b(?!\.\w)(?:/[^\s,;!?]{{0,500}})?",
        _address,
        CASELESS,
    ),
    _rule(r"(?<![\w.])(?:\+?\d{1,3}[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?!\w)", _phone),
    _rule(r"(?<![\w.-])\d{3}-\d{4}(?![\w-])|\+\d{1,3}(?:[ -]\d{2,4}){2,5}(?!\w)|\+\d{7,15}(?!\w)", _phone),
    # dates and times
    _rule(r"\b(\d{4})-(\d\d)-(\d\d)\b", lambda m: _date(m[1], int(m[2]), int(m[3]), m[0])),
    _rule(r"\b(\d{1,2})/(\d{1,2})/(\d{4}|\d\d)\b", _us_date),
    _rule(rf"\b({MONTH}) ([12]\d|3[01]|0?[1-9])(?:st|nd|rd|th)?\b(?![:.]\d|,\d)", _month_day),
    _rule(rf"\b([12]\d|3[01]|0?[1-9])(?:st|nd|rd|th)? (?:of )?({MONTH})(?![A-Za-z])", _day_month),
    _rule(r"\b(?:(Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.)(?= )", lambda m: tables.MONTH[m[1][:3].lower()]),
    _rule(rf"\b({'|'.join(tables.WEEKDAYS)})\.(?=,? [A-Z])", lambda m: tables.WEEKDAYS[m[1]]),
    _rule(r"\b([01]?\d|2[0-4]):([0-5]\d)(?::([0-5]\d))?(?: ?([ap])(?:\.m\b\.?|m\b))?(?![:\d])", _time, CASELESS),
    _rule(r"\b(1[0-2]|0?[1-9])()() ?([ap])(?:\.m\b\.?|m\b)", _time, CASELESS),
    # abbreviations
    _rule(rf"\b({'|'.join(tables.TITLES)})\.? (?=[A-Z])", lambda m: f"{tables.TITLES[m[1]]} "),
    _rule(rf"\b({'|'.join(tables.BEFORE_NUMBER)})\. ?(?=\d)", lambda m: f"{tables.BEFORE_NUMBER[m[1]]} "),
    _rule(
        rf"(?<![\w.'])({'|'.join(re.escape(a) for a in tables.ABBREVIATIONS)})\.(?![A-Za-z\d])", _abbreviation, CASELESS
    ),
    _rule(r"(?<![\w.'])(vs|etc)\b(?!\.)", lambda m: tables.ABBREVIATIONS[m[1].lower()], CASELESS),
    _rule(
        r"(?<![\w.'])[A-Za-z](?:\.[A-Za-z]){1,7}(?:\.(?!\w)|(?![\w.]))",
        lambda m: m[0].replace(".", "").upper() + _stop_if_last(m),
    ),
    _rule(r"(?<![\w.'])([A-HJ-Z])\. (?=[A-Z][a-z.])", lambda m: f"{m[1]} "),
    _rule(rf"\b({tables.ROMAN_AFTER}|{tables.MONARCHS}) ([IVX]{{1,6}})\b(?!['.]\w)", _roman),
    _rule(r"\band/or\b", lambda m: "and or"),
    _rule(r"\b([a-z]{1,20})/(?=[a-z]{1,20}\b)(?<!\bkm/)(?<!\bm/)", lambda m: f"{m[1]} or "),
    _rule(r"\b24/7\b", lambda m: "twenty-four seven"),
    _rule(r"\bPh\.? ?D\b\.?", lambda m: "PhD" + _stop_if_last(m)),
    # numbers with something attached
    _rule(r"(?<=\d) (?=000\b)", lambda m: ""),
    _rule(r"\b(\d{1,2})'(\d{1,2})(?!\w)", lambda m: f"{m[1]} foot {m[2]}"),
    _rule(r"~ ?(?=\d)", lambda m: " about "),
    _rule(r"\^([23])(?!\d)", lambda m: " squared " if m[1] == "2" else " cubed "),
    _rule(r"\^(?=\d)", lambda m: " to the power of "),
    _rule(r"(?<=\d) - (?=[\d .,+x×*/-]{1,40}=)", lambda m: " minus "),
    _rule(r"(?<=\d) ?- ?(?=[$€£]?\d)|(?<=[%°CFkm]) ?- ?(?=[$€£]\d)", lambda m: " to "),
    _rule(r"(?<=\d):(?=\d)", lambda m: " to "),
    _rule(rf"(?P<minus>(?<![\w)])-)?(?P<sign>{SIGN}) ?(?P<amount>{NUM})(?: ?(?P<big>{BIG})\b)?", _money, CASELESS),
    _rule(
        rf"(?P<minus>(?<![\w)])-)?{START}(?P<amount>{NUM})(?: ?(?P<big>{BIG})\b)? ?(?P<sign>{SIGN_AFTER})",
        _money,
    ),
    _rule(r"(?<![\w)'])-(?=\.?\d)", lambda m: " minus "),
    _rule(r"(?:'|\b)(1[1-9]\d0|20\d0|[2-9]0)'?s\b", lambda m: say.decade(int(m[1]))),
    _rule(r"\b(\d{1,3}(?:,\d{3}){1,4}|\d{1,15})(?:st|nd|rd|th)\b", lambda m: say.ordinal(int(m[1].replace(",", "")))),
    _rule(rf"{START}({NUM}) ?({UNIT})([²³23](?!\d))?(?![A-Za-z\d/])", _unit),
    _rule(rf"{START}({NUM}) ?(M|B)(?!\w)", lambda m: f"{say.number(m[1])} {tables.MAGNITUDES[m[2].lower()]}"),
    _rule(
        r"\b(\d{1,6}) (\d{1,3})/(\d{1,3})\b(?!/)",
        lambda m: f"{say.number(m[1])} and {say.fraction(int(m[2]), int(m[3]))}",
    ),
    _rule(r"(?<![\d/])(\d{1,3})/(\d{1,3})(?![\d/])", lambda m: say.fraction(int(m[1]), int(m[2]))),
    _rule(r"#(?=\d)", lambda m: " number "),
    _rule(r"#(?=\w)", lambda m: " hashtag "),
    _rule(r"(?<=\d) ?[*x] ?(?=\d)", lambda m: " times "),
    # what is left: plain numbers, and full stops and commas inside words
    _rule(r"\d{1,40}(?:\.\d{1,40}){2,10}", lambda m: " dot ".join(say.number(p) for p in m[0].split("."))),
    _rule(rf"(?<!\d)\.\d{{1,40}}|{NUM}", lambda m: f" {say.integer_or_year(m[0])} "),
    _rule(r"(?<=[a-z])\.(?=[A-Z][a-z])", lambda m: ". "),
    _rule(r"(?<=[A-Za-z])\.(?=[A-Za-z])", lambda m: " dot "),
)
"""Tried in this order; each reads the text that the earlier ones left."""


_PLAIN = re.compile(r"[A-Za-z]+(?:'[a-z]+)?[,;:!?]?\Z")
_NAMED = frozenset(
    word.lower() for table in (tables.YEAR.split(), tables.TITLES, tables.UNITS, tables.MAGNITUDES) for word in table
)


def joins(word: str) -> bool:
    """Whether a written word may be read together with a neighbour."""
    return not _PLAIN.match(word) or word.rstrip(",;:!?").lower() in _NAMED

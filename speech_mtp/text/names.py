"""Rules of the normaliser for addresses, dates, times, abbreviations and names.

A rule looks at its neighbours only: whatever stands further away than one ordinary word does not matter
(:func:`speech_mtp.text.joining.joins`). Every pattern is linear: its repetitions are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from speech_mtp.text import measures, tables
from speech_mtp.text import numbers as say

Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]
CASELESS = re.IGNORECASE
SHORT_MONTH = "Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec"
MONTH = rf"(?:{SHORT_MONTH})\.?(?![a-z])|" + "|".join(tables.MONTHS)
DAY = r"[12]\d|3[01]|0?[1-9]"
WEEKDAY = "|".join(sorted(tables.WEEKDAYS, key=len, reverse=True))
TOP_LEVEL = "com|org|net|edu|gov|io|ai|co|uk|de|fr|eu|info|dev|app|me|tv|us|ca|au"
STATE = "|".join(tables.STATES)
MERIDIEM = r"(?: ?([ap])(?:\.m\b\.?|m\b))"


def rule(pattern: str, replacement: Callable[[re.Match[str]], str] | str, flags: int = 0) -> Rule:
    """A pattern and what it becomes: a text, or a function of the match."""
    return re.compile(pattern, flags), replacement if callable(replacement) else lambda m: m.expand(replacement)


def _date(year: str, month: int, day: int, whole: str) -> str:
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return re.sub("[/.-]", " ", whole)
    return f"{tables.MONTHS[month - 1]} {say.ordinal(day)}, {say.integer_or_year(year)} "


def _us_date(m: re.Match[str]) -> str:
    month, day = int(m[1]), int(m[2])
    month, day = (day, month) if month > 12 else (month, day)
    if m[0].count(".") == 2:
        month, day = int(m[2]), int(m[1])
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
    elif not half and not int(m[3] or 0):
        words += " o'clock" if 0 < hour <= 12 else " hundred"
    if m[3] and int(m[3]):
        words += f" and {say.cardinal(int(m[3]))} second{'' if int(m[3]) == 1 else 's'}"
    return words + (f" {half.upper()}M" if half else "") + _stop_if_last(m)


def _stop_if_last(m: re.Match[str]) -> str:
    """A full stop that belonged to an abbreviation also ends the text, or the sentence before a capital."""
    return "." if m[0].endswith(".") and re.match(r"\W*$", m.string[m.end() : m.end() + 4]) else ""


def _address(m: re.Match[str]) -> str:
    """An e-mail or web address, with its scheme and final punctuation left off."""
    text = re.sub(r"^(?:https?|ftp)://", "", m[0], flags=re.IGNORECASE)
    bare = text.rstrip(".,!?;:'-/")
    mark = next((c for c in text[len(bare) :] if c in ".,!?;:"), "")
    words = re.sub(r"^www\.", "w w w.", bare, flags=re.IGNORECASE)
    words = re.sub(rf"\.({tables.EXTENSIONS})$", _extension, words)
    words = re.sub(r"\d", lambda d: f" {say.digits(d[0])} ", words)
    return "".join(f" {tables.ADDRESS_WORDS[c]} " if c in tables.ADDRESS_WORDS else c for c in words) + mark


def _phone(m: re.Match[str]) -> str:
    plus = "plus " if m[0].startswith("+") else ""
    return plus + ", ".join(say.digits(group) for group in re.findall(r"\d+", m[0]))


def _abbreviation(m: re.Match[str]) -> str:
    word = m[1].lower()
    counted = word in measures.UNITS and re.search(r"\d $", m.string[max(0, m.start() - 2) : m.start()])
    if counted or (m[1][0].isupper() and word in tables.NAMES_TOO):
        return m[0]
    words = tables.ABBREVIATIONS[word]
    return (words.capitalize() if m[1][0].isupper() else words) + _stop_if_last(m)


def _extension(m: re.Match[str]) -> str:
    return f".{m[1]}" if re.fullmatch(tables.READ_AS_WORDS, m[1]) else f".{m[1].upper()}"


def _month_name(text: str) -> str:
    return tables.MONTH[text[:3].lower()]


def _weekdays(m: re.Match[str]) -> str:
    named = re.sub(rf"({WEEKDAY})\b\.?", lambda w: tables.WEEKDAYS[w[1]], m[0])
    return named.replace("-", " to ") + _stop_if_last(m)


def _hashtag(m: re.Match[str]) -> str:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", m[1])
    return f" hashtag {words}"


def _roman_value(text: str) -> int:
    values = [{"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}[c] for c in text]
    return sum(-v if v < max(values[i:]) else v for i, v in enumerate(values))


def _roman(m: re.Match[str]) -> str:
    """A numeral after the word ``m[1]``: "the second" of a monarch, else "two"."""
    value = _roman_value(m[2])
    king = m[1].split(" ")[0] in tables.MONARCHS.split("|") or m[1].startswith("John Paul")
    return f"{m[1]} the {say.ordinal(value)}" if king else f"{m[1]} {say.cardinal(value)}"


def _no_shouting(m: re.Match[str]) -> str:
    """Four or more words in capitals, one of them long, are shouted words, not acronyms."""
    words = re.findall("[A-Z]{2,}", m[0])
    shouted = len(words) > 3 and max(map(len, words)) > 4
    return re.sub(r"\bi\b", "I", m[0].lower()) if shouted else m[0]


def _state(m: re.Match[str]) -> str:
    zip_code = f" {say.digits(m[2])}" if m[2] else ""
    return f", {tables.STATES[m[1]]}{zip_code}"


ADDRESSES: tuple[Rule, ...] = (
    rule(r"[\w.%+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}", _address),
    rule(r"\b(?:https?://|ftp://|www\.)\S{1,2000}", _address, CASELESS),
    rule(
        rf"\b(?<![@.])(?:[a-z\d-]{{1,63}}\.){{1,6}}(?:{TOP_LEVEL})\b(?!\.\w)(?:/[^\s,;!?]{{0,500}})?",
        _address,
        CASELESS,
    ),
    rule(
        rf"(?<![\w./])(?:[\w-]{{1,60}}/){{0,8}}[A-Za-z_][\w-]{{0,60}}\.(?:{tables.EXTENSIONS})(?![\w.]\w|\w)", _address
    ),
    rule(r"(?<![\w./<])(?:~|\.{1,2})?/(?:[A-Za-z_.][\w.-]{0,60}/?){1,20}", _address),
    rule(r"(?<![\w.])@(?=[A-Za-z_]\w)", " at "),
    rule(r"(?<![\w#&])#([A-Za-z]\w{1,60})", _hashtag),
    rule(r"\b(?:ISBN|ISSN)(?:-1[03])?:? ?([\dX-]{4,17})(?![\w-])", lambda m: f"ISBN {say.digits(m[1])}"),
    rule(r"(?<![\w.])(?:\+?\d{1,3}[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?!\w)", _phone),
    rule(r"(?<![\w.-])\d{3}-\d{4}(?![\w-])|\+\d{1,3}(?:[ -]\d{2,4}){2,5}(?!\w)|\+\d{7,15}(?!\w)", _phone),
    rule(r"(?<![\w.-])0\d{2,4} \d{3,4} \d{3,4}(?!\w)|(?<![\w.-])\d{3}-\d\d-\d{4}(?![\w-])", _phone),
    rule(r"(?<![\w.-])\d{4}(?:[ -]\d{4}){3}(?![\w-])", _phone),
    rule(
        r"\b([Cc]all|[Dd]ial|[Tt]ext|called|dialed|calling|dialing) (\d{3})\b(?![.,]\d|-)",
        lambda m: f"{m[1]} {say.digits(m[2])}",
    ),
    rule(r"\b9/11\b(?!/)", "nine eleven"),
)

DATES: tuple[Rule, ...] = (
    rule(
        r"\b(\d{4}-\d\d-\d\d)T(\d\d:\d\d(?::\d\d)?)(?:\.\d{1,9})?(Z?)", lambda m: f"{m[1]} {m[2]}" + " UTC" * bool(m[3])
    ),
    rule(r"\b(\d{4})[-/](\d\d)[-/](\d\d)\b", lambda m: _date(m[1], int(m[2]), int(m[3]), m[0])),
    rule(r"\b(\d{1,2})/(\d{1,2})/(\d{4}|\d\d)\b", _us_date),
    rule(r"(?<![\w.])(\d{1,2})\.(\d{1,2})\.(\d{4})\b(?!\.\d)", _us_date),
    rule(rf"\b({MONTH}) ?- ?(?=(?:{MONTH}))", lambda m: f"{_month_name(m[1])} to "),
    rule(
        rf"\b({MONTH}) ({DAY})(?:st|nd|rd|th)?\b(?![:.]\d|,\d)(?: ?- ?({DAY})(?:st|nd|rd|th)?\b(?!\d))?",
        lambda m: _month_day(m) + (f" to {say.ordinal(int(m[3]))}" if m[3] else ""),
    ),
    rule(rf"\b({DAY})(?:st|nd|rd|th)? (?:of )?({MONTH})(?![A-Za-z])", _day_month),
    rule(rf"\b({SHORT_MONTH})\.(?= )|\b({SHORT_MONTH})\b(?= \d{{4}}\b)", lambda m: _month_name(m[1] or m[2])),
    rule(rf"\b(?:{WEEKDAY})\b\.?(?:(?:,? ?(?:&|and|or)|,|-| to| through) ?(?:{WEEKDAY})\b\.?){{1,6}}", _weekdays),
    rule(rf"\b(?:{WEEKDAY})\.(?=,? (?:[A-Z]|\d|at\b))|\b(?:{WEEKDAY})(?=,? (?:\d|(?:{MONTH})\b))", _weekdays),
    rule(rf"\b(\d{{1,2}}(?::\d\d)?) ?([ap])\.?m?\.? ?- ?(?=\d{{1,2}}(?::\d\d)?{MERIDIEM})", r"\1 \2m to ", CASELESS),
    rule(r"(?<=\d:\d\d) ?- ?(?=\d{1,2}:\d\d)", " to "),
    rule(r"\b([01]?\d|2[0-4]):([0-5]\d)(?::([0-5]\d))?" + MERIDIEM + r"?(?![:\d])", _time, CASELESS),
    rule(r"\b(1[0-2]|0?[1-9])()()" + MERIDIEM, _time, CASELESS),
)

NAMES: tuple[Rule, ...] = (
    rule(rf"(?<=\d )({'|'.join(u for u in measures.UNITS if u.isalpha() and len(u) > 1)})\.(?= [a-z])", r"\1"),
    rule(r"(?<!\w)[A-Z]{1,40}(?:[^\w.]{1,4}[A-Z]{1,40}(?:'[A-Z]{1,5})?(?![\w.])){3,400}", _no_shouting),
    rule(r"(?<![\w/])(?:" + "|".join(map(re.escape, tables.SLASHED)) + r")(?![\w/])", lambda m: tables.SLASHED[m[0]]),
    rule(r"(?<=\w) v\. (?=[A-Z])", " versus "),
    rule(
        rf"\b([A-Z][a-z]{{1,20}}), ({'|'.join(tables.STATE_ABBREVIATIONS)})\.(?! ?\d)",
        lambda m: f"{m[1]}, {tables.STATE_ABBREVIATIONS[m[2]]}" + _stop_if_last(m),
    ),
    rule(rf",? \b({STATE}),? (\d{{5}}(?:-\d{{4}})?)\b", _state),
    rule(
        rf"\b([A-Z][a-z]{{1,20}}), (?!{tables.WORDLIKE_STATES})({STATE})(?![\w'.])",
        lambda m: f"{m[1]}, {tables.STATES[m[2]]}",
    ),
    rule(rf"\b({'|'.join(tables.TITLES)})\.? (?=[A-Z\ue000])", lambda m: f"{tables.TITLES[m[1]]} "),
    rule(r"\b([Ee]q|[Ff]ig|[Ss]ec)\. \((\d[\w.]{0,9})\)", lambda m: f"{tables.BEFORE_NUMBER[m[1]]} {m[2]}"),
    rule(
        rf"\b({'|'.join(tables.BEFORE_NUMBER)})(?:\. ?|(?<=Apt) |(?<=Ste) )(?=\d)",
        lambda m: f"{tables.BEFORE_NUMBER[m[1]]} ",
    ),
    rule(
        rf"(?<![\w.'])(?<!\bdot )({'|'.join(re.escape(a) for a in tables.ABBREVIATIONS)})\.(?![A-Za-z\d])",
        _abbreviation,
        CASELESS,
    ),
    rule(r"(?<![\w.'])(vs|etc)\b(?!\.)", lambda m: tables.ABBREVIATIONS[m[1].lower()], CASELESS),
    rule(
        r"(?<![\w.'])[A-Za-z](?:\.[A-Za-z]){1,7}(?:\.(?!\w)|(?![\w.]))",
        lambda m: m[0].replace(".", "").upper() + _stop_if_last(m),
    ),
    rule(r"(?<![\w.'])([A-HJ-Z])\. (?=[A-Z][a-z.])", r"\1 "),
    rule(
        rf"\b({tables.ROMAN_AFTER}|(?:{tables.MONARCHS})(?: [A-Z][a-z]{{1,20}})?) "
        rf"([IVXLC]{{2,8}}|[VX]|I(?! (?:{tables.PRONOUN_VERBS})\b))(?!\.\w|'(?:m|ve|ll|d)\b)\b",
        _roman,
    ),
    rule(r"\b([A-Z][a-z]{1,20}) (X{1,2}(?:IX|IV|VI{0,3}|I{1,3})|IX|IV|V?I{2,3}|VI)\b(?!\.\w)(?<!XX)", _roman),
    rule(r"\b(Ph)\.? ?D\b\.?", lambda m: "PhD" + _stop_if_last(m)),
    rule(r"(?<=\w) '?[nN]' (?=\w)", " and "),
    rule(r"\b([A-Z])#(?!\w)", r"\1 sharp"),
    rule(r"\b([A-F])-(?=[\s,.;!?)]|$)", r"\1 minus"),
    rule(r"(?<![\w.])\.(?:NET|net)\b", "dot net"),
)

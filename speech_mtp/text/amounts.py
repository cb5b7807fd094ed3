"""Rules of the normaliser for numbers and what is attached to them: money, units, ranges, arithmetic."""

from __future__ import annotations

import re
from collections.abc import Callable

from speech_mtp.text import measures, tables
from speech_mtp.text import numbers as say
from speech_mtp.text.names import CASELESS, Rule, rule

NUM = r"(?:\d{1,3}(?:,\d{3}){1,5}(?!\d)|\d{1,40})(?:\.\d{1,40})?"
START = r"(?<![\w.,])"  # a number does not start inside a word or another number
BIG = "|".join(sorted(measures.MAGNITUDES, key=len, reverse=True))
UNIT = "|".join(re.escape(u) for u in sorted(measures.UNITS, key=len, reverse=True) if u != "x")
PER = "|".join(re.escape(u) for u in sorted(measures.UNITS, key=len, reverse=True) if u.isalpha() and u != "x")
CODES = "USD|EUR|GBP|JPY|CHF|CAD|AUD|INR|CNY"
SIGN_AFTER = rf"[€£¥₹¢₩₽₺₿₱₫]|\$(?!\d)|(?:{CODES})\b"
SIGN = rf"(?:US|CA|AU|NZ|HK|\b[AC])?\$|[€£¥₹₩₽₺₿₱₫]|(?:{CODES})(?= ?\d)"
PERIODS = {"hr": "hour", "wk": "week", "mo": "month", "yr": "year"} | {
    word: word
    for word in ("hour", "day", "week", "month", "year", "night", "minute", "person", "piece", "unit", "mile")
}
EQUATION = r"(?=[\d .,+x×*/-]{1,40}=)"


def _money(m: re.Match[str]) -> str:
    minus, symbol, amount, big = m["minus"], m["sign"], m["amount"], m["big"]
    one, many, cent, cents = measures.CURRENCY[symbol.upper()]
    start = "minus " if minus else ""
    if big:
        return f"{start}{say.number(amount)} {measures.MAGNITUDES[big.lower()]} {many}"
    whole, _, part = amount.partition(".")
    if len(part) == 2 and cent:
        coins = f"{say.cardinal(int(part))} {cent if part == '01' else cents}"
        coins = "" if part == "00" else coins
        notes = "" if not whole.strip("0,") and coins else f"{say.number(whole)} {one if say.is_one(whole) else many}"
        return start + " and ".join(filter(None, (notes, coins)))
    return f"{start}{say.number(amount)} {one if say.is_one(amount) else many}"


def _priced(m: re.Match[str]) -> str:
    """ "a $50 bill": the currency is singular before what costs that."""
    big = f" {measures.MAGNITUDES[m['big'].lower()]}" if m["big"] else ""
    return f"{m[1]} {say.number(m['amount'])}{big} {measures.CURRENCY[m['sign']][0]}"


def _money_range(m: re.Match[str]) -> str:
    big = f" {measures.MAGNITUDES[m['big'].lower()]}" if m["big"] else ""
    return f"{say.number(m['low'])} to {say.number(m['high'])}{big} {measures.CURRENCY[m['sign']][1]}"


def _powered(unit: str, power: str | None, one: bool) -> str:
    """``"m", "^2"`` -> "square meters"."""
    words = measures.UNITS[unit][0 if one else 1]
    return {"2": "square ", "3": "cubic "}.get((power or "").lstrip("^"), "") + words


def _unit(m: re.Match[str]) -> str:
    return f"{say.number(m[1])} {_powered(m[2], m[3], say.is_one(m[1]))}"


def _rate(m: re.Match[str]) -> str:
    """``"10 m/s^2"`` -> "ten meters per second squared"; without a number the plural."""
    number, power = m[1] or "", (m[5] or "").lstrip("^")
    above = _powered(m[2], m[3], bool(number) and say.is_one(number))
    below = measures.UNITS[m[4]][0] + {"2": " squared", "3": " cubed"}.get(power, "")
    return f"{say.number(number) if number else ''} {above} per {below}".strip()


def _counted(unit: str) -> Callable[[re.Match[str]], str]:
    """What says the number of a match, and ``unit``."""
    one, many = ("day", "days") if unit == "d" else measures.UNITS[unit]

    def words(m: re.Match[str]) -> str:
        number = next(filter(None, m.groups()))
        return f"{number} {one if say.is_one(number) else many} "

    return words


def _scientific(m: re.Match[str]) -> str:
    return f"{say.number(m[1])} times ten {say.exponent(m[2])}"


def _power(m: re.Match[str]) -> str:
    if re.search(rf"(?:\d ?|/)(?:{UNIT})$", m.string[max(0, m.start() - 8) : m.start()]):
        return m[0]  # of a unit: square meters
    unit = f" {measures.UNITS[m[2]][1]}" if m[2] else ""
    return f" {say.exponent(m[1])}{unit} "


def _split_share(m: re.Match[str]) -> str:
    """ "50/50" and "80/20": shares of a hundred."""
    whole = int(m[1]) + int(m[2]) == 100
    return f"{say.cardinal(int(m[1]))} {say.cardinal(int(m[2]))}" if whole else m[0]


def _internet_address(m: re.Match[str]) -> str:
    parts = m[0].split(".")
    if not all(int(p) < 256 for p in parts):
        return m[0]
    return " dot ".join(say.in_pairs(p) if len(p) == 3 else say.number(p) for p in parts)


def _slash(m: re.Match[str]) -> str:
    """ "he/she" -> "he or she"; acronyms stand side by side."""
    return f"{m[1]} {'' if m[1].isupper() and len(m[1]) > 1 else 'or '}"


MONEY: tuple[Rule, ...] = (
    rule(rf"(?<=\d)( ?(?:{PER}))?/({'|'.join(PERIODS)})\b(?![/'-])", lambda m: f"{m[1] or ''} per {PERIODS[m[2]]}"),
    rule(rf"\b([Aa]n?) (?P<sign>[$€£¥₹]) ?(?P<amount>{NUM})(?: ?(?P<big>{BIG})\b)?(?= [a-z])(?<!\.\d\d)", _priced),
    rule(rf"()(?P<sign>[$€£¥₹])(?P<amount>{NUM})(?P<big>)(?= (?:note|bill|coin)s?\b)", _priced),
    rule(rf"(?P<minus>(?<![\w)])-)?(?P<sign>{SIGN}) ?(?P<amount>{NUM})(?: ?(?P<big>{BIG})\b)?", _money, CASELESS),
    rule(rf"(?P<minus>(?<![\w)])-)?{START}(?P<amount>{NUM})(?: ?(?P<big>{BIG})\b)? ?(?P<sign>{SIGN_AFTER})", _money),
)

DURATIONS: tuple[Rule, ...] = (
    rule(rf"{START}(\d{{1,3}}) ?d (?=\d{{1,2}} ?h)", _counted("d")),
    rule(rf"{START}(\d{{1,4}}) ?(?:h|hrs?) ?(?=\d{{1,2}} ?m(?:ins?)?\b|\d{{1,2}}m\d)", _counted("h")),
    rule(r"(?<=hours )(\d{1,2}) ?m(?:ins?)?(?![a-z])|(?<=hour )(\d{1,2}) ?m(?:ins?)?(?![a-z])", _counted("min")),
    rule(rf"{START}(\d{{1,4}}) ?m(?:ins?)? ?(?=\d{{1,2}} ?s(?:ecs?)?\b)", _counted("min")),
    rule(r"(?<=minutes )(\d{1,2}) ?s(?:ecs?)?\b|(?<=minute )(\d{1,2}) ?s(?:ecs?)?\b", _counted("s")),
)
"""Hours, minutes and seconds side by side: there an "m" is minutes."""

ALGEBRA: tuple[Rule, ...] = (
    rule(rf"{START}({NUM})x(?= ?[+=<>≤≥^]| - ?\d| (?:plus|minus|equals|squared|cubed|to the|is)\b)", r"\1 x"),
    rule(rf"(?<=[+=*] )({NUM})x(?!\w)", r"\1 x"),
    rule(r"\(([a-z])-(\d{1,3})\)(!?)", lambda m: f"({m[1]} minus {m[2]})" + " factorial" * bool(m[3])),
)
"""A number before "x" is "times" ("3x faster"), but not in a formula ("y = 3x")."""

SIGNS: tuple[Rule, ...] = (
    rule(rf"(?<![\d)])({SIGN}) ?-(?=\.?\d)", r"-\1", CASELESS),
    rule(r"(?<=[A-Za-z\d)])\*\*(?=[A-Za-z\d(-])|(?<=[A-Za-z\d)]) \*\* (?=[A-Za-z\d(-])", "^"),
    rule(r"\b(\d{1,3}|[a-z])!(?= ?[=+*/×÷-])", r"\1 factorial"),
    rule(r"(?<!\S)[:;=]['^-]?[)(DPp|/]{1,3}(?!\S)|(?<!\S)\^_?\^(?!\S)", " "),
    rule(r"\b(I|[Ww]e|[Tt]hey|[Yy]ou) ?<3(?=\s|$)", r"\1 love"),
    rule(r"-{1,2}>|=>|<-{1,2}(?!\d)|<=>", ", "),
    rule(r"<=|≤", " ≤ "),
    rule(r">=|≥", " ≥ "),
    rule(r"!=|<>|≠", " ≠ "),
    rule(r"={2,3}", " = "),
    rule(r"(?<=[\w)]) {1,3}([≤≥≠≈<>]) ?(?=[\w(+.$€£-])", lambda m: f" is {measures.SYMBOLS[m[1]]} "),
    rule(r"(?<=\bis is) ", " "),
    rule(r"(?<![\w<]) ?> ?(?=[$€£]?\d)", " more than "),
    rule(r"(?<=\d) ?/ (?=\d)|(?<=\d) / ?(?=\d)|(?<=\w) / (?=\d)", " divided by "),
    rule(r"(?<=[\w)]) \* (?=[\w(])", " times "),
    rule(rf"{START}({NUM})[eE]([+-]?\d{{1,3}})(?!\w)", _scientific),
    rule(rf"\^\(?([+-]?\d{{1,3}})\)?(?: ?({PER})(?![\w/]))?(?![\d.]?\d)", _power),
    rule(r"~ ?(?=[$€£]?\d)", " about "),
)

NUMBERS: tuple[Rule, ...] = (
    rule(
        r"(?<![\w.,/])(\d{1,3})/(\d{1,3})(?:st|nd|rd|th)s?\b",
        lambda m: say.fraction(int(m[1]), int(m[2])),
    ),
    *DURATIONS,
    *ALGEBRA,
    rule(r"(?<=\d) ?[x×] ?(?=10(?: to the |\^))", " times "),
    rule(r"\b24/7\b", "twenty-four seven"),
    rule(r"(?<![\d/])(\d\d)/(\d\d)(?![\d/])", _split_share),
    rule(r"(?<=\d) (?=000\b)", ""),
    rule(
        r"\b(\d{1,2}) ?(?:'|ft\.?) ?(\d{1,2})(?: ?in\b\.?(?! [a-z])| ?in(?=[,;.!?]|$)| ?\"|''|(?!\w))",
        lambda m: f"{m[1]} feet {m[2]} inch{'' if m[2] == '1' else 'es'}",
    ),
    rule(r"(?<=\d) - " + EQUATION, " minus "),
    rule(r"(?<=\d) ?[x×] ?(?=\d)" + EQUATION, " times "),
    rule(r"(?<=\d)[x×](?=\d)|(?<=\d) [x×] (?=\d[\d.]{0,9} ?(?:cm|mm|m|ft|in|inches|px|feet|meters)\b)", " by "),
    rule(
        rf"(?P<sign>{SIGN}) ?(?P<low>{NUM}) ?- ?(?P<high>{NUM})(?: ?(?P<big>{BIG})\b)?(?![\w%])", _money_range, CASELESS
    ),
    rule(r"(?<=\d) ?- ?(?=[$€£]?\d)|(?:(?<=[%°])|(?<=°[CF])|(?<=\d[km])) ?- ?(?=[$€£]?\d)", " to "),
    rule(r"(?<=\d[$€£]) ?- ?(?=\d)", " to "),
    rule(r"(?<=\d):(?=\d)", " to "),
    *MONEY,
    rule(r"(?<![\w)'])-(?=\.?\d)", " minus "),
    rule(r"(?:'|\b)(1[1-9]\d0|20\d0|[2-9]0)'?s\b", lambda m: say.decade(int(m[1]))),
    rule(r"(?<!\w)'(\d\d)\b(?!')", lambda m: f"oh {say.cardinal(int(m[1]))}" if 0 < int(m[1]) < 10 else m[1]),
    rule(r"\b(\d{1,3}(?:,\d{3}){1,4}|\d{1,15})(?:st|nd|rd|th)\b", lambda m: say.ordinal(int(m[1].replace(",", "")))),
    rule(rf"(?:{START}({NUM}) ?|(?<![\w/.]))({PER}|°C)(\^?[23])?/({PER})(\^?[23])?(?![\w/])", _rate),
    rule(rf"{START}({NUM})-({PER})()(?= [a-z])", lambda m: f"{say.number(m[1])} {measures.UNITS[m[2]][0]}"),
    rule(
        r"\b([Aa]partment|[Rr]oom|[Ss]uite|[Uu]nit|[Gg]ate|[Ss]eat) (\d{1,4})([A-Z])\b",
        lambda m: f"{m[1]} {say.number(m[2])} {m[3]}",
    ),
    rule(r"(?<![\w.])([2-9]|1[0-6])K\b", lambda m: f"{say.number(m[1])} K"),
    rule(rf"{START}({NUM})[kK](?!\w)", lambda m: f"{say.number(m[1])} thousand"),
    rule(rf"{START}({NUM}) ?(M|B)(?!\w)", lambda m: f"{say.number(m[1])} {measures.MAGNITUDES[m[2].lower()]}"),
    rule(rf"{START}({NUM}) ?({UNIT})(\^?[23](?!\d))?(?![A-Za-z\d]|/(?!\d))", _unit),
    rule(rf"{START}({NUM})x(?!\w)", lambda m: f"{say.number(m[1])} times"),
    rule(r"\b(?:mph|kph)\b", lambda m: measures.UNITS[m[0]][1]),
    rule(r"\b(\d{1,6}) (\d{1,3})/(\d{1,3})\b(?!/)", lambda m: say.mixed(m[1], int(m[2]), int(m[3]))),
    rule(r"(?<![\d/])(\d{1,3})/(\d{1,3})(?= (?:stars|points)\b)", r"\1 out of \2"),
    rule(r"(?<![\d/])(\d{1,3})/(\d{1,3})(?![\d/])", lambda m: say.fraction(int(m[1]), int(m[2]))),
    rule(r"#(?=\d)", " number "),
    rule(r"(?<=\d) ?[*×] ?(?=\d)|(?<=\d) x (?=\d)", " times "),
    rule(rf"\b({tables.PAIRED}) ([1-9]\d{{2,3}})\b(?![.,]\d)", lambda m: f"{m[1]} {say.in_pairs(m[2])}"),
    rule(r"\b[vV](?=\d{1,4}(?:\.\d|\b))", "version "),
    rule(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.]\d|\d)(?<!version \d\.\d\.\d\.\d)", _internet_address),
    rule(r"\^(?=\w)", " to the power of "),
    rule(r"\d{1,40}(?:\.\d{1,40}){2,10}", lambda m: " point ".join(say.number(p) for p in m[0].split("."))),
    rule(rf"(?<!\d)\.\d{{1,40}}|{NUM}", lambda m: f" {say.integer_or_year(m[0])} "),
)

REST: tuple[Rule, ...] = (
    rule(r"\b([A-Za-z]{1,20})/(?=[A-Za-z]{1,20}\b)", _slash),
    rule(r"(?<=[a-z])\.(?=[A-Z][a-z])", ". "),
    rule(r"(?<=[A-Za-z])\.(?=[A-Za-z])", " dot "),
    rule(r"(?<=\w)\(", " "),
)
"""What is left when numbers are words."""

"""Numbers as American English words, without digits, commas or "and"."""

from __future__ import annotations

from num2words import num2words

MAX_DIGITS = 15  # longer numbers are read digit by digit
YEARS = range(1100, 2100)
DENOMINATORS = {2: "half", 4: "quarter"} | dict.fromkeys((3, 5, 6, 7, 8, 9, 10, 12, 16, 20, 32, 64, 100), "")


def digits(text: str) -> str:
    """``"0451"`` -> "zero four five one"; other characters are ignored."""
    return " ".join(num2words(int(c)) for c in text if c in "0123456789")


def cardinal(value: int) -> str:
    return str(num2words(value)).replace(",", "").replace(" and ", " ")


def ordinal(value: int) -> str:
    """``21`` -> "twenty-first"."""
    return str(num2words(value, to="ordinal")).replace(",", "").replace(" and ", " ")


def year(value: int) -> str:
    """``1905`` -> "nineteen oh five", ``2005`` -> "two thousand five", ``2026`` -> "twenty twenty-six"."""
    century, rest = divmod(value, 100)
    if value // 10 == 200:
        return cardinal(value)
    if rest == 0:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


def decade(value: int) -> str:
    """``1990`` -> "nineteen nineties", ``90`` -> "nineties"."""
    words = year(value) if value in YEARS else cardinal(value)
    return words[:-1] + "ies" if words.endswith("y") else words + "s"


def number(text: str) -> str:
    """A written number such as ``"1,234.50"``, ``".5"`` or ``"007"`` in words.

    Leading zeros and more than 15 digits are read digit by digit, as are decimals.
    """
    whole, point, decimals = text.replace(",", "").partition(".")
    if not whole:
        words = ""
    elif len(whole) > MAX_DIGITS or (whole[0] == "0" and len(whole) > 1):
        words = digits(whole)
    else:
        words = cardinal(int(whole))
    return f"{words} point {digits(decimals)}".strip() if point and decimals else words


def integer_or_year(text: str) -> str:
    """Four plain digits from 1100 to 2099 are read as a year, everything else by :func:`number`."""
    return year(int(text)) if len(text) == 4 and text.isdigit() and int(text) in YEARS else number(text)


def fraction(above: int, below: int) -> str:
    """``3, 4`` -> "three quarters"; unusual ones such as ``9, 11`` -> "nine over eleven"."""
    if not 0 < above < below or below not in DENOMINATORS:
        return f"{cardinal(above)} over {cardinal(below)}"
    name = DENOMINATORS[below] or ordinal(below)
    return f"{cardinal(above)} {name}" if above == 1 else f"{cardinal(above)} {'halve' if below == 2 else name}s"


def is_one(text: str) -> bool:
    """Whether a written number takes the singular: "1 km" but "1.0 km" does not."""
    return text.replace(",", "").lstrip("0") == "1"


def exponent(text: str) -> str:
    """``"6"`` -> "to the sixth", ``"-3"`` -> "to the minus three", ``"2"`` -> "squared"."""
    value = int(text)
    if value in (2, 3):
        return "squared" if value == 2 else "cubed"
    return f"to the {ordinal(value)}" if value >= 0 else f"to the minus {cardinal(-value)}"


def mixed(whole: str, above: int, below: int) -> str:
    """``"2", 1, 2`` -> "two and a half"."""
    part = fraction(above, below)
    return f"{number(whole)} and {'a' + part.removeprefix('one') if above == 1 and below in (2, 4) else part}"


def in_pairs(text: str) -> str:
    """``"370"`` -> "three seventy", ``"101"`` -> "one oh one", ``"1815"`` -> "eighteen fifteen"."""
    first, last = text[:-2], text[-2:]
    if last == "00":
        return f"{cardinal(int(first))} hundred"
    return f"{cardinal(int(first))} {'oh ' if last[0] == '0' else ''}{cardinal(int(last))}"

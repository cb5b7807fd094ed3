"""Word tables of the normaliser."""

from __future__ import annotations

YEAR = "January February March April May June July August September October November December"
MONTHS = YEAR.split()
MONTH = {name[:3].lower(): name for name in MONTHS}
WEEKDAYS = {"Mon": "Monday", "Tue": "Tuesday", "Tues": "Tuesday", "Wed": "Wednesday", "Thu": "Thursday"} | {
    "Thur": "Thursday",
    "Thurs": "Thursday",
    "Fri": "Friday",
}

TITLES = {
    "Dr": "Doctor",
    "Mr": "Mister",
    "Mrs": "Missus",
    "Ms": "Miz",
    "Prof": "Professor",
    "Rev": "Reverend",
    "Hon": "Honorable",
    "Gen": "General",
    "Col": "Colonel",
    "Capt": "Captain",
    "Lt": "Lieutenant",
    "Sgt": "Sergeant",
    "Maj": "Major",
    "Gov": "Governor",
    "Sen": "Senator",
    "Rep": "Representative",
    "Pres": "President",
    "St": "Saint",
    "Mt": "Mount",
    "Ft": "Fort",
}
"""Read so only before a capitalised word."""

ABBREVIATIONS = {
    "e.g": "for example,",
    "i.e": "that is,",
    "etc": "et cetera",
    "vs": "versus",
    "approx": "approximately",
    "jr": "junior",
    "sr": "senior",
    "inc": "incorporated",
    "ltd": "limited",
    "co": "company",
    "corp": "corporation",
    "bros": "brothers",
    "dept": "department",
    "est": "established",
    "ave": "avenue",
    "blvd": "boulevard",
    "rd": "road",
    "st": "street",
    "dr": "drive",
    "mr": "mister",
    "mrs": "missus",
    "ms": "miz",
    "prof": "professor",
    "figs": "figures",
    "vol": "volume",
    "tel": "telephone",
    "ext": "extension",
    "incl": "including",
    "max": "maximum",
    "min": "minimum",
    "avg": "average",
    "govt": "government",
    "misc": "miscellaneous",
}
"""Read so when a full stop follows."""

BEFORE_NUMBER = {
    "No": "number",
    "Nos": "numbers",
    "no": "number",
    "pp": "pages",
    "p": "page",
    "ch": "chapter",
    "Ch": "chapter",
    "sec": "section",
    "Sec": "section",
    "fig": "figure",
    "Fig": "figure",
    "art": "article",
    "Art": "article",
}
"""Read so when a full stop and a number follow."""

CURRENCY = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "sen", "sen"),
    "₹": ("rupee", "rupees", "paisa", "paise"),
    "¢": ("cent", "cents", "", ""),
    "USD": ("dollar", "dollars", "cent", "cents"),
    "EUR": ("euro", "euros", "cent", "cents"),
    "GBP": ("pound", "pounds", "penny", "pence"),
}
MAGNITUDES = {"k": "thousand", "m": "million", "mn": "million", "b": "billion", "bn": "billion"} | {
    word: word for word in ("hundred", "thousand", "million", "billion", "trillion")
}

UNITS = {
    "km/h": ("kilometer per hour", "kilometers per hour"),
    "kph": ("kilometer per hour", "kilometers per hour"),
    "m/s": ("meter per second", "meters per second"),
    "mph": ("mile per hour", "miles per hour"),
    "km": ("kilometer", "kilometers"),
    "cm": ("centimeter", "centimeters"),
    "mm": ("millimeter", "millimeters"),
    "µm": ("micrometer", "micrometers"),
    "nm": ("nanometer", "nanometers"),
    "m": ("meter", "meters"),
    "mi": ("mile", "miles"),
    "ft": ("foot", "feet"),
    "yd": ("yard", "yards"),
    "kg": ("kilogram", "kilograms"),
    "mg": ("milligram", "milligrams"),
    "µg": ("microgram", "micrograms"),
    "g": ("gram", "grams"),
    "lbs": ("pound", "pounds"),
    "lb": ("pound", "pounds"),
    "oz": ("ounce", "ounces"),
    "ml": ("milliliter", "milliliters"),
    "mL": ("milliliter", "milliliters"),
    "l": ("liter", "liters"),
    "L": ("liter", "liters"),
    "ms": ("millisecond", "milliseconds"),
    "µs": ("microsecond", "microseconds"),
    "s": ("second", "seconds"),
    "sec": ("second", "seconds"),
    "min": ("minute", "minutes"),
    "mins": ("minute", "minutes"),
    "h": ("hour", "hours"),
    "hr": ("hour", "hours"),
    "hrs": ("hour", "hours"),
    "Hz": ("hertz", "hertz"),
    "kHz": ("kilohertz", "kilohertz"),
    "MHz": ("megahertz", "megahertz"),
    "GHz": ("gigahertz", "gigahertz"),
    "KB": ("kilobyte", "kilobytes"),
    "kB": ("kilobyte", "kilobytes"),
    "MB": ("megabyte", "megabytes"),
    "GB": ("gigabyte", "gigabytes"),
    "TB": ("terabyte", "terabytes"),
    "kWh": ("kilowatt hour", "kilowatt hours"),
    "kW": ("kilowatt", "kilowatts"),
    "W": ("watt", "watts"),
    "V": ("volt", "volts"),
    "dB": ("decibel", "decibels"),
    "°C": ("degree Celsius", "degrees Celsius"),
    "°F": ("degree Fahrenheit", "degrees Fahrenheit"),
    "°": ("degree", "degrees"),
    "%": ("percent", "percent"),
    "x": ("times", "times"),
}

SYMBOLS = {
    "&": "and",
    "@": "at",
    "+": "plus",
    "=": "equals",
    "%": "percent",
    "×": "times",
    "÷": "divided by",
    "±": "plus or minus",
    "≈": "approximately",
    "≤": "less than or equal to",
    "≥": "greater than or equal to",
    "≠": "not equal to",
    "∞": "infinity",
    "√": "square root of",
    "°": "degrees",
    "§": "section",
    "€": "euros",
    "£": "pounds",
    "$": "dollars",
    "¥": "yen",
    "₹": "rupees",
    "¢": "cents",
    "µ": "micro",
    "²": "squared",
    "³": "cubed",
    "©": "copyright",
}
"""Read so wherever no rule read them before."""

PUNCTUATION = {
    **dict.fromkeys("‘’‚‛`´ʼ′＇", "'"),
    **dict.fromkeys('“”„‟«»‹›"″®™', " "),
    **dict.fromkeys("—―→←•·¦", ", "),
    **dict.fromkeys("‐‑‒–−", "-"),
    **dict.fromkeys("¡¿", " "),
    "…": "...",
    "\u00ad": "",
}
"""Typographic marks -> their plain form, a pause, or nothing."""

LETTERS = {"ß": "ss", "æ": "ae", "Æ": "Ae", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ı": "i"} | {
    "ð": "d",
    "Ð": "D",
    "þ": "th",
    "Þ": "Th",
    "œ": "oe",
    "Œ": "Oe",
    "ŋ": "ng",
}
"""Latin letters that do not decompose into a plain letter and an accent."""

ADDRESS_WORDS = {
    ".": "dot",
    "@": "at",
    "-": "dash",
    "_": "underscore",
    "/": "slash",
    "+": "plus",
    "?": "question mark",
    "=": "equals",
    "&": "and",
    "#": "hash",
    "%": "percent",
    "~": "tilde",
    ":": "colon",
}

ROMAN_AFTER = "Chapter|Part|Volume|Act|Book|Section|War|Type|Phase|Article|Bowl|Class|Level"
MONARCHS = (
    "Henry|Louis|George|Edward|Charles|William|James|Richard|Elizabeth|Mary|Philip|Pius|Benedict|Francis|John Paul|"
    "Frederick|Nicholas|Catherine|Napoleon|Leo|Alexander"
)

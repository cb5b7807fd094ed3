"""Word tables of the normaliser."""

from __future__ import annotations

YEAR = "January February March April May June July August September October November December"
MONTHS = YEAR.split()
MONTH = {name[:3].lower(): name for name in MONTHS}
WEEKDAYS = {"Mon": "Monday", "Tue": "Tuesday", "Tues": "Tuesday", "Wed": "Wednesday", "Thu": "Thursday"} | {
    "Thur": "Thursday",
    "Thurs": "Thursday",
    "Fri": "Friday",
    "Sat": "Saturday",
    "Sun": "Sunday",
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
    "assn": "association",
    "bldg": "building",
    "apt": "apartment",
    "hwy": "highway",
    "pkwy": "parkway",
    "cf": "compare",
    "ca": "circa",
    "al": "al",
    "esp": "especially",
    "ed": "edition",
    "eds": "editors",
    "mtg": "meeting",
    "hrs": "hours",
    "lbs": "pounds",
}
"""Read so when a full stop follows."""

NAMES_TOO = frozenset({"ed", "max", "al"})
"""Of these, names when they begin with a capital."""

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
    "Vol": "volume",
    "vol": "volume",
    "Apt": "apartment",
    "apt": "apartment",
    "Ste": "suite",
    "Eq": "equation",
    "eq": "equation",
    "Figs": "figures",
    "Rm": "room",
    "Bldg": "building",
}
"""Read so when a full stop and a number follow."""

PUNCTUATION = {
    **dict.fromkeys("‘’‚‛`´ʼ′＇", "'"),
    **dict.fromkeys('“”„‟«»‹›"″®™', " "),
    **dict.fromkeys("—―→←•·¦", ", "),
    **dict.fromkeys("‐‑‒–−", "-"),
    **dict.fromkeys("¡¿", " "),
    "…": "...",
    "№": " number ",
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

ROMAN_AFTER = (
    "Chapter|Part|Volume|Act|Book|Section|War|Type|Phase|Article|Bowl|Class|Level|Title|Appendix|Episode|Stage|Scene|"
    "Grade|Category|Figure|Table|Unit|Mark|Season|Schedule|Tier|Factor"
)
MONARCHS = (
    "Henry|Louis|George|Edward|Charles|William|James|Richard|Elizabeth|Mary|Philip|Pius|Benedict|Francis|John Paul|"
    "Frederick|Nicholas|Catherine|Napoleon|Leo|Alexander|Ramses|Xerxes|Darius|Ivan|Peter|Paul|John|Wilhelm|Franz|"
    "Leopold|Felipe|Alfonso|Ferdinand|Clement|Innocent|Gregory|Urban|Boniface|Sixtus|Julius|Adrian|Stephen|Robert|"
    "David|Harald|Christian|Margrethe|Otto|Maximilian|Ptolemy|Cleopatra|Seti|Thutmose|Amenhotep|Mehmed|Selim|Murad|"
    "Pedro|Manuel|Carlos|Victor|Constantine|Theodosius|Justinian|Baldwin|Malcolm|Thomas|Joseph|Michael"
)
PRONOUN_VERBS = (
    "am|think|have|had|know|will|would|can|could|do|did|want|mean|guess|suppose|love|hope|need|feel|saw|said|told|met|"
    "see|believe|like|should|might|must|went|got|found|say|ask|asked|thought|knew"
)
"""What "I" is the subject of, where a numeral could stand too."""

PAIRED = "Flight|Room|Suite|Boeing|Highway|Interstate|Route|Channel|Bus"
"""Their numbers are read in two parts: "Flight 370" is three seventy."""

STATES = {
    "AL": "Alabama", "AK": "Alaska", "AZ": "Arizona", "AR": "Arkansas", "CA": "California", "CO": "Colorado",
    "CT": "Connecticut", "DE": "Delaware", "DC": "DC", "FL": "Florida", "GA": "Georgia", "HI": "Hawaii",
    "ID": "Idaho", "IL": "Illinois", "IN": "Indiana", "IA": "Iowa", "KS": "Kansas", "KY": "Kentucky",
    "LA": "Louisiana", "ME": "Maine", "MD": "Maryland", "MA": "Massachusetts", "MI": "Michigan", "MN": "Minnesota",
    "MS": "Mississippi", "MO": "Missouri", "MT": "Montana", "NE": "Nebraska", "NV": "Nevada",
    "NH": "New Hampshire", "NJ": "New Jersey", "NM": "New Mexico", "NY": "New York", "NC": "North Carolina",
    "ND": "North Dakota", "OH": "Ohio", "OK": "Oklahoma", "OR": "Oregon", "PA": "Pennsylvania",
    "RI": "Rhode Island", "SC": "South Carolina", "SD": "South Dakota", "TN": "Tennessee", "TX": "Texas",
    "UT": "Utah", "VT": "Vermont", "VA": "Virginia", "WA": "Washington", "WV": "West Virginia", "WI": "Wisconsin",
    "WY": "Wyoming",
}  # fmt: skip
WORDLIKE_STATES = "OK|HI|ME|OR|IN|OH|PA|MA|LA|MD|MS|DC|ID|AL|DE"
"""Read as states only before a ZIP code."""
STATE_ABBREVIATIONS = {
    "Calif": "California", "Mass": "Massachusetts", "Fla": "Florida", "Conn": "Connecticut", "Ariz": "Arizona",
    "Colo": "Colorado", "Tenn": "Tennessee", "Okla": "Oklahoma", "Penn": "Pennsylvania", "Minn": "Minnesota",
    "Mich": "Michigan", "Wis": "Wisconsin", "Ill": "Illinois", "Va": "Virginia", "Ga": "Georgia", "Mo": "Missouri",
    "Pa": "Pennsylvania", "Tex": "Texas", "Wash": "Washington", "Ore": "Oregon", "Ala": "Alabama", "Md": "Maryland",
}  # fmt: skip
"""Read so after a comma, when a full stop follows."""

SLASHED = {
    "w/o": "without", "w/": "with", "b/c": "because", "c/o": "care of", "n/a": "NA", "N/A": "NA", "and/or": "and or",
    "a/c": "AC", "A/C": "AC",
}  # fmt: skip

EXTENSIONS = (
    "pdf|txt|py|js|ts|tsx|jsx|html?|css|csv|json|xml|docx?|xlsx?|pptx?|jpe?g|png|gif|mp3|mp4|zip|exe|md|sh|cpp|hpp|h|c|"
    "java|rs|go|rb|php|ya?ml|toml|ini|log|svg|wav|flac|tar|gz|sql|bat|dll|ipynb|cfg|conf"
)
READ_AS_WORDS = "json|zip|log|java|go|bat|tar|toml|text|conf"
GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "θ": "theta", "λ": "lambda", "μ": "mu",
    "π": "pi", "ρ": "rho", "σ": "sigma", "τ": "tau", "φ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega", "Δ": "delta",
    "Σ": "sigma", "Ω": "omega", "Φ": "phi", "Γ": "gamma", "Θ": "theta", "Λ": "lambda", "Π": "pi", "Ψ": "psi",
    "η": "eta", "ζ": "zeta", "κ": "kappa", "ν": "nu", "ξ": "xi",
}  # fmt: skip
"""Greek letters that stand alone are signs."""

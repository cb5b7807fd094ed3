"""Markdown, as people and language models write it -> plain text.

List items, headings, table rows and lines of code become sentences of their own: a full stop where no mark ends
them, and a blank line. Numbers of lists are kept ("1, Wash it."). Emphasis, links, tags and code fences leave their
text. The forms of :mod:`speech_mtp.text.inline` stay. Prose passes unchanged, except for its white space.
"""

from __future__ import annotations

import html
import re

from speech_mtp.text import inline, lists

LINE_LOOK, LINK_LOOK, URL_LOOK, TAG_LOOK, RUN_LOOK = 120, 300, 1500, 200, 8
"""How many characters, at most, are waited for."""
SPECIAL = "*_~`[!<|\\&\n"
PROSE = re.compile(f"[^{re.escape(SPECIAL)}]+")
OPENS_LINE = "#>-*+=_|`~•◦▪‣·:"
BULLET = re.compile(r"[-*+•◦▪‣·]\s+(?:\[[ xX]\]\s+)?")
HEADING = re.compile(r"#{1,6}[ \t]+")
RULE = re.compile(r"[-=*_|: \t+]{3,}")
FENCE = re.compile(r"`{3,}|~{3,}")
TAG = re.compile(r"</?[A-Za-z][A-Za-z0-9]{0,15}(?:[ \t][^<>\n]{0,180})?/?>|<!--[^\n>]{0,180}-->")
AUTOLINK = re.compile(r"<((?:https?://|mailto:)?[A-Za-z0-9][^\s<>]{0,180}[.@][^\s<>]{1,180})>")
ENTITY = re.compile(r"&(?:[A-Za-z]{2,8}|#\d{1,6});")
TARGET = re.compile(
    r"\((/[^/()\n]{1,200}/|[^()\s]{0,1000}(?:\([^()\s]{0,200}\)[^()\s]{0,200})?)(?:\s\"[^\"\n]{0,99}\")?\)"
)

_LEFT_OUT = dict.fromkeys(map(ord, "\r\ufeff"))
"""Carriage returns and byte order marks."""


class Markup:
    """Text in pieces, cut anywhere -> plain text, as soon as it is sure.

    What comes out in all depends on the text alone, never on the cuts. At most ``URL_LOOK`` characters are held.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._rest = ""  # not yet decided
        self._prev = "\n"  # the character before it
        self._last = ""  # the last character handed out that is no white space
        self._opening = True  # at the start of a line
        self._own = False  # the line is a sentence of its own
        self._items: tuple[str, ...] = ()  # letters and numerals of the lists that are open
        self._cell = False  # a table cell has ended
        self._gap = ""  # white space that is handed out with what follows it
        self._code = 0  # how many backticks opened the code span
        self._fenced = False
        self._skipping = False  # the rest of the line that opens or closes a fence

    def push(self, text: str) -> str:
        """Add ``text``; the plain text that is sure now."""
        self._rest += text.translate(_LEFT_OUT)
        return self._read(final=False)

    def flush(self) -> str:
        """The text ends here: the rest. The object is as new afterwards."""
        out = self._read(final=True)
        out += self._boundary() if self._own else ""
        self._reset()
        return out

    def _read(self, final: bool) -> str:
        parts: list[str] = []
        while self._rest:
            step = self._skip() if self._skipping else self._open_line(final) if self._opening else self._inline(final)
            if step is None:
                break
            size, out = step
            if size:
                self._prev = self._rest[size - 1]
                self._rest = self._rest[size:]
            parts.append(self._spaced(out))
        return "".join(parts)

    def _spaced(self, out: str) -> str:
        """``out`` with the white space, and the comma between cells, that was held back before it."""
        text = out.strip()
        before = out[: len(out) - len(out.lstrip())] if text else out
        self._gap = _stronger(self._gap, before)
        if not text:
            return ""
        comma = "," if self._cell and self._last and "\n" not in self._gap else ""
        gap = (" " if comma else self._gap) if self._last else ""
        self._cell, self._last = False, text[-1]
        self._gap = _stronger("", out[len(out.rstrip()) :])
        return comma + gap + re.sub(r"\s+", " ", text)

    def _boundary(self) -> str:
        """The end of a sentence that is a whole line."""
        return ".\n\n" if self._last.isalnum() or (self._last in "\"')]”’`%" and self._last) else "\n\n"

    # -- lines ----------------------------------------------------------------------------------------------------
    def _open_line(self, final: bool) -> tuple[int, str] | None:
        """What the start of a line says: characters to take and text to hand out; None to wait."""
        rest = self._rest
        if rest[0] in " \t\r\f\v":
            return len(rest) - len(rest.lstrip(" \t\r\f\v")), ""
        if rest[0] == "\n":
            return 1, "\n\n"
        end = rest.find("\n")
        whole = final or end >= 0 or len(rest) >= LINE_LOOK
        line = rest if end < 0 else rest[:end]
        if rest[0] in "`~" and FENCE.match(line[:3].ljust(3, rest[0])) and not whole:
            return None
        fence = FENCE.match(line[:LINE_LOOK])
        if fence and (self._fenced or fence[0][0] not in line[fence.end() : LINE_LOOK]):
            self._fenced, self._own, self._skipping = not self._fenced, False, True
            return fence.end(), "\n\n"
        if self._fenced:
            self._opening, self._own = False, True
            return 0, ""
        if rest[0] not in OPENS_LINE and not lists.PARTLY_NUMBERED.match(line):
            self._opening, self._own = False, False
            return 0, ""
        return self._marked_line(line, whole, final)

    def _skip(self) -> tuple[int, str]:
        end = self._rest.find("\n")
        self._skipping = end < 0
        return len(self._rest) if end < 0 else end, ""

    def _marked_line(self, line: str, whole: bool, final: bool) -> tuple[int, str] | None:
        if RULE.fullmatch(line[:LINE_LOOK]) or (not whole and RULE.fullmatch(line.ljust(3, "-"))):
            return (len(line[:LINE_LOOK]), "\n\n") if whole else None
        undecided = lists.PARTLY_NUMBERED.fullmatch(line) or re.fullmatch(
            r"#{1,6}[ \t]*|>[ \t]*=?[ \t]*|[-*+•◦▪‣·]\s*(?:\[[ xX]?\]?\s*)?", line
        )
        if undecided and not whole:
            return None
        if line[0] == ">" and not re.match(r">[ \t]{0,9}=?[ \t]{0,9}\d", line):
            return 1, ""
        if not final and lists.is_undecided(self._rest):
            return None
        self._opening = False
        mark = BULLET.match(line) or HEADING.match(line)
        item = None if mark else self._item(line)
        self._own = bool(mark or item)
        if mark:
            return mark.end(), "\n\n" if self._last else ""
        return (item.size, ("\n\n" if self._last else "") + f"{item.spoken}, ") if item else (0, "")

    def _item(self, line: str) -> lists.Item | None:
        """The list item that ``line`` opens, which is remembered."""
        ahead = self._rest[: lists.AHEAD].partition("\n")[2]
        paragraph = not self._last or "\n\n" in self._gap
        item = lists.item(line, ahead, self._items, paragraph)
        self._items = item.open_markers if item else self._items
        return item

    # -- inside lines ---------------------------------------------------------------------------------------------
    def _inline(self, final: bool) -> tuple[int, str] | None:
        """The next stretch of a line: characters to take and text to hand out; None to wait."""
        rest = self._rest
        if rest[0] == "\n":
            out = self._boundary() if self._own else "\n"
            self._opening, self._own, self._cell = True, False, False
            self._code = 0
            return 1, out
        if self._fenced:
            size = rest.find("\n")
            return (len(rest) if size < 0 else size), rest if size < 0 else rest[:size]
        if prose := PROSE.match(rest):
            return prose.end(), prose[0]
        if self._code and rest[0] != "`":
            return 1, rest[0]
        more = final or "\n" in rest
        reader = {"[": self._link, "<": self._tag, "&": self._entity, "!": self._image, "\\": self._escape}.get(rest[0])
        if reader:
            return reader(rest, more)
        if rest[0] == "|":
            self._cell, self._own = True, True
            return 1, ""
        return self._marks(rest, more)

    def _marks(self, rest: str, more: bool) -> tuple[int, str] | None:
        """A run of backticks, or of marks of emphasis."""
        mark = rest[0]
        size = len(rest) - len(rest.lstrip(mark))
        if size == len(rest) and not more and size <= RUN_LOOK:
            return None
        size = min(size, RUN_LOOK)
        following = rest[size : size + 1] or "\n"
        if mark == "`":
            self._code = 0 if self._code else size
            return size, ""
        before, after = self._prev, following
        inside = before.isalnum() and after.isalnum()
        alone = before.isspace() and after.isspace()
        kept = {
            "~": size == 1,
            "_": inside or alone,
            "*": alone or (inside and (size == 1 or before.isdigit() or after.isdigit())),
        }[mark]
        return size, rest[:size] if kept else ""

    def _link(self, rest: str, more: bool) -> tuple[int, str] | None:
        line = rest.partition("\n")[0]
        close = line.find("]", 0, LINK_LOOK)
        inner = line.find("[", 1)
        if close < 0 or 0 < inner < close:
            waiting = close < 0 and inner < 0 and not more and len(line) < LINK_LOOK
            return None if waiting else (1, "[")
        following = line[close + 1 : close + 2]
        if not following and not more:
            return None
        shown = line[1:close]
        if following == "(":
            target = TARGET.match(line, close + 1)
            if target is None:
                return None if not more and len(line) < close + URL_LOOK else (1, "[")
            form = inline.token(shown, target[1].strip("/")) if target[1][:1] == target[1][-1:] == "/" else ""
            return self._replace(target.end(), "" if form else shown, form)
        if following == "[":
            end = line.find("]", close + 2, close + 100)
            if end < 0 and not more and len(line) < close + 100:
                return None
            return self._replace(end + 1, shown, "") if end > 0 else (1, "[")
        if shown.startswith("^") or (shown.isdigit() and not self._prev.isspace()):
            return close + 1, ""
        return 1, "["

    def _replace(self, size: int, shown: str, out: str) -> tuple[int, str]:
        """Take ``size`` characters, read ``shown`` in their place, and hand out ``out``."""
        self._rest = shown + self._rest[size:]
        self._prev = "["
        return 0, out

    def _image(self, rest: str, more: bool) -> tuple[int, str] | None:
        if len(rest) == 1 and not more:
            return None
        return 1, "" if rest[1:2] == "[" else "!"

    def _escape(self, rest: str, more: bool) -> tuple[int, str] | None:
        if len(rest) == 1 and not more:
            return None
        marked = len(rest) > 1 and rest[1] in "\\`*_{}[]()#+-.!|<>~$&"
        return (2, rest[1]) if marked else (1, "\\")

    def _tag(self, rest: str, more: bool) -> tuple[int, str] | None:
        if found := AUTOLINK.match(rest):
            return found.end(), found[1].removeprefix("mailto:")
        if found := TAG.match(rest):
            return found.end(), " " if re.match(r"</?(?:br|p|li|div|td|tr)\b", found[0]) else ""
        line = rest.partition("\n")[0]
        opened = len(line) == 1 or line[1].isalnum() or line[1] in "/!"
        return None if opened and not more and ">" not in line and len(line) < 2 * TAG_LOOK else (1, "<")

    def _entity(self, rest: str, more: bool) -> tuple[int, str] | None:
        if found := ENTITY.match(rest):
            return found.end(), html.unescape(found[0])
        return None if not more and re.fullmatch(r"&(?:[A-Za-z]{0,8}|#\d{0,6})", rest) else (1, "&")


def _stronger(first: str, second: str) -> str:
    """The white space that two stretches of it make together: a blank line, a line break, a space, or nothing."""
    lines = max(first.count("\n"), second.count("\n"))
    return "\n" * min(lines, 2) or (" " if first or second else "")


def plain(text: str) -> str:
    """A whole text without its markup: what a :class:`Markup` gives for it, however it is cut."""
    markup = Markup()
    return markup.push(text) + markup.flush()

"""Which rule drafts with which head: a table made by asking every rule about every head in the folders."""

from __future__ import annotations

from speech_mtp import plugins
from speech_mtp.decoding import catalogue
from speech_mtp.heads.base import TrunkShape

SMALL = TrunkShape(dim=8, vocab_size=8, num_layers=4, num_heads=2, num_kv_heads=1, head_dim=4, intermediate_size=8)


def support() -> dict[str, dict[str, bool | None]]:
    """``support()[rule][head]``, heads with their default settings; None for a rule that drafts without a head."""
    heads = {name: plugins.build("heads", name, shape=SMALL) for name in plugins.names("heads")}
    return {
        rule: {name: None if catalogue.fits(rule, None) else catalogue.fits(rule, head) for name, head in heads.items()}
        for rule in catalogue.names()
    }


def support_matrix() -> str:
    """The table as text: a line per head, a column per rule; ``-`` for a rule that needs no head."""
    table = support()
    lines = [["head", *table]]
    for head in next(iter(table.values())):
        lines.append([head, *({True: "yes", False: "no", None: "-"}[row[head]] for row in table.values())])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)

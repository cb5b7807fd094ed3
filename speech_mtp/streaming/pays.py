"""Whether drafting pays on this machine: verifying several tokens costs some processors three times what one costs."""

from __future__ import annotations

import time

from speech_mtp.decoding.base import DecodingRule
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.streaming.conversation import Writer

QUESTION = "Tell me about the sea."
TOKENS = 24


def drafting_pays(lm: TextLM, rule: DecodingRule) -> bool:
    """Whether a short answer is written faster with ``rule`` than plainly. Both are written twice, in turn; the better
    time counts."""
    writers = [Writer(lm, rule), Writer(lm)]
    times = [[_seconds(writer) for writer in writers] for _ in range(2)]
    drafted, plain = (min(column) for column in zip(*times, strict=True))
    return drafted < plain


def _seconds(writer: Writer) -> float:
    conversation = writer.converse(max_new_tokens=TOKENS)
    conversation.ask(QUESTION)
    began = time.perf_counter()
    while conversation.writing:
        writer.step()
    conversation.close()
    return time.perf_counter() - began

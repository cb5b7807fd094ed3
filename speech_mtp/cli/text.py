"""Text to text: ``generate``, once or as a conversation."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speech_mtp.cli.shared import (
    Compile,
    Device,
    TextBackbone,
    Threads,
    chosen_dtype,
    listed,
    load_head,
    load_text_lm,
    text_of,
)

if TYPE_CHECKING:
    from speech_mtp.streaming.chat import Chat, Turn


def generate(
    prompt: Annotated[str | None, typer.Argument(help='The prompt; "-" reads standard input, "@file" a file.')] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="A conversation: every line of standard input is a turn.")
    ] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Read the prompt as it is, without the chat template.")] = False,
    head: Annotated[
        str | None,
        typer.Option(
            help="Packaged name or folder of the head that drafts, or none; by default what fits the backbone, where "
            "it is faster than none."
        ),
    ] = None,
    rule: Annotated[str | None, typer.Option(help="How drafts are made and judged; by default what fits.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw among so many tokens; 0 is no limit.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw among the tokens that make up so much of the chance.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="More than 1 keeps from saying things again.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of every answer.")] = 256,
    stop: Annotated[list[str] | None, typer.Option(help="End an answer before this text; may be repeated.")] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="auto (q4 for the packaged model where its kernels can be compiled, else fp32), fp32, bf16, or, with "
            "text that does not depend on the head, q4, int8, bf16-invariant."
        ),
    ] = "auto",
    backbone: TextBackbone = None,
    device: Device = "cpu",
    compile: Compile = False,
    threads: Threads = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print what drafting gave, on standard error.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="End every answer with a JSON line.")] = False,
) -> None:
    """Answer a prompt, or hold a conversation; the text comes as it is made."""
    if (prompt is None) != chat:
        raise ValueError("Give either a prompt, or --chat for a conversation on standard input.")
    if chat and raw:
        raise ValueError("A conversation needs the chat template; leave --raw or --chat out.")
    if not all(stop or ()):
        raise ValueError("A stop string is empty; give some text, or leave --stop out.")
    texts = _lines() if prompt is None else iter([_whole(prompt)])
    from speech_mtp import hub
    from speech_mtp.decoding import catalogue
    from speech_mtp.streaming.chat import Chat
    from speech_mtp.streaming.pays import drafting_pays
    from speech_mtp.types import Sampling

    sampling = Sampling(temperature, top_k, top_p, seed, repetition_penalty=repetition_penalty)
    asked = None if rule is None else _one(rule)
    chosen = head is not None or asked is not None
    if head not in (None, "none"):
        hub.find_head(head)  # before the model is loaded, which takes seconds
    dtype = chosen_dtype(dtype, backbone, device, compile)
    lm = load_text_lm(backbone, dtype, device, compile, keep_layers=False, threads=threads)
    if head is None and (asked is None or not catalogue.fits(asked, None)):
        head = hub.default_head(lm.fingerprint)
    head = None if head == "none" else head
    drafter = None if head is None else load_head(head, lm)
    spec = asked or catalogue.default(drafter)
    # With weights in blocks a forward of one token is so cheap that drafts do not pay on every processor.
    unsure = drafter is not None and not chosen and lm.head_blocks is not None and lm.tokenizer.chat_template
    if unsure and not drafting_pays(lm, catalogue.build(spec, drafter)):
        head, drafter, spec = None, None, catalogue.default(None)
    talk = Chat(lm, catalogue.build(spec, drafter), sampling, max_new_tokens, tuple(stop or ()), raw)
    about = {"head": head, "rule": catalogue.label(spec), "lossless": talk.rule.lossless, "dtype": dtype, "seed": seed}
    for text in texts:
        _answer(talk, text)
        if stats:
            print(_figures_for_people(talk.turns[-1]), file=sys.stderr, flush=True)
        if as_json:
            print(json.dumps({**about, **_figures(talk.turns[-1])}, ensure_ascii=False), flush=True)


def _one(rule: str) -> Any:
    from speech_mtp.decoding import catalogue

    found = listed("rule", rule)
    if len(found) > 1:
        raise ValueError(f"--rule is {rule!r}; give one rule.")
    catalogue.find(found[0])
    return found[0]


def _whole(prompt: str) -> str:
    text = text_of(prompt)
    text = text if isinstance(text, str) else "".join(text)
    if not text.strip():
        raise ValueError("The prompt is empty; write something to answer.")
    return text


def _lines() -> Iterator[str]:
    """The lines of standard input that hold something, asked for with a mark when a person types them."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")


def _answer(talk: Chat, text: str) -> None:
    for piece in talk.ask(text):
        print(piece, end="", flush=True)
    print(flush=True)


def _figures(turn: Turn) -> dict[str, Any]:
    statistics = turn.statistics
    return {
        "text": turn.text,
        "finish_reason": turn.finish.reason,
        "prompt_tokens": turn.prompt_tokens,
        "new_tokens": len(turn.tokens),
        "forwards": statistics.forwards,
        "tokens_per_forward": round(statistics.tokens_per_forward, 4),
        "acceptance": [round(rate, 4) for rate in statistics.acceptance],
        "seconds": round(turn.seconds, 4),
        "tokens_per_s": round(len(turn.tokens) / turn.seconds, 2),
        "first_text_ms": round(1000 * turn.first_text_s, 1),
    }


def _figures_for_people(turn: Turn) -> str:
    figures = _figures(turn)
    acceptance = " ".join(f"{rate:.2f}" for rate in turn.statistics.acceptance) or "none"
    return (
        f"{figures['new_tokens']} tokens after {figures['prompt_tokens']}, {figures['forwards']} forwards, "
        f"{figures['tokens_per_forward']:.2f} tokens per forward (bonus token included), "
        f"acceptance per depth: {acceptance}, {figures['tokens_per_s']} tokens/s, "
        f"first text after {figures['first_text_ms']} ms, ended by {figures['finish_reason']}"
    )

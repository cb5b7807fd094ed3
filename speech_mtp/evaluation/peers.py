"""Other people's decoders, run for comparison: the only place that does so."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria, StoppingCriteriaList

from speech_mtp.evaluation.watch import Watch
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.plugins import MissingExtra

Prompts = Sequence[Sequence[int]]


class Greedy(Protocol):
    """Answers prompts: token ids, most new tokens -> new tokens of each. ``watch`` is told of the first new ones."""

    def __call__(self, prompts: Prompts, max_new_tokens: int, watch: Watch | None = None) -> list[list[int]]: ...


def transformers_greedy(lm: TextLM, lookup: int = 0, native: Path | None = None) -> Greedy:
    """``transformers.generate`` with the model of ``lm``.

    Greedy, without any other processor that the model's own settings may ask for, and with the same end tokens as ours.
    Several prompts are padded on the left. ``lookup`` drafts so many tokens by its prompt lookup. ``native`` is a model
    in DeepSeek's layout with the same trunk (``speech-mtp export deepseek``), whose heads it then drafts with by
    itself; the code in that folder is run. Both take one prompt at a time. Errors as for
    :meth:`TextLM.check_layers`.
    """
    if native is None:
        lm.check_layers()
    ends, model = sorted(lm.ends), lm.model if native is None else _with_heads(native, lm)

    def answer(prompts: Prompts, max_new_tokens: int, watch: Watch | None = None) -> list[list[int]]:
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=lm.device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=lm.device)
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=ends or None,
            pad_token_id=ends[0] if ends else 0,
            prompt_lookup_num_tokens=lookup or None,
            use_mtp=native is not None or None,
        )
        with _without_own_settings(model), torch.inference_mode():
            told = StoppingCriteriaList([] if watch is None else [_Telling(watch, width)])
            out = model.generate(ids, attention_mask=mask, generation_config=config, stopping_criteria=told)
        return [_until(row, lm.ends) for row in out[:, width:].tolist()]

    return answer


class _Telling(StoppingCriteria):
    """Stops nothing: it is called after every step, and tells ``watch`` how many tokens follow the ``width`` of the
    prompts."""

    def __init__(self, watch: Watch, width: int) -> None:
        self.watch, self.width = watch, width

    def __call__(self, input_ids: Tensor, scores: Any, **more: Any) -> Tensor:
        self.watch.note(input_ids.shape[1] - self.width)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _with_heads(folder: Path, lm: TextLM) -> Any:
    """The model with MTP layers in ``folder``. Raises ValueError if its trunk is not that of ``lm``."""
    config = folder / "config.json"
    if not (config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("num_mtp_layers")):
        raise ValueError(f"{folder} is no model with MTP layers; write one with speech-mtp export deepseek.")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=lm.dtype, trust_remote_code=True).eval().to(lm.device)
    ours, theirs = (m.get_input_embeddings().weight for m in (lm.model, model))
    if not torch.equal(ours, theirs):
        raise ValueError(f"The trunk in {folder} is another model than the one that is measured; export its own.")
    return model


@contextmanager
def _without_own_settings(model: Any) -> Iterator[None]:
    """Whatever a call leaves open is filled in from the model's own settings, so they are put aside meanwhile."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _until(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """Up to the first end token, which is kept; what follows is padding."""
    at = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: at + 1]


def llama_cpp_greedy(path: Path, context: int, ends: frozenset[int]) -> Greedy:
    """``llama.cpp`` with the GGUF file ``path`` of the same model, one prompt after the other, greedily.

    Its threads are as many as torch has. Raises MissingExtra when the package ``llama-cpp-python`` is not installed,
    and FileNotFoundError.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no GGUF file {path}.")
    try:
        library: Any = importlib.import_module("llama_cpp")
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "The package llama_cpp is not installed; install it with pip install llama-cpp-python."
        ) from error
    threads = torch.get_num_threads()
    model = library.Llama(model_path=str(path), n_ctx=context, n_threads=threads, verbose=False)

    def one(prompt: Sequence[int], max_new_tokens: int, watch: Watch | None) -> list[int]:
        said: list[int] = []
        model.reset()  # else it would keep what the prompt before began with, and not read it
        for token in model.generate(list(prompt), top_k=1, temp=0.0, repeat_penalty=1.0):
            said.append(int(token))
            if watch is not None:
                watch.note(1)
            if said[-1] in ends or len(said) == max_new_tokens:
                break
        return said

    def answer(prompts: Prompts, max_new_tokens: int, watch: Watch | None = None) -> list[list[int]]:
        return [one(prompt, max_new_tokens, watch) for prompt in prompts]

    return answer

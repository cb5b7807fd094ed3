"""Decoding with drafts for ``model.generate(custom_generate=FOLDER, trust_remote_code=True)``, lossless.

This file is ``custom_generate/generate.py`` of an exported folder and stands alone: it needs torch and transformers.
A head, ``head.safetensors`` beside it, reads the model's state at the newest position and drafts a chain of tokens; the
model scores all of them in one forward, and as many are kept as it would have written itself. Greedy text is that of
``model.generate``; sampled text follows the same law (Leviathan et al. 2023, arXiv:2211.17192): a draft x from q is
kept with probability ``min(1, p(x) / q(x))``; where it is not, a token is drawn from ``max(0, p - q)``, normalised.

One text at a time. Logits processors (temperature, top-k, penalties, ...) act on drafts and on the model alike, and
stopping criteria and streamers work as always.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import DynamicCache, GenerationMixin
from transformers.generation.utils import GenerateDecoderOnlyOutput
from transformers.utils import cached_file

PART = "custom_generate"
CACHE = ("cache", "past_key_values")
"""What newer and older releases of transformers call the cache."""
UNDERSTOOD = {"attention_mask", "cache_position", "logits_to_keep", "position_ids", "use_cache", *CACHE}
EXTRAS = ("output_attentions", "output_hidden_states", "output_logits", "output_scores")


def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
    """As ``model.generate``, with the same arguments, for a single text."""
    drafter, shown = _Drafter(model, _folder(model)), kwargs.get("streamer")

    def decode(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        streamer: Any = None,
        synced_gpus: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        # The streamer of the call itself: not every release hands it on to here.
        _check(input_ids, generation_config, model_kwargs)
        cache = _found(model_kwargs)
        run = _Decoding(model, drafter, cache, logits_processor, stopping_criteria, generation_config, shown)
        return run.text(input_ids)

    return GenerationMixin.generate(model, *args, custom_generate=decode, **kwargs)


def _folder(model: Any) -> str:
    """Where this file came from: a folder or hub repository.

    ``transformers`` runs a copy and does not say of what, so the calling frames are asked for the ``custom_generate``
    that they were given. If there is none the model itself was loaded from the folder.
    """
    frame = inspect.currentframe()
    while frame is not None:
        given = frame.f_locals.get("custom_generate")
        if frame.f_code.co_name == "generate" and isinstance(given, str):
            return given
        frame = frame.f_back
    return str(model.name_or_path)


class _Drafter:
    """The head: residual blocks per offset, on the state alone (Medusa) or with the tokens drafted so far (Hydra)."""

    def __init__(self, model: Any, folder: str) -> None:
        config = json.loads(Path(str(cached_file(folder, f"{PART}/head.json"))).read_text(encoding="utf-8"))
        weights = load_file(str(cached_file(folder, f"{PART}/head.safetensors")))
        self.embed, self.output = model.get_input_embeddings(), model.get_output_embeddings()
        if self.output.weight.shape != (config["vocab_size"], config["dim"]):
            raise ValueError(
                f"The head in {folder} was trained on a model with {config['vocab_size']} tokens and states of "
                f"{config['dim']}; this model has {tuple(self.output.weight.shape)}."
            )
        to = self.output.weight
        self.weights = {k: v.to(to.device, to.dtype if v.is_floating_point() else v.dtype) for k, v in weights.items()}
        self.taps, self.count = config["taps"], config["num_heads"]
        self.vocab_size, self.token_map = config["vocab_size"], self.weights.get("token_map")

    def base(self, states: tuple[Tensor, ...], at: int) -> Tensor:
        """``states [1, T, D]`` of all layers -> what the head reads at position ``at``: ``[1, D]``."""
        taps = torch.stack([states[tap][:, at] for tap in self.taps], -2)
        if "mix.weight" in self.weights:
            return (taps * self.weights["mix.weight"].softmax(0)[:, None]).sum(-2)
        if "mix.map.weight" in self.weights:
            return F.linear(taps.flatten(-2), self.weights["mix.map.weight"])
        return taps[:, -1]

    def scores(self, base: Tensor, after: Tensor) -> Tensor:
        """The state and the ``n`` tokens ``after [1, n]`` it -> logits of the next token ``[1, V]``."""
        w, j, x, i = self.weights, after.shape[1] - 1, base, 0
        while (block := f"blocks.{j}.{i}") + ".linear.weight" in w:
            skip = w.get(f"{block}.skip.weight")
            z = x if skip is None else torch.cat([x, self.embed(after).flatten(1)], -1)
            step = F.silu(F.linear(z, w[f"{block}.linear.weight"], w[f"{block}.linear.bias"]))
            x, i = (z if skip is None else F.linear(z, skip)) + step, i + 1
        if f"private.{j}.weight" in w:
            logits = F.linear(x, w[f"private.{j}.weight"])
        elif self.token_map is not None:
            logits = F.linear(x, self.output.weight[self.token_map])
        else:
            logits = self.output(x)
        if self.token_map is None:
            return logits.float()
        wide = logits.new_full((1, self.vocab_size), float("-inf"), dtype=torch.float32)
        return wide.scatter(1, self.token_map[None], logits.float())


class _Decoding:
    """One text that grows: ``ids [1, T]``, of which all but the newest are in ``cache``."""

    def __init__(
        self, model: Any, drafter: _Drafter, cache: Any, processors: Any, criteria: Any, config: Any, streamer: Any
    ) -> None:
        self.model, self.drafter, self.cache = model, drafter, cache
        self.processors, self.criteria, self.config, self.streamer = processors, criteria, config, streamer
        self.sampling, self.stopped = bool(config.do_sample), False

    def text(self, ids: Tensor) -> Any:
        """The prompt ``ids [1, T]`` -> the whole text ``[1, T + n]``."""
        self.ids = ids
        logits, states = self._forward(ids[:, self.cache.get_seq_length() :], 1)
        self._append(self._pick(self._law(ids, logits[:, -1])))
        at = -1
        while not self.stopped:
            room = self.config.max_length - self.ids.shape[1] - 1
            drafts, laws = self._draft(self.drafter.base(states, at), min(self.drafter.count, room))
            logits, states = self._forward(torch.cat([self.ids[:, -1:], *drafts], 1), len(drafts) + 1)
            at = self._verify(drafts, laws, logits)
            self._crop(len(drafts) - at)
        self._crop(self.cache.get_seq_length() - self.ids.shape[1] + 1)
        if self.streamer is not None:
            self.streamer.end()
        if self.config.return_dict_in_generate:
            return GenerateDecoderOnlyOutput(sequences=self.ids, **_named(GenerateDecoderOnlyOutput, self.cache))
        return self.ids

    def _forward(self, tokens: Tensor, count: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        """``tokens [1, M]`` behind the cache -> logits of the last ``count`` of them, states of all."""
        out = self.model(
            input_ids=tokens.to(self.model.device),
            use_cache=True,
            output_hidden_states=True,
            logits_to_keep=count,
            **_named(self.model.forward, self.cache),
        )
        return out.logits.float(), out.hidden_states

    def _law(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Logits ``[1, V]`` of the token after ``ids`` -> what it is picked by: probabilities, or scores if greedy."""
        scores = self.processors(ids, logits.to(copy=True, dtype=torch.float32, device=ids.device))
        return torch.softmax(scores, -1) if self.sampling else scores

    def _pick(self, law: Tensor) -> Tensor:
        return torch.multinomial(law, 1) if self.sampling else law.argmax(-1, keepdim=True)

    def _draft(self, base: Tensor, count: int) -> tuple[list[Tensor], list[Tensor]]:
        """Up to ``count`` tokens ``[1, 1]`` and the laws ``[1, V]`` that they were drawn from."""
        drafts: list[Tensor] = []
        laws: list[Tensor] = []
        for _ in range(count):
            after = torch.cat([self.ids[:, -1:], *drafts], 1).to(base.device)
            law = self._law(torch.cat([self.ids, *drafts], 1), self.drafter.scores(base, after))
            if not law.isfinite().any():
                break  # the processors forbid all that this head can draft
            laws.append(law)
            drafts.append(self._pick(law))
        return drafts, laws

    def _verify(self, drafts: list[Tensor], laws: list[Tensor], logits: Tensor) -> int:
        """Append what is kept and one sure token; how many drafts were kept."""
        for i, (token, q) in enumerate(zip(drafts, laws, strict=True)):
            p = self._law(self.ids, logits[:, i])
            if self.sampling:
                kept = bool(torch.rand_like(p[:, :1]) * q.gather(1, token) < p.gather(1, token))
                rest = (p - q).clamp(min=0)
                rest = rest if rest.any() else p  # p and q equal but for rounding
            else:
                kept, rest = bool((token == p.argmax(-1, keepdim=True)).all()), p
            self._append(token if kept else self._pick(rest))
            if self.stopped or not kept:
                return i + int(kept)
        self._append(self._pick(self._law(self.ids, logits[:, len(drafts)])))
        return len(drafts)

    def _append(self, token: Tensor) -> None:
        self.ids = torch.cat([self.ids, token], 1)
        if self.streamer is not None:
            self.streamer.put(token[0].cpu())
        self.stopped = bool(self.criteria(self.ids, None).all())

    def _crop(self, count: int) -> None:
        """Take the newest ``count`` entries out of the cache."""
        if count > 0:
            self.cache.crop(-count)


def _found(model_kwargs: dict[str, Any]) -> Any:
    """The cache among the arguments that ``generate`` has prepared, or None."""
    return next((model_kwargs[name] for name in CACHE if model_kwargs.get(name) is not None), None)


def _named(taker: Any, cache: Any) -> dict[str, Any]:
    """``cache`` under the name that the signature of ``taker`` has for it."""
    newer, older = CACHE
    return {newer if newer in inspect.signature(taker).parameters else older: cache}


def _check(ids: Tensor, config: Any, model_kwargs: dict[str, Any]) -> None:
    """Raise ValueError for what cannot be done, rather than leave it out."""
    mask, cache = model_kwargs.get("attention_mask"), _found(model_kwargs)
    asked = [name for name in EXTRAS if config.return_dict_in_generate and getattr(config, name, False)]
    unknown = sorted(name for name, value in model_kwargs.items() if name not in UNDERSTOOD and value is not None)
    if ids.shape[0] != 1 or config.num_beams > 1:
        raise ValueError("This head drafts for one text at a time, without beams; give one prompt.")
    if mask is not None and not bool((mask == 1).all()):
        raise ValueError("The attention mask hides tokens; give the prompt without padding.")
    if unknown or asked or getattr(config, "guidance_scale", None) not in (None, 1, 1.0):
        named = ", ".join(unknown + asked) or "guidance_scale"
        raise ValueError(f"Decoding with drafts knows nothing of {named}; leave it out.")
    layers = getattr(cache, "layers", [])
    if not isinstance(cache, DynamicCache) or any(getattr(layer, "is_sliding", False) for layer in layers):
        raise ValueError("Drafts need a dynamic cache of full attention; leave the cache's settings as they are.")

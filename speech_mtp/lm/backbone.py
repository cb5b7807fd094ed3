"""The text language model behind speech: the only file that knows Hugging Face causal LMs.

A backbone reads text and gives one hidden state per token, taken from a layer of choice; the layers above that
one are not computed. Every text is read as the assistant's own turn of the model's chat format. Supported are
decoders with attention in every layer and a KV cache; recurrent and hybrid models are refused by name.

The backbone knows nothing of phonemes, codes or speech; phonemes written in a text are left out of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import is_accelerate_available, logging

from speech_mtp.lm.cache import HuggingFaceCache, as_keyword
from speech_mtp.lm.fingerprint import check_weights, fingerprint_of
from speech_mtp.lm.reader import TextReader
from speech_mtp.nn.row_pool import Chains, RowPool

MODEL_TYPES = (
    "gemma",
    "gemma2",
    "gemma3_text",
    "llama",
    "mistral",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
)
"""``config.model_type`` of the supported families."""


class Backbone(nn.Module, TextReader):
    """A causal LM and its tokenizer, frozen unless said otherwise.

    ``hidden_layer`` n in 1..N-1 gives the output of the first n of N layers, as ``output_hidden_states[n]`` of
    the whole model would; -1 (or N) gives the last layer's output after the final norm. ``fingerprint`` names the
    weights: checkpoints trained on one backbone refuse another. Raises ValueError for an unsupported model.
    """

    def __init__(
        self, model: Any, tokenizer: Any, fingerprint: str, hidden_layer: int = -1, frozen: bool = True
    ) -> None:
        super().__init__()
        TextReader.__init__(self)
        check_supported(model.config)
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError("The backbone's tokenizer gives no character offsets; use one with a tokenizer.json.")
        self.model = model
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.frozen = frozen
        self.dim: int = model.config.hidden_size
        self.hidden_layer = hidden_layer
        self._lower = (_first_layers(model.base_model, hidden_layer),)  # in a tuple: shares modules, owns none
        self.prefix = assistant_prefix(tokenizer)
        self.text_tokens = tokenizer.backend_tokenizer
        self.train(False)
        self.requires_grad_(not frozen)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        dtype: torch.dtype = torch.float32,
        fingerprint: str | None = None,
        hidden_layer: int = -1,
        frozen: bool = True,
    ) -> Self:
        """The backbone saved in ``folder`` (config.json, safetensors, tokenizer.json), in ``dtype``.

        Raises FileNotFoundError when the folder holds no model and ValueError when it cannot serve as backbone.
        """
        model, tokenizer = load_causal_lm(folder, dtype)
        found = fingerprint or fingerprint_of(Path(folder))
        return cls(model, tokenizer, found, hidden_layer, frozen)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def train(self, mode: bool = True) -> Self:
        """A frozen backbone stays in evaluation mode whatever the model around it does."""
        return super().train(mode and not self.frozen)

    def _open_pool(self) -> RowPool:
        c = self._lower[0].config
        width = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        return RowPool(c.num_hidden_layers, c.num_key_value_heads, width, self.device, self.model.dtype)

    def _read_chains(self, chains: Chains, tokens: list[list[int]]) -> Sequence[Tensor]:
        rows = [torch.tensor(row, device=self.device) for row in tokens]
        index = chains.padded_places
        return self._run(
            nn.utils.rnn.pad_sequence(rows, batch_first=True),
            position_ids=index,
            attention_mask=self._masks(index, chains.seen),
            use_cache=True,
            **as_keyword(self._lower[0], HuggingFaceCache(chains)),
        ).unbind()

    def _masks(self, index: Tensor, seen: int) -> Any:
        """What is added to the scores of queries at ``index [R, M]`` over the entries before ``seen``:
        ``[R, 1, M, S]``, or a dictionary of it for layers that see all and layers that see a window."""
        config = self._lower[0].config
        gap = index[:, None, :, None] - torch.arange(seen, device=index.device)

        def mask(visible: Tensor) -> Tensor:
            zeros = torch.zeros(visible.shape, dtype=self.model.dtype, device=index.device)
            return zeros.masked_fill_(~visible, torch.finfo(zeros.dtype).min)

        window, everything = getattr(config, "sliding_window", None), mask(gap >= 0)
        if window is None:
            return everything
        near = mask((gap >= 0) & (gap < window))
        if getattr(config, "layer_types", None) is None:
            return near
        return {"full_attention": everything, "sliding_attention": near}

    def _read_whole(self, ids: Tensor) -> Tensor:
        return self._run(ids, use_cache=False)

    def _run(self, ids: Tensor, **more: Any) -> Tensor:
        hidden: Tensor = self._lower[0](input_ids=ids.to(self.device), **more).last_hidden_state.float()
        return hidden


def load_causal_lm(
    folder: str | Path, dtype: torch.dtype | None, device: str | torch.device = "cpu"
) -> tuple[Any, Any]:
    """Model and tokenizer of ``folder``, in ``dtype`` (None: that of the file) on ``device``. Raises FileNotFoundError
    and ValueError as :meth:`Backbone.from_folder`."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"There is no language model in {folder}: it has no config.json; check the path.")
    check_supported(AutoConfig.from_pretrained(folder, local_files_only=True))
    check_weights(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    # With accelerate every tensor is read straight to its device; without, the model is read and moved.
    there = {"device_map": {"": device}} if torch.device(device).type != "cpu" and is_accelerate_available() else {}
    with _without_bars():
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype or "auto", local_files_only=True, use_safetensors=True, **there
        )
    return model.to(device), tokenizer


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of ``folder`` alone. Raises FileNotFoundError when there is none."""
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(f"There is no tokenizer in {folder}: it has no tokenizer.json; get the model again.")
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Loading takes seconds and no progress bar: standard error is for what goes wrong."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_supported(config: Any) -> None:
    """Raise ValueError, naming the family, unless ``config`` is of a supported attention-only decoder."""
    kind = config.model_type
    if kind not in MODEL_TYPES:
        raise ValueError(f"A {kind!r} model cannot be the backbone; use a decoder of {', '.join(MODEL_TYPES)}.")
    if getattr(config, "use_bidirectional_attention", None):
        raise ValueError(f"This {kind!r} model attends to later tokens; use a causal language model as backbone.")


def untrained(config: dict[str, Any]) -> Any:
    """A causal LM with random weights of the ``to_dict()`` of a configuration, to load trained weights into."""
    entries = dict(config)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(entries.pop("model_type"), **entries))


def assistant_prefix(tokenizer: Any) -> list[int]:
    """Tokens that open an assistant turn, such as ``<|im_start|>assistant\\n``; without a chat format just bos."""
    opening = ""
    if tokenizer.chat_template:
        turn = [{"role": "user", "content": "Hello"}]
        asked = tokenizer.apply_chat_template(turn, tokenize=False)
        opened = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        opening = opened.removeprefix(asked)
    tokens = list(tokenizer(opening)["input_ids"])  # with bos where the tokenizer adds it
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if not tokens and first is None:
        raise ValueError("The backbone's tokenizer has no chat format and no bos or eos token; it cannot start a turn.")
    return tokens or [first]


def _first_layers(decoder: Any, count: int) -> Any:
    """``decoder`` cut to its first ``count`` layers without the final norm; the modules are shared, not copied."""
    total = len(decoder.layers)
    if count in (-1, total):
        return decoder
    if not 1 <= count < total:
        raise ValueError(f"hidden_layer is {count}, but the backbone has {total} layers; use 1 to {total}, or -1.")
    lower = copy.copy(decoder)
    lower._modules = dict(decoder._modules)
    lower.layers = decoder.layers[:count]
    setattr(lower, "norm" if hasattr(decoder, "norm") else "final_layernorm", nn.Identity())
    settings = decoder.config.to_dict()
    if settings.get("layer_types"):
        settings["layer_types"] = settings["layer_types"][:count]
    lower.config = type(decoder.config).from_dict({**settings, "num_hidden_layers": count})
    lower.config._attn_implementation = decoder.config._attn_implementation
    return lower


def trunk_sizes(config: Any) -> dict[str, Any]:
    """What a head must know of a causal LM with the Hugging Face ``config``, besides its vocabulary."""
    rope = getattr(config, "rope_parameters", None) or {}
    heads = config.num_attention_heads
    return {
        "dim": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": heads,
        "num_kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "intermediate_size": config.intermediate_size,
        "rms_norm_eps": getattr(config, "rms_norm_eps", None) or getattr(config, "layer_norm_eps", 1e-5),
        "rope_theta": float(rope.get("rope_theta") or getattr(config, "rope_theta", None) or 10_000.0),
    }

"""A Hugging Face causal LM as a trunk for text: prefill, verify a draft, commit what was kept.

It owns its key-value cache (:mod:`speech_mtp.lm.cache`), so rows may have different lengths and a draft may be a tree.
The model is read through its decoder alone; it knows nothing of heads, rules or sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.lm.backbone import check_supported, load_causal_lm, trunk_sizes
from speech_mtp.lm.block_weights import BlocksOf
from speech_mtp.lm.cache import HuggingFaceCache, KVCache, ancestors_of, as_keyword
from speech_mtp.lm.decoder import Decoder, additive
from speech_mtp.lm.fingerprint import fingerprint_of
from speech_mtp.lm.graphs import MOST_NODES, CudaRecorder, GraphedForward
from speech_mtp.lm.rows import Place, Rows, Trunk
from speech_mtp.lm.unembedding import Unembedding
from speech_mtp.nn.packed import pack_linears
from speech_mtp.nn.transformer import causal_mask
from speech_mtp.types import Draft, Emitted, LMOutput, RowSampling, Sampling, Verdict


@dataclass
class TextPlace(Place):
    """``token`` is the newest token, ``left`` how many more the row may have."""

    token: Tensor
    left: Tensor


@dataclass
class TextRows(Rows):
    """Rows of text: ``tokens [R, S]`` are what each has read and said, ``place.position`` of them valid."""

    tokens: Tensor

    @property
    def lengths(self) -> Tensor:
        """``[R]``: how many tokens each row has."""
        lengths: Tensor = self.place.position
        return lengths


class TextLM(nn.Module, Trunk):
    """``model`` is a Hugging Face causal LM with full attention, ``tokenizer`` its tokenizer.

    A *tap* names a layer: k in 0..N-1 is the output of the first k layers (0: the embeddings), -1 the top, after the
    final norm. Raises ValueError for recurrent, hybrid and sliding-window models, by name.
    """

    def __init__(self, model: Any, tokenizer: Any = None, fingerprint: str = "") -> None:
        super().__init__()
        check_supported(model.config)
        if getattr(model.config, "sliding_window", None) and getattr(model.config, "use_sliding_window", True):
            raise ValueError(
                f"This {model.config.model_type!r} model attends within a sliding window; drafts need full attention."
            )
        self.model, self.tokenizer, self.fingerprint = model.eval(), tokenizer, fingerprint
        self.output = Unembedding(model.get_output_embeddings())
        self._sizes = trunk_sizes(model.config)
        self.dim: int = self._sizes["dim"]
        self.vocab_size: int = self.output.channel_sizes[0]
        self.num_layers: int = self._sizes["num_layers"]
        self.max_positions: int = model.config.max_position_embeddings
        self._decoder: Decoder | None = None
        self._graphs: GraphedForward | None = None

    def prepare(
        self,
        keep_layers: bool = True,
        graphs: bool = True,
        compile: bool = False,
        invariant: bool = False,
        blocks: BlocksOf | None = None,
    ) -> Self:
        """Make ready to decode fast: weights are packed. Training the model further needs to load it anew.

        Without ``keep_layers`` the layers that decoding does not need are let go one by one, so that their weights are
        not in memory twice.
        ``graphs`` lets a GPU verify drafts by CUDA graphs (:mod:`speech_mtp.lm.graphs`; not for families that decode by
        their own layers). ``compile`` fuses what lies between the products, if there is a compiler
        (:meth:`speech_mtp.lm.decoder.Decoder.compile`). ``invariant`` gives every node the same numbers whatever it is
        verified with (:mod:`speech_mtp.lm.decoder`): greedy text in bfloat16 is then the same whatever drafts it.

        ``blocks`` gives the weights of the layers and of the output in blocks of a few bits
        (:mod:`speech_mtp.nn.blocks`), for a CPU; decoding is then invariant.

        Raises ValueError, before anything is changed, for families that cannot be compiled or kept in blocks, for what
        cannot be invariant (:meth:`speech_mtp.lm.decoder.Decoder.check_invariance`), and for both at once.
        """
        own = Decoder.fits(self.model)
        if blocks is not None:
            self.check_blocks(compile)
        if compile and not own:
            raise ValueError(f"{self.model.config.model_type!r} models cannot be compiled; leave compile out.")
        if compile and (invariant or self.invariant):
            raise ValueError("Compiled decoding is not invariant; ask for one of the two.")
        if invariant and not own:
            raise ValueError(f"{self.model.config.model_type!r} models cannot be decoded invariantly; use float32.")
        if blocks is not None and self._decoder is not None:
            raise ValueError("The model was prepared already; load it anew to put its weights into blocks.")
        if invariant and self._decoder is not None and not self.invariant:
            raise ValueError("The model was prepared for decoding that is not invariant; load it anew.")
        if self._decoder is None:
            if invariant and blocks is None:
                Decoder.check_invariance(self.model)
            output = self.output.packed(invariant) if blocks is None else self.output.in_blocks(blocks)
            self._decoder = Decoder(self.model, invariant, keep_layers, blocks) if own else None
            self.output.replace(output)
            if self._decoder is None:
                pack_linears(self.model.base_model)
        if self._decoder is not None and not keep_layers:
            self.model.base_model.layers = nn.ModuleList()
        if compile and self._decoder is not None:
            self._decoder.compile()
        recorded = graphs and self._decoder is not None and self.device.type == "cuda"
        self._graphs = GraphedForward(self._follow, CudaRecorder(self.device)) if recorded else None
        return self

    def check_blocks(self, compile: bool = False) -> None:
        """Raise ValueError for a model whose weights cannot be kept in blocks."""
        if compile or self.device.type != "cpu" or not Decoder.fits(self.model):
            raise ValueError(
                f"Weights in blocks are for Llama-like models on a CPU that are not compiled, not for a "
                f"{self.model.config.model_type!r} model on {self.device.type}; use bf16."
            )

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        dtype: torch.dtype | None = torch.float32,
        fingerprint: str | None = None,
        device: str | torch.device = "cpu",
    ) -> Self:
        """The causal LM saved in ``folder``, in ``dtype`` (None: that of the file) on ``device``. Errors as for
        :meth:`speech_mtp.lm.backbone.Backbone.from_folder`."""
        model, tokenizer = load_causal_lm(folder, dtype, device)
        return cls(model, tokenizer, fingerprint or fingerprint_of(Path(folder)))

    def shape(self) -> dict[str, Any]:
        """The sizes that a head must know, as keyword arguments of ``TrunkShape``."""
        return {**self._sizes, "vocab_size": self.vocab_size}

    def binding(self) -> dict[str, Any]:
        """What a head borrows, as keyword arguments of ``Binding``."""
        decoder = self.model.base_model
        norm = decoder.norm if hasattr(decoder, "norm") else decoder.final_layernorm
        weight = self.model.get_output_embeddings().weight
        return {"embed": self.embed, "unembed": self.output.logits, "weight": weight, "norm": norm}

    @property
    def device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype

    @property
    def state_dtype(self) -> torch.dtype:
        """Of the states that heads read."""
        return self.dtype

    @property
    def invariant(self) -> bool:
        """Whether a node is given the same numbers whatever it is verified with."""
        return self._decoder is not None and self._decoder.invariant

    @property
    def head_blocks(self) -> str | None:
        """The kind of blocks that heads of this trunk keep their weights in: 8 bits where the trunk has blocks."""
        return None if self._decoder is None or not self._decoder.in_blocks else "q8"

    @property
    def decoder(self) -> Decoder | None:
        """Our own layers, once :meth:`prepare` has made them; None for other families."""
        return self._decoder

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end an answer."""
        named = getattr(self.model.generation_config, "eos_token_id", None)
        found = set([named] if isinstance(named, int) else named or [])
        if self.tokenizer is not None and self.tokenizer.eos_token_id is not None:
            found.add(int(self.tokenizer.eos_token_id))
        return frozenset(found)

    def embed(self, tokens: Tensor) -> Tensor:
        """``[..., T]`` -> ``[..., T, D]``, as the model's first layer reads them."""
        out: Tensor = self.model.get_input_embeddings()(tokens)
        return out

    def trunk_states(
        self, x: Tensor, index: Tensor, mask: Tensor, cache: KVCache | None = None, taps: tuple[int, ...] = (-1,)
    ) -> LMOutput:
        """The model's own decoder: ``x [B, T, D]``, ``index [B, T]``, ``mask [B, 1, T, S]`` bool (True: may look). A
        model with weights in blocks gives, without a cache, the states that it decodes with, and no gradients; there
        every position must see itself and none after it (ValueError).

        Errors as for :meth:`check_layers`."""
        if cache is None and self._decoder is not None and self._decoder.in_blocks:
            b, t = x.shape[:2]
            sees = mask[:, 0].expand(b, t, t)
            if not sees.diagonal(dim1=1, dim2=2).all() or sees.triu(1).any():
                raise ValueError("With weights in blocks a position must see itself, and none that comes after it.")
            whole = bool(sees.sum() == b * t * (t + 1) // 2)  # each sees all before it, as it does without a mask
            with torch.autocast(x.device.type, enabled=False):
                hidden, final = self._decoder.nodes(
                    x.detach(), index.expand(b, t), None if whole else sees, self.open(b, t).cache, taps, t
                )
            return LMOutput(hidden, final=final)
        self.check_layers()
        out = self.model.base_model(
            inputs_embeds=x,
            position_ids=index,
            attention_mask=additive(mask, x.dtype),
            use_cache=cache is not None,
            output_hidden_states=taps != (-1,),
            **as_keyword(self.model.base_model, None if cache is None else HuggingFaceCache(cache)),
        )
        layers = [out.last_hidden_state if tap == -1 else out.hidden_states[tap] for tap in taps]
        return LMOutput(torch.stack(layers, 2), final=out.last_hidden_state)

    def check_layers(self) -> None:
        """Raise ValueError if :meth:`prepare` has let the model's own layers go, or has put other weights in place of
        theirs."""
        if self._decoder is not None and self._decoder.in_blocks:
            raise ValueError("This model decodes with weights in blocks, not with those of its layers; load it anew.")
        if len(self.model.base_model.layers) < self.num_layers:
            raise ValueError(
                "This model was prepared to decode only, and its layers were let go; load it anew, or keep its layers."
            )

    def forward(self, tokens: Tensor, lengths: Tensor, taps: tuple[int, ...] = (-1,)) -> LMOutput:
        """Teacher-forced states of right-padded ``tokens [B, T]``, for training: ``[B, T, taps, D]``, as those of
        :meth:`trunk_states`."""
        index = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        valid = index < lengths[:, None]
        return self.trunk_states(self.embed(tokens), index, causal_mask(valid), None, taps)

    # -- decoding ---------------------------------------------------------------------------------------------
    def open(self, rows: int, size: int = 128) -> TextRows:
        """``rows`` empty rows with room for ``size`` tokens at first (it grows)."""
        dtype = self.dtype if self._decoder is None else self._decoder.cache_dtype
        kv_heads, head_dim = self._sizes["num_kv_heads"], self._sizes["head_dim"]
        cache = KVCache.empty(self.num_layers, rows, kv_heads, size, head_dim, self.device, dtype)
        zeros = torch.zeros(rows, dtype=torch.long, device=self.device)
        tokens = torch.zeros(rows, size + 1, dtype=torch.long, device=self.device)
        place = TextPlace(zeros, zeros, zeros)
        sampling = RowSampling([Sampling()] * rows, self.device)
        return TextRows(cache, zeros[:, None], place, sampling, None, 0, tokens)

    @torch.inference_mode()
    def read(
        self, rows: TextRows, texts: Sequence[Sequence[int]], taps: tuple[int, ...] = (-1,), ahead: int = 0
    ) -> tuple[LMOutput, Emitted]:
        """Add known tokens to every row: a prompt, or a later turn of a chat behind what was generated.

        All but the newest token of a row enter the cache. Returns their states ``[B, T, taps, D]`` and the tokens that
        follow each. Room is made for ``ahead`` tokens more, with drafts behind them.
        """
        old = rows.lengths.tolist()
        fed = [
            ([int(rows.last[b, 0])] if old[b] else []) + list(text) for b, text in enumerate(texts)
        ]  # whatever is not in the cache yet
        if not all(fed):
            raise ValueError("A row has no token to start from; give every row at least one.")
        longest = max(n + len(text) for n, text in zip(old, texts, strict=True))
        if longest > self.max_positions:
            raise ValueError(
                f"The text is {longest} tokens long, but the model reads {self.max_positions}; shorten it."
            )
        self._make_room(rows, longest - min(old) + (ahead + MOST_NODES if ahead else 0))
        for b, text in enumerate(texts):
            rows.tokens[b, old[b] : old[b] + len(text)] = torch.tensor(list(text), device=self.device)
        lengths = rows.lengths + torch.tensor([len(text) for text in texts], device=self.device)
        rows.last = torch.tensor([row[-1] for row in fed], device=self.device)[:, None]
        rows.place = TextPlace(lengths, rows.last[:, 0], rows.place.left)
        padded = [torch.tensor(row, device=self.device) for row in fed]
        both = nn.utils.rnn.pad_sequence(padded, batch_first=True)
        count = torch.tensor([len(row) - 1 for row in fed], device=self.device)
        tokens, after = both[:, :-1], both[:, 1:]
        out = self._run(rows, tokens, taps)
        rows.cache.advance(count, tokens.shape[1])
        rows.cache.know(longest - 1)
        rows.version += 1
        return out, Emitted(after[..., None], None, count)

    def _run(self, rows: TextRows, tokens: Tensor, taps: tuple[int, ...]) -> LMOutput:
        """A chain of tokens behind the cache; nothing is committed."""
        b, t = tokens.shape
        if t == 0:
            return LMOutput(torch.zeros(b, 0, len(taps), self.dim, device=self.device, dtype=self.dtype))
        seen = self._seen(rows.cache, t)
        if rows.cache.longest == 0:
            return self._forward(rows.cache, tokens, None, taps, seen)
        causal = torch.ones(t, t, dtype=torch.bool, device=self.device).tril()
        return self._forward(rows.cache, tokens, causal.expand(b, -1, -1), taps, seen)

    @torch.inference_mode()
    def verify(self, rows: TextRows, draft: Draft, taps: tuple[int, ...] = (-1,)) -> LMOutput:
        tokens, cache = draft.tokens[..., 0], rows.cache
        self._make_room(rows, tokens.shape[1] + 1)
        seen = self._seen(cache, tokens.shape[1])
        if self._graphs is not None and self._graphs.takes(tokens):
            return self._graphs(cache, tokens, draft.parents, taps, seen)
        return self._follow(cache, tokens, draft.parents, taps, seen)

    def _seen(self, cache: KVCache, nodes: int) -> int:
        """How many entries attention reads: on a CPU as few as it can, else a number that seldom changes."""
        needed = cache.longest + nodes
        return needed if self.device.type == "cpu" else min(cache.size, max(128, 1 << (needed - 1).bit_length()))

    def _follow(self, cache: KVCache, tokens: Tensor, parents: Tensor, taps: tuple[int, ...], seen: int) -> LMOutput:
        """The nodes of a draft ``tokens, parents [B, M]`` behind the first ``seen`` entries of the cache."""
        return self._forward(cache, tokens, ancestors_of(parents), taps, seen)

    def _forward(
        self, cache: KVCache, tokens: Tensor, ancestors: Tensor | None, taps: tuple[int, ...], seen: int
    ) -> LMOutput:
        """Nodes ``tokens [B, M]`` behind the cache, each seeing its ``ancestors [B, M, M]``; None: a chain behind an
        empty cache."""
        b, m = tokens.shape
        x, decoder = self.embed(tokens), self._decoder
        if ancestors is None:
            index = torch.arange(m, device=self.device).expand(b, -1)
        else:
            index = cache.lengths[:, None] + ancestors.sum(-1) - 1
        if decoder is None:
            if ancestors is None:
                ancestors = torch.ones(m, m, dtype=torch.bool, device=self.device).tril().expand(b, -1, -1)
            return self.trunk_states(x, index, cache.mask(ancestors), cache, taps)
        hidden, final = decoder.nodes(x, index, ancestors, cache, taps, seen)
        return LMOutput(hidden.to(self.dtype), final=final.to(self.dtype))

    def at_nodes(self, rows: TextRows, draft: Draft) -> TextPlace:
        depths, place = draft.depths, rows.place
        return TextPlace(place.position[:, None] + depths, draft.tokens[..., 0], place.left[:, None] - depths)

    def advanced(self, rows: TextRows, place: TextPlace, tokens: Tensor) -> TextPlace:
        return TextPlace(place.position + 1, tokens[:, 0], place.left - 1)

    def vectors(self, rows: TextRows, tokens: Tensor, place: TextPlace | None) -> Tensor:
        return self.embed(tokens[..., 0])

    def node_vectors(self, rows: TextRows, draft: Draft, newest: int) -> Tensor:
        return self.embed(draft.tokens[:, -newest:, 0])  # wherever they stand

    @torch.inference_mode()
    def commit(self, rows: TextRows, draft: Draft, verdict: Verdict, active: Tensor) -> Emitted:
        old = rows.lengths
        new = super().commit(rows, draft, verdict, active)
        at = torch.arange(new.tokens.shape[1], device=old.device)
        slots = (old[:, None] + at).clamp(max=rows.tokens.shape[1] - 1)
        fresh = at < new.lengths[:, None]
        rows.tokens.scatter_(1, slots, torch.where(fresh, new.tokens[..., 0], rows.tokens.gather(1, slots)))
        return new

    def _make_room(self, rows: TextRows, more: int) -> None:
        """Room for ``more`` new tokens in every row."""
        rows.cache.make_room(more)
        if rows.tokens.shape[1] < rows.cache.size + 1:
            rows.tokens = F.pad(rows.tokens, (0, rows.cache.size + 1 - rows.tokens.shape[1]))

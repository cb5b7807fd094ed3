"""The direct form: the backbone itself, trained, predicts the groups of speech tokens; there is no talker.

After SLM-Decoupled-MTP (arXiv:2506.12537): text positions carry the backbone's own token embeddings and its own
output layer, then come speech positions whose input is the fused embedding of the previous group and whose hidden
state is read by one output layer per channel. The voice is added to every speech position, or takes the place of
one token of the prompt.

The text units of this form are the backbone's tokens: ``TextUnits.phoneme`` holds token ids (:class:`TokenMaker`
makes them); stress, word starts and hidden states are not read. Only the layout ``prefix`` fits: the text comes
first, whole, and the control channel says when speech ends, so that there are no word times. Backbones with
sliding-window attention are refused.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.layouts.prefix import Prefix
from speech_mtp.lm.backbone import assistant_prefix, check_supported, trunk_sizes, untrained
from speech_mtp.lm.cache import HuggingFaceCache, KVCache, as_keyword
from speech_mtp.lm.embeddings import GroupFusion
from speech_mtp.lm.group_lm import GroupLM, GroupLMConfig, SpeechPlace, SpeechRows, behind_text
from speech_mtp.lm.outputs import build_output
from speech_mtp.lm.token_maker import VOICE, TokenMaker, next_tokens
from speech_mtp.nn.transformer import causal_mask
from speech_mtp.types import Kind, LMOutput, Positions, TextUnits


@dataclass(frozen=True)
class DirectConfig(GroupLMConfig):
    """What the backbone is given besides its own weights; the defaults are the released code of the paper."""

    frames_per_group: int = 4
    fusion: str = "mean"
    output: str = "linear"
    voice: str = "added"
    voice_width: int = 1024


@dataclass
class DirectOutput(LMOutput):
    """The speech positions' states and those of the text in front: ``text [B, U, D]``, ``next_text [B, U]`` the token
    that follows each text position, -100 where there is no loss."""

    text: Tensor
    next_text: Tensor


class DirectLM(GroupLM):
    """``backbone`` is a Hugging Face causal LM, trained with everything else; its embedding of a prompt is kept."""

    reads_states = False

    def __init__(self, config: DirectConfig, backbone: Any) -> None:
        super().__init__()
        check_supported(backbone.config)
        if getattr(backbone.config, "sliding_window", None):
            raise ValueError("This backbone attends within a sliding window; the direct form needs full attention.")
        if config.voice not in ("added", "substituted"):
            raise ValueError(f"voice is {config.voice!r}; it must be 'added' or 'substituted'.")
        self.config: DirectConfig = config
        self.layout = Prefix(config.codebook_sizes, config.frames_per_group)
        self.backbone_config: dict[str, Any] = json.loads(backbone.config.to_json_string(use_diff=False))
        dim, sizes = backbone.config.hidden_size, self.layout.channel_sizes
        self.trunk = backbone.base_model
        # Tied weights are held once, by the trunk, so that a checkpoint holds them once.
        tied = backbone.get_output_embeddings().weight is backbone.get_input_embeddings().weight
        self.unembed = None if tied else backbone.get_output_embeddings()
        self.fusion = GroupFusion(sizes, dim, config.fusion)
        self.output = build_output(config.output, dim, sizes)
        width = config.voice_width
        self.timbre = (
            nn.Linear(config.voice_dim, dim)
            if config.voice == "added"
            else nn.Sequential(nn.Linear(config.voice_dim, width), nn.SiLU(), nn.Linear(width, dim))
        )
        self._match_scale()
        self.requires_grad_(True)

    @torch.no_grad()
    def _match_scale(self) -> None:
        """New embeddings start as large as the backbone's own, so that it is not thrown off at first."""
        spread = float(self.trunk.get_input_embeddings().weight.float().std())
        for weight in self.fusion.tables.parameters() if self.config.fusion == "mean" else ():
            nn.init.normal_(weight, std=spread * len(self.fusion.tables) ** 0.5)

    @classmethod
    def from_config(cls, entries: dict[str, Any]) -> DirectLM:
        """With random weights, from the ``to_config`` of another one (JSON lists become tuples)."""
        own: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entries.items() if k != "backbone"}
        return cls(DirectConfig(**own), untrained(entries["backbone"]))

    def text_maker(self, tokenizer: Any) -> TokenMaker:
        """What makes this model's text units, with the ``tokenizer`` of its backbone."""
        return TokenMaker(tokenizer, assistant_prefix(tokenizer), voice_place=self.config.voice == "substituted")

    def to_config(self) -> dict[str, object]:
        """The settings, and the backbone's own configuration under ``backbone``."""
        return {**asdict(self.config), "backbone": self.backbone_config}

    # -- training ---------------------------------------------------------------------------------------------
    def embed_text(self, units: TextUnits, timbre: Tensor) -> Tensor:
        """Token embeddings ``[B, U, D]``, with the voice in its place."""
        places = ((units.phoneme == VOICE).sum(1)).tolist()
        wanted = int(self.config.voice == "substituted")
        if any(found != wanted for found in places):
            raise ValueError(f"A prompt has {places} places for the voice; voice={self.config.voice!r} needs {wanted}.")
        x: Tensor = self.trunk.get_input_embeddings()(units.phoneme.clamp(min=0))
        if not wanted:
            return x
        return torch.where((units.phoneme == VOICE)[..., None], self.timbre(timbre)[:, None].to(x.dtype), x)

    def embed_speech(self, tokens: Tensor, timbre: Tensor) -> Tensor:
        """Groups ``[B, T, C]`` -> ``[B, T, D]``."""
        x: Tensor = self.fusion(tokens)
        return x + self.timbre(timbre)[:, None] if self.config.voice == "added" else x

    def forward(
        self, positions: Positions, units: TextUnits, timbre: Tensor, taps: tuple[int, ...] = (-1,)
    ) -> DirectOutput:
        """Also the states of the text in front."""
        speech = self.embed_speech(positions.tokens, timbre)
        text = self.embed_text(units, timbre).to(speech.dtype)
        valid = positions.kind != Kind.PAD
        x, index, valid = behind_text(text, units.lengths, speech, positions.index, valid)
        out = self.trunk_states(x, index, causal_mask(valid), taps=taps)
        width = text.shape[1]
        top, following = out.top, next_tokens(units)
        return DirectOutput(out.hidden[:, width:], top[:, :width], following, final=top[:, width:], inputs=speech)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """The backbone's own output layer: ``[..., D]`` -> ``[..., vocabulary]``."""
        if self.unembed is None:
            return F.linear(hidden, self.trunk.get_input_embeddings().weight.to(hidden.dtype))
        logits: Tensor = self.unembed(hidden.to(self.unembed.weight.dtype))
        return logits

    def trunk_states(
        self, x: Tensor, index: Tensor, mask: Tensor, cache: KVCache | None = None, taps: tuple[int, ...] = (-1,)
    ) -> LMOutput:
        dtype = self.trunk.get_input_embeddings().weight.dtype
        x = x.to(dtype)
        additive = torch.zeros(mask.shape, dtype=dtype, device=x.device).masked_fill(~mask, torch.finfo(dtype).min)
        out = self.trunk(
            inputs_embeds=x,
            position_ids=index,
            attention_mask=additive,
            use_cache=cache is not None,
            output_hidden_states=taps != (-1,),
            **as_keyword(self.trunk, None if cache is None else HuggingFaceCache(cache)),
        )
        final = out.last_hidden_state.float()
        states = [final if tap == -1 else out.hidden_states[tap].float() for tap in taps]
        return LMOutput(torch.stack(states, 2), final=final)

    # -- decoding ---------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def prefill(self, units: TextUnits, timbre: Tensor, size: int = 64) -> SpeechRows:
        text, sizes = self.embed_text(units, timbre), self.shape()
        room = text.shape[1] + size
        cache = KVCache.empty(
            sizes["num_layers"], len(text), sizes["num_kv_heads"], room, sizes["head_dim"], text.device, text.dtype
        )
        rows = self.begin(cache, units, text, timbre)
        self.read_text(rows, text)
        return rows

    def extend(self, rows: SpeechRows, b: int, units: TextUnits) -> None:
        """Always refused: raises ValueError."""
        raise ValueError("The direct form reads its text once; late text needs a talker with the aligned layout.")

    def vectors(self, rows: SpeechRows, tokens: Tensor, place: SpeechPlace) -> Tensor:
        return self.embed_speech(tokens, rows.timbre)

    def binding(self) -> dict[str, Any]:
        norm = self.trunk.norm if hasattr(self.trunk, "norm") else self.trunk.final_layernorm
        return {"embed": None, "unembed": None, "weight": None, "norm": norm}

    def shape(self) -> dict[str, Any]:
        return {**trunk_sizes(self.trunk.config), "vocab_size": self.layout.channel_sizes[1]}

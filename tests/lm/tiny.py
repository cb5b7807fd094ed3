"""A tiny random backbone with a real tokenizer, and a front end that reads letters: for tests without downloads."""

from __future__ import annotations

import re

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from speech_mtp.lm.backbone import Backbone
from speech_mtp.text.g2p.base import G2P
from speech_mtp.text.phonemes import Unit
from tests.llama import llama_config

TRAINING_TEXT = [
    "the quick brown fox jumps over the lazy dog, doesn't it? Hello there! Good morning. assistant user"
] * 4
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(chat: str | None = CHAT) -> PreTrainedTokenizerFast:
    """Byte-level BPE in the way of GPT-2, with the ChatML format."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TRAINING_TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|im_start|>", eos_token="<|im_end|>", chat_template=chat
    )


def tiny_config(num_layers: int = 3) -> LlamaConfig:
    return llama_config(
        300,
        16,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
    )


def tiny_backbone(hidden_layer: int = 2) -> Backbone:
    torch.manual_seed(0)
    return Backbone(LlamaForCausalLM(tiny_config()), tiny_tokenizer(), "tiny", hidden_layer)


class Letters(G2P):
    """Every letter is a phoneme, ``,`` and ``.`` are pauses; the word "read" sounds as the next word asks."""

    name = "letters"

    def phonemize(self, text: str) -> list[Unit]:
        units: list[Unit] = []
        for word in re.finditer(r"[a-z']+|[,.]", text.lower()):
            sound = word.group()
            if sound == "read" and text[word.end() :].startswith(" yesterday"):
                sound = "ɹɛd"
            letters = [c for c in sound.replace("r", "ɹ").replace("g", "ɡ") if c not in "'aceqxyo"] or ["ə"]
            first = sound not in ",."
            for i, letter in enumerate(letters):
                units.append(Unit(letter, 0, first and i == 0, word.start(), word.end()))
        return units

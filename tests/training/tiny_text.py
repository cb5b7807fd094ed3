"""A tiny text trunk and answers whose tokens count up, so that heads have something to learn."""

from __future__ import annotations

import torch

from speech_mtp.corpus.answers import Answer
from speech_mtp.lm.text_lm import TextLM
from tests.llama import random_llama

VOCAB = 41


def tiny_text_lm(seed: int = 0, vocab_size: int = VOCAB, fingerprint: str = "tiny") -> TextLM:
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    model = random_llama(vocab_size, 32, seed, max_position_embeddings=128, initializer_range=0.2, **ends)
    return TextLM(model, None, fingerprint)


def counting_answers(count: int, seed: int = 0, longest: int = 20) -> list[Answer]:
    """``[0, start]`` is answered by the numbers after start, cyclic from 1 on."""
    rng = torch.Generator().manual_seed(seed)
    answers = []
    for _ in range(count):
        start, length = (int(torch.randint(1, n, (), generator=rng)) for n in (VOCAB, longest))
        answers.append(Answer((0, start), tuple((start + i) % (VOCAB - 1) + 1 for i in range(length + 5))))
    return list(dict.fromkeys(answers))

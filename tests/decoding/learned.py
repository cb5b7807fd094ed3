"""A trunk that is easy to foresee but for its attention, and heads that have learned it: drafts are kept, or not."""

from __future__ import annotations

from functools import cache

import torch

from speech_mtp import plugins
from speech_mtp.corpus.answers import Answer
from speech_mtp.heads.base import Binding, MTPHead, TrunkShape
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.objectives.mtp import MTP, Anchored, MTPConfig
from speech_mtp.training.answer_data import collate
from tests.llama import random_llama

VOCAB, DIM = 41, 32
CYCLES = (5, 7, 8, 9, 12)  # their sum is VOCAB
CONTEXT = 0.15  # how much attention and feed-forward layers say beside the newest token
SHORT = {"dflash": {"num_drafts": 4}, "dspark": {"num_drafts": 4}, "eagle": {"depth": 3}, "eagle3": {"depth": 3}}
TEXTS, LENGTH, STEPS, RATE = 24, 24, 90, 0.01


@cache
def foreseeable_lm() -> TextLM:
    """Every token is mostly followed by the next of its cycle."""
    model = random_llama(VOCAB, DIM, pad_token_id=0, max_position_embeddings=256)
    rng = torch.Generator().manual_seed(1)
    following = torch.cat([cycle.roll(-1) for cycle in torch.randperm(VOCAB, generator=rng).split(CYCLES)])
    before = torch.empty_like(following)
    before[following] = torch.cat([cycle.roll(1) for cycle in following.split(CYCLES)])
    embeddings = torch.randn(VOCAB, DIM, generator=rng)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weight.mul_(CONTEXT)
        model.model.embed_tokens.weight.copy_(embeddings)
        model.lm_head.weight.copy_(embeddings[before] / 2)
    return TextLM(model)


@cache
def learned_head(name: str) -> MTPHead:
    """The head after ``STEPS`` steps on what the trunk says after random prompts."""
    lm = foreseeable_lm()
    prompts = torch.randint(1, VOCAB, (TEXTS, 6), generator=torch.Generator().manual_seed(3))
    settings = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": LENGTH}
    said = lm.model.generate(prompts, attention_mask=torch.ones_like(prompts), **settings)
    positions = collate([[Answer(tuple(row[:6]), tuple(row[6:]))] for row in said.tolist()], length=LENGTH + 6)
    torch.manual_seed(6)
    head: MTPHead = plugins.build("heads", {"name": name, **SHORT.get(name, {})}, shape=TrunkShape(**lm.shape()))
    head.bind(Binding(**lm.binding()))
    objective = MTP(head, MTPConfig(anchors=10 if isinstance(head, Anchored) else None))
    optimizer = torch.optim.AdamW(head.parameters(), RATE)
    tokens = positions.tokens[..., 0]
    with torch.no_grad():
        out = lm(tokens, torch.full((len(tokens),), tokens.shape[1]), head.taps)
    for number in range(STEPS):
        optimizer.zero_grad()
        for step in objective.steps(out, positions, torch.Generator().manual_seed(number)):
            (step.weight * step.loss).backward(retain_graph=True)
            del step
        optimizer.step()
    return head.eval()

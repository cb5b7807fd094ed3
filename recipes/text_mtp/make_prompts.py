"""Prompts for self-distillation: sums, summaries, questions about a passage, translations, things to explain.

    python recipes/text_mtp/make_prompts.py QUESTIONS.jsonl PROSE.txt OUT.jsonl

``QUESTIONS.jsonl`` holds word problems under ``question`` (GSM8K's training questions, MIT licence), ``PROSE.txt`` one
sentence a line (the public-domain sentences of LJ Speech). The stage ``answers`` adds prompts that the
model invents, and answers all.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from wordfreq import top_n_list

SUMMARISE = ("Summarize: {}", "Summarize the following text in a few sentences.\n\n{}", "What is the main point?\n\n{}")
ASK = (
    "Answer the question with the help of the passage.\n\nPassage: {passage}\n\nQuestion: what is said about {word}?",
    "{passage}\n\nWhat does this text say about {word}?",
    "Context: {passage}\n\nUsing the context above, explain what happened to {word}.",
)
TRANSLATE = (
    "Translate to German: {}",
    "Translate English to French: {}",
    "Translate into Spanish: {}",
    "Rewrite in simple words: {}",
)
EXPLAIN = (
    "What is {}?",
    "Explain {} to a beginner.",
    "Where does the word {} come from?",
    "How does {} work?",
    "Write a short story about {}.",
    "Give me five facts about {}.",
    "Write an email to a colleague about {}.",
    "What are the advantages and disadvantages of {}?",
    "Who invented {}?",
    "Write a poem about {}.",
    "Write a Python function that has to do with {}.",
)
CHUNK = 320


def passages(lines: list[str], count: int, rng: random.Random, least: int, most: int) -> list[str]:
    """``count`` runs of ``least`` to ``most`` neighbouring sentences."""
    starts = [rng.randrange(len(lines) - most) for _ in range(count)]
    return [" ".join(lines[at : at + rng.randint(least, most)]) for at in starts]


def main(questions: Path, prose: Path, out: Path) -> None:
    """Write 900 sums, 500 summaries, 500 questions, 300 translations and 900 explanations, in mixed order."""
    rng = random.Random(0)
    sums = [json.loads(line)["question"] for line in questions.read_text(encoding="utf-8").splitlines()]
    lines = prose.read_text(encoding="utf-8").splitlines()
    words = [word for word in top_n_list("en", 12_000)[1_000:] if len(word) > 4]
    prompts = rng.sample(sums, 900)
    prompts += [rng.choice(SUMMARISE).format(text) for text in passages(lines, 500, rng, 5, 10)]
    for text in passages(lines, 500, rng, 2, 6):
        word = max(rng.sample(text.split(), 4), key=len).strip(".,;:!?\"'")
        prompts.append(rng.choice(ASK).format(passage=text, word=word))
    prompts += [rng.choice(TRANSLATE).format(line) for line in rng.sample(lines, 300)]
    prompts += [rng.choice(EXPLAIN).format(word) for word in rng.sample(words, 900)]
    rng.shuffle(prompts)
    # In mixed order, but with those of like length side by side, so that a batch of them is quick to answer.
    prompts = [p for at in range(0, len(prompts), CHUNK) for p in sorted(prompts[at : at + CHUNK], key=len)]
    out.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in dict.fromkeys(prompts)), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

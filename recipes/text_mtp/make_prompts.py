"""Prompts for self-distillation: sums, summaries, questions about a passage, translations, things to explain.

    python recipes/text_mtp/make_prompts.py QUESTIONS.jsonl PROSE.txt OUT.jsonl
    python recipes/text_mtp/make_prompts.py QUESTIONS.jsonl PROSE.txt OUT.jsonl --more 75000 --sentences FILE

``QUESTIONS.jsonl`` holds word problems under ``question`` (GSM8K's training questions, MIT licence), ``PROSE.txt`` one
sentence a line (the public-domain sentences of LJ Speech). With ``--more`` about so many prompts of more kinds are
written, for a GPU, also about the lines of ``--sentences`` (``recipes/corpus/sentences.txt``). The stage ``answers``
adds prompts that the model invents, and answers all.
"""

from __future__ import annotations

import argparse
import json
import random
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

ABOUT_WORDS = (
    *EXPLAIN,
    "What is the difference between {} and {}?",
    "How are {} and {} related?",
    "Which is better, {} or {}, and why?",
    "Write a dialogue between two friends about {} and {}.",
    "Write a story in which {}, {} and {} play a part.",
    "Use {} and {} in a sentence.",
    "Sort these words alphabetically: {}, {}, {}.",
    "Which is the odd one out: {}, {} or {}?",
    "Why is {} important?",
    "List ten words that have to do with {}.",
    "I have to give a talk about {}. Where do I begin?",
    "You are an expert on {}. What do you tell a beginner?",
    "Write a blog post about {} and {}.",
    "Write a product description for {}.",
    "Write a letter of complaint about {}.",
    "Write a Python program that reads a file of {} and counts the {}.",
    "Write an SQL query for a table of {} with a column {}.",
    "Plan a weekend trip for somebody who likes {} and {}.",
    "What did people think about {} a hundred years ago?",
    "Describe {} as vividly as you can.",
    "Make a table that compares {}, {} and {}.",
    "Give me a recipe with {} and {}.",
    "What would happen if there were no {}?",
    "Define {} in one sentence.",
)
ABOUT_SENTENCES = (
    *TRANSLATE,
    "{}",
    "Continue: {}",
    "What happens next? {}",
    "Explain what this means: {}",
    "Rewrite this sentence in other words: {}",
    "Is this true? {}",
    "Reply to this message: {}",
    "Correct the grammar: {}",
    "Make this more polite: {}",
    "Turn this into a question: {}",
    "What is the mood of this sentence? {}",
    "Write a headline for this: {}",
    "Extract all names and numbers from the following text.\n\n{}",
    "Which words in this sentence are verbs? {}",
    'Somebody told me: "{}" What should I answer?',
    "Write a short story that begins like this: {}",
    "{} What do you think about that?",
    "Say this in one short sentence: {}",
)
STEPS = ("{}", "{} Think step by step.", "Solve this and show your work.\n\n{}")
SHARES = {"sums": 0.1, "summaries": 0.1, "questions": 0.1, "sentences": 0.33, "words": 0.37}
"""Of the prompts for a GPU."""


def passages(lines: list[str], count: int, rng: random.Random, least: int, most: int) -> list[str]:
    """``count`` runs of ``least`` to ``most`` neighbouring sentences."""
    starts = [rng.randrange(len(lines) - most) for _ in range(count)]
    return [" ".join(lines[at : at + rng.randint(least, most)]) for at in starts]


def prompts(sums: list[str], lines: list[str]) -> list[str]:
    """900 sums, 500 summaries, 500 questions, 300 translations and 900 explanations, distinct, in mixed order."""
    rng = random.Random(0)
    words = [word for word in top_n_list("en", 12_000)[1_000:] if len(word) > 4]
    made = rng.sample(sums, 900)
    made += [rng.choice(SUMMARISE).format(text) for text in passages(lines, 500, rng, 5, 10)]
    for text in passages(lines, 500, rng, 2, 6):
        word = max(rng.sample(text.split(), 4), key=len).strip(".,;:!?\"'")
        made.append(rng.choice(ASK).format(passage=text, word=word))
    made += [rng.choice(TRANSLATE).format(line) for line in rng.sample(lines, 300)]
    made += [rng.choice(EXPLAIN).format(word) for word in rng.sample(words, 900)]
    rng.shuffle(made)
    # In mixed order, but with those of like length side by side, so that a batch of them is quick to answer.
    made = [p for at in range(0, len(made), CHUNK) for p in sorted(made[at : at + CHUNK], key=len)]
    return list(dict.fromkeys(made))


def more_prompts(sums: list[str], lines: list[str], sentences: list[str], count: int) -> list[str]:
    """About ``count`` prompts of more kinds (:data:`SHARES`), distinct, in a random order."""
    rng = random.Random(1)
    words = [word for word in top_n_list("en", 30_000)[1_000:] if len(word) > 4]
    number = {kind: round(share * count) for kind, share in SHARES.items()}
    made = [rng.choice(STEPS).format(rng.choice(sums)) for _ in range(number["sums"])]
    made += [rng.choice(SUMMARISE).format(text) for text in passages(lines, number["summaries"], rng, 4, 9)]
    for text in passages(lines, number["questions"], rng, 2, 6):
        word = max(rng.sample(text.split(), 4), key=len).strip(".,;:!?\"'")
        made.append(rng.choice(ASK).format(passage=text, word=word))
    made += [rng.choice(ABOUT_SENTENCES).format(rng.choice(sentences)) for _ in range(number["sentences"])]
    for _ in range(number["words"]):
        template = rng.choice(ABOUT_WORDS)
        made.append(template.format(*rng.sample(words, template.count("{}"))))
    rng.shuffle(made)
    return list(dict.fromkeys(made))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("questions", "prose", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--more", type=int, default=0, metavar="COUNT")
    parser.add_argument("--sentences", type=Path)
    given = parser.parse_args()
    try:
        sums = [json.loads(line)["question"] for line in given.questions.read_text(encoding="utf-8").splitlines()]
        lines = given.prose.read_text(encoding="utf-8").splitlines()
        sentences = given.sentences.read_text(encoding="utf-8").splitlines() if given.sentences else lines
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"cannot read the questions or the prose: {error}")
    if len(sums) < 900 or len(lines) < 300:
        parser.error(f"{len(sums)} questions and {len(lines)} lines of prose; 900 and 300 are needed at least.")
    made = more_prompts(sums, lines, sentences, given.more) if given.more else prompts(sums, lines)
    text = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in made)
    aside = given.out.with_name(f".{given.out.name}.new")
    aside.write_text(text, encoding="utf-8")
    aside.rename(given.out)


if __name__ == "__main__":
    main()

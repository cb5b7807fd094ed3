"""Sentences from patterns, and the sources and the stage that gather sentences."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest
import yaml

pytest.importorskip("wordfreq", reason="needs the train extra")
pytest.importorskip("faker", reason="needs the train extra")

from speech_mtp.corpus.documents.packages import Packages
from speech_mtp.corpus.documents.patterns import Patterns, read_patterns
from speech_mtp.corpus.sentences import SentenceRules, key_of
from speech_mtp.corpus.texts import TextSource, sentences_of, write_sentences

RECIPE = Path(__file__).parents[2] / "recipes/corpus/patterns.yaml"


def book(tmp_path: Path, **keys: object) -> str:
    path = tmp_path / "book.yaml"
    path.write_text(yaml.safe_dump({"patterns": {"a": ["The {{thing}} costs ${{random_int:few}}."]}, **keys}))
    return str(path)


KNOWN = {"lists": {"thing": ["book", "key"]}, "arguments": {"few": {"min": 2, "max": 9}}}


def test_a_sentence_is_the_same_however_many_there_are(tmp_path: Path) -> None:
    few, many = ([d.text for d in Patterns(book(tmp_path, **KNOWN), count, seed=3).documents()] for count in (5, 40))
    assert many[:5] == few
    assert len(set(many)) > 5
    words, costs = zip(*(text.removesuffix(".").split(" costs $") for text in many), strict=True)
    assert set(words) == {"The book", "The key"}
    assert all(2 <= int(cost) <= 9 for cost in costs)
    assert [d.text for d in Patterns(book(tmp_path, **KNOWN), 40, seed=4).documents()] != many


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "cannot be filled: Unknown formatter 'thing'"),
        ({"lists": KNOWN["lists"]}, "cannot be filled: Unknown argument group"),
        ({**KNOWN, "arguments": {"few": {"least": 2}}}, "cannot be filled: .*least"),
        ({**KNOWN, "arguments": {"few": {"min": 9, "max": 2}}}, "The {{thing}} costs .* cannot be filled: empty range"),
        ({**KNOWN, "arguments": {**KNOWN["arguments"], "many": {}}}, "uses the arguments 'many'"),
        ({**KNOWN, "lists": {**KNOWN["lists"], "food": ["rice"]}}, "a slot for the list 'food'"),
        ({**KNOWN, "lists": {"thing": []}}, "no valid file of patterns"),
        ({"patterns": {"a": ["A {{city}} and {one}."]}}, "a slot is {{name}} or {{name:how}}"),
        ({"patterns": {"a": ["A {{city}}."]}, "lists": {"city": ["here"]}}, "a formatter 'city' of its own"),
        ({**KNOWN, "locale": "xx_YY"}, "no words for 'xx_YY'"),
        ({"patterns": {"a": []}}, "no pattern of the kind 'a'"),
        ({"pattern": []}, "no valid file of patterns"),
    ],
)
def test_unusable_patterns(tmp_path: Path, keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Patterns(book(tmp_path, **keys), 1)
    with pytest.raises(ValueError, match="count is 0"):
        Patterns(book(tmp_path, **KNOWN), 0)
    with pytest.raises(FileNotFoundError, match="no file of patterns"):
        Patterns(str(tmp_path / "none.yaml"), 1)


def test_docstrings_of_a_package_come_with_its_licence() -> None:
    source = Packages(["pyyaml"])
    texts = {d.key: d.text for d in source.documents()}
    assert any("Parse the first YAML document in a stream" in text for text in texts.values())
    assert source.licence == f"PyYAML {metadata.version('pyyaml')}, MIT"
    with pytest.raises(ValueError, match="give a list of packages"):
        Packages("pyyaml")
    with pytest.raises(FileNotFoundError, match="'no-such-package' is not installed"):
        Packages(["no-such-package"])


def test_sentences_are_gathered_once_as_they_are_said_and_without_those_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The cat is here. It costs $5.\nThe dog is there.\n")
    more = "It costs five dollars. A bird sings well. We have 3. 3 cats sleep.\nsleep well now.\n"
    more += "\u4f60\u597d\u4e16\u754c.\n"
    (tmp_path / "b.txt").write_text(more)
    (tmp_path / "dev.txt").write_text("The dog is there! We lost 7 \u20ac today.\n")
    (tmp_path / "c.txt").write_text("We lost seven euros today. We lost 7 \u20ac today.\n")
    sources = {name: TextSource(path=tmp_path / f"{name}.txt", normalize=True) for name in "abc"}
    report = write_sentences(sources, SentenceRules(), [tmp_path / "dev.txt"], tmp_path / "out")
    lines = (tmp_path / "out/sentences.txt").read_text().splitlines()
    assert lines == [
        "The cat is here.",
        "It costs five dollars.",
        "A bird sings well.",
        "We have three.",
        "Three cats sleep.",
    ]
    assert report["a"] == {"sentences": 2, "refused": {"duplicate": 1}}
    assert report["b"] == {
        "sentences": 3,
        "refused": {"duplicate": 1, "starts in the middle": 1, "cannot be read": 1},
    }
    assert report["c"] == {"sentences": 0, "refused": {"duplicate": 2}}
    with pytest.raises(ValueError, match="no speakable sentence"):
        write_sentences(
            {"a": sources["a"]}, SentenceRules(), [tmp_path / "a.txt", *tmp_path.glob("out/*.txt")], tmp_path
        )
    with pytest.raises(ValueError, match="'a' hold sentences out"):
        write_sentences({"a": TextSource(path=tmp_path / "a.txt", dev_fraction=0.1)}, SentenceRules(), [], tmp_path)


def test_what_a_limit_leaves_may_come_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The cat is here. The dog is there. A bird sings well.\n")
    sources = {"few": TextSource(path=tmp_path / "a.txt", limit=1), "all": TextSource(path=tmp_path / "a.txt")}
    report = write_sentences(sources, SentenceRules(), [], tmp_path)
    assert [report[name]["sentences"] for name in sources] == [1, 2]


def test_of_documents_that_were_cut_the_last_sentence_is_left_out(tmp_path: Path) -> None:
    lines = [{"text": "The cat is here. It costs about 3.", "ended": ended} for ended in (False, True)]
    report = {}
    for line in lines:
        (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n")
        documents = {"name": "files", "paths": [str(tmp_path / "a.jsonl")], "licence": "ours"}
        source = TextSource(documents=documents, normalize=True)
        report[line["ended"]] = write_sentences({"a": source}, SentenceRules(), [], tmp_path)["a"]
    assert [report[ended]["sentences"] for ended in (False, True)] == [1, 2]
    assert report[True]["licence"] == "ours"


def test_a_source_is_one_thing() -> None:
    for given in ({}, {"path": "a", "documents": "stdlib"}):
        with pytest.raises(ValueError, match="either a path or documents"):
            TextSource(**given)
    with pytest.raises(ValueError, match="have no field"):
        TextSource(documents="stdlib", field="text")


def test_most_patterns_of_the_recipe_are_speakable(tmp_path: Path) -> None:
    source = TextSource(documents={"name": "patterns", "book": str(RECIPE), "count": 600}, normalize=True)
    report = write_sentences({"p": source}, SentenceRules(), [], tmp_path)
    lines = (tmp_path / "sentences.txt").read_text().splitlines()
    assert len(lines) == len({key_of(line) for line in lines}) > 450
    assert report["p"]["refused"].get("digits", 0) == 0


def test_every_pattern_of_the_recipe_is_sometimes_speakable() -> None:
    source, given = Patterns(str(RECIPE), 1), TextSource(path=RECIPE, normalize=True, limit=1)
    silent = []
    for pattern in (pattern for patterns in read_patterns(RECIPE).patterns.values() for pattern in patterns):
        texts = (source._fill(pattern, seed) for seed in range(100))
        if not sentences_of(given, texts, SentenceRules(), set()).sentences:
            silent.append(pattern)
    assert silent == []

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("wordfreq", reason="needs the train extra")

from speech_mtp.corpus.sentences import SentenceRules, words_of
from speech_mtp.corpus.texts import TextSource, load_script, split_of

RULES = SentenceRules()


def test_sources_are_merged_without_duplicates(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The cat is here. The dog is there.\nno\n")
    lines = [{"t": "The cat is here!"}, {"t": "The bird is gone. It was blue."}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sources = [TextSource(path=tmp_path / "a.txt"), TextSource(path=tmp_path / "b.jsonl", field="t", limit=1)]
    script = load_script(sources, RULES, 0, 0)
    assert [s.text for s in script.sentences] == ["The cat is here.", "The dog is there.", "The bird is gone."]
    assert script.rejects == {"no sentence end": 1, "duplicate": 1}


def test_split_is_stable_and_close_to_its_fraction() -> None:
    names = [f"Sentence {chr(97 + i % 26)}{chr(97 + i // 26 % 26)} {'x' * (i // 676)}." for i in range(2000)]
    dev = {name for name in names if split_of(name, 0.1) == "dev"}
    assert 140 < len(dev) < 260
    assert dev <= {name for name in names if split_of(name, 0.2) == "dev"}
    assert split_of("I like tea.", 0.5) == split_of("i like TEA!", 0.5)


def test_missing_frequent_words_get_carriers_in_train(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The cat is here.\n")
    script = load_script([TextSource(path=tmp_path / "a.txt", dev_fraction=1.0)], RULES, 100, 0)
    spoken = {word for s in script.sentences if s.split == "train" for word in words_of(s.text)}
    assert {"the", "people", "because"} <= spoken
    assert script.sentences[0].split == "dev"


@pytest.mark.parametrize(
    ("name", "content", "field", "message"),
    [
        ("a.txt", "The cat is here.", "t", "remove the setting"),
        ("a.jsonl", '{"t": "The cat is here."}\n', None, "set `field`"),
        ("a.jsonl", '{"t": 3}\n', "t", "line 1 has no text"),
        ("a.txt", "3 4 5", None, "no speakable sentence"),
    ],
)
def test_unusable_sources(tmp_path: Path, name: str, content: str, field: str | None, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_script([TextSource(path=tmp_path / name, field=field)], RULES, 0, 0)
    with pytest.raises(FileNotFoundError, match="no text file"):
        load_script([TextSource(path=tmp_path / "none.txt")], RULES, 0, 0)

"""Every source of recordings, on a small folder in its layout: what it lists, and how it says what is wrong."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speech_mtp import audio, plugins
from speech_mtp.corpus.recordings.base import Recording, RecordingSource, Unusable

TEXTS = {"one": "The cat is here.", "two": "Where is the dog?", "gone": "This has no sound.", "mute": ""}
"""Of these, ``gone`` has no audio and ``mute`` no words."""


def tone() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(np.arange(16_000) * 0.05), 16_000, format="WAV")
    return file.getvalue()


def sounds(folder: Path, speaker: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for key in TEXTS:
        if key != "gone":
            (folder / f"{speaker}{key}.wav").write_bytes(tone())


def ljspeech(folder: Path) -> dict[str, Any]:
    sounds(folder / "wavs")
    lines = [f"{key}|as written|{text}" for key, text in TEXTS.items() if text]
    odd = ["mute||", "only an id", "../../one|No|No"]
    (folder / "metadata.csv").write_text("\n".join(lines + odd) + "\n", "utf-8")
    return {"folder": str(folder)}


def libritts(folder: Path) -> dict[str, Any]:
    chapter = folder / "dev-clean" / "84" / "121"
    sounds(chapter, "84_121_")
    for key, text in TEXTS.items():
        (chapter / f"84_121_{key}.normalized.txt").write_text(text, "utf-8")
    (chapter / "84_121_untold.wav").write_bytes(tone())
    return {"folder": str(folder)}


def csv_table(folder: Path) -> dict[str, Any]:
    sounds(folder / "clips")
    rows = [f'clips/{key}.wav,"{text}",Ann,train,en-GB' for key, text in TEXTS.items()]
    odd = ["../one.wav,No,Ann,train,en", "clips/one.wav,Nein,Ann,train,de", "clips/one.wav,No,Ann,noon,en", ",No"]
    (folder / "table.csv").write_text("\n".join(["file,words,who,part,lang", *rows, *odd]), "utf-8")
    columns = {"audio": "file", "text": "words", "speaker": "who", "split": "part", "language": "lang"}
    return {"file": str(folder / "table.csv"), **columns}


def datasets(folder: Path) -> dict[str, Any]:
    datasets = pytest.importorskip("datasets", reason="needs the extra 'eval'")
    rows = [
        {"sound": {"bytes": None if key == "gone" else tone(), "path": "/nowhere.wav"}, "words": text, "n": key}
        for key, text in TEXTS.items()
    ]
    datasets.Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    return {"dataset": str(folder), "audio": "sound", "text": "words", "key": "n"}


MAKERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "ljspeech": ljspeech,
    "libritts": libritts,
    "csv_table": csv_table,
    "datasets": datasets,
}
UNUSABLE = {"ljspeech": 2, "libritts": 1, "csv_table": 4, "datasets": 1}
"""How many entries of each folder name no recording."""
each_source = pytest.mark.parametrize("name", MAKERS)


def built(name: str, folder: Path) -> RecordingSource:
    source: RecordingSource = plugins.build("corpus.recordings", {"name": name, **MAKERS[name](folder)})
    return source


def test_every_source_is_tested() -> None:
    assert plugins.names("corpus.recordings") == sorted(MAKERS)


@each_source
def test_it_lists_its_recordings_in_the_same_order_each_time(name: str, tmp_path: Path) -> None:
    source = built(name, tmp_path)
    assert source.name == name
    entries = list(source.recordings())
    assert list(source.recordings()) == entries
    found = {entry.key.split("/")[-1].split("_")[-1]: entry for entry in entries if isinstance(entry, Recording)}
    assert {key: found[key].text for key in ("one", "two", "mute")} == {
        key: TEXTS[key] for key in ("one", "two", "mute")
    }
    assert all(entry.split in ("train", "dev", None) for entry in found.values())
    for key in ("one", "two"):
        sound = found[key].audio
        wave, rate = audio.decode(io.BytesIO(sound) if isinstance(sound, bytes) else sound, key)
        assert (len(wave), rate) == (16_000, 16_000)
    assert pickle.loads(pickle.dumps(entries)) == entries, "recordings travel to other processes"


@each_source
def test_an_entry_that_is_no_recording_says_why_and_ends_nothing(name: str, tmp_path: Path) -> None:
    entries = list(built(name, tmp_path).recordings())
    odd = [entry for entry in entries if isinstance(entry, Unusable)]
    assert len(odd) == UNUSABLE[name]
    assert all(entry.reason.endswith(".") for entry in odd)
    paths = [entry.audio for entry in entries if isinstance(entry, Recording) and isinstance(entry.audio, Path)]
    assert all(path.resolve().is_relative_to(tmp_path.resolve()) for path in paths)
    missing = [path for path in paths if not path.is_file()]
    assert len(missing) == (name != "datasets"), "a file that is not there is found out by the importer"


@each_source
def test_a_folder_that_is_not_there_is_one_sentence(name: str, tmp_path: Path) -> None:
    settings = MAKERS[name](tmp_path)
    key = next(key for key in ("folder", "file", "dataset") if key in settings)
    with pytest.raises((ValueError, FileNotFoundError), match=r"^[^\n]*nowhere[^\n]*\.$"):
        plugins.build("corpus.recordings", {"name": name, **settings, key: str(tmp_path / "nowhere")})


@pytest.mark.parametrize("name", ["csv_table", "datasets"])
def test_a_column_that_is_not_there_is_named_with_the_nearest(name: str, tmp_path: Path) -> None:
    settings = MAKERS[name](tmp_path)
    with pytest.raises(ValueError, match=r"has no column 'wordz'; did you mean 'words'\?"):
        plugins.build("corpus.recordings", {"name": name, **settings, "text": "wordz"})


def test_a_broken_table_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    settings = csv_table(tmp_path)
    with (tmp_path / "table.csv").open("a", encoding="utf-8") as file:
        file.write('\nclips/one.wav,"' + "never closed " * 20_000)
    with pytest.raises(ValueError, match="cannot be read as a table"):
        plugins.build("corpus.recordings", {"name": "csv_table", **settings})
    (tmp_path / "table.csv").write_bytes("audio,text\na.wav,café".encode("latin-1"))
    with pytest.raises(ValueError, match="not a text file in UTF-8"):
        plugins.build("corpus.recordings", {"name": "csv_table", "file": str(tmp_path / "table.csv")})
    with pytest.raises(ValueError, match=r"must end in \.csv"):
        plugins.build("corpus.recordings", {"name": "csv_table", "file": str(tmp_path / "clips/one.wav")})


def test_splits_and_speakers_of_libritts_are_those_of_its_folders(tmp_path: Path) -> None:
    source = built("libritts", tmp_path)
    made = [entry for entry in source.recordings() if isinstance(entry, Recording)]
    assert {(entry.speaker, entry.split) for entry in made} == {("84", "dev")}
    with pytest.raises(FileNotFoundError, match=r"has no split 'train-clean'; .*dev-clean"):
        plugins.build("corpus.recordings", {"name": "libritts", "folder": str(tmp_path), "splits": ["train-clean"]})
    with pytest.raises(ValueError, match="give the folder that holds the splits"):
        plugins.build("corpus.recordings", {"name": "libritts", "folder": str(tmp_path / "dev-clean")})


def test_without_the_package_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(plugins.MissingExtra, match=r"'datasets' is not installed.*\[eval\]"):
        plugins.build("corpus.recordings", {"name": "datasets", "dataset": str(tmp_path)})

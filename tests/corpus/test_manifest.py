from __future__ import annotations

from pathlib import Path

import pytest

from speech_mtp.corpus.manifest import MANIFEST, JsonLines, ManifestEntry, as_line, read_lines, read_manifest

ROW = ManifestEntry("a-1", "Hi. ə", "hˈI.", "a", 1.5, 7, "train", "audio/a/1.flac", "none", [0.0, 100.5], 80.0)


def test_rows_come_back(tmp_path: Path) -> None:
    plain = ManifestEntry("a-2", "Yo.", "jˈO.", "a", 0.5, 8, "dev", "audio/a/2.flac", "none")
    with JsonLines(tmp_path / MANIFEST) as log:
        log.append([as_line(ROW), as_line(plain)])
    assert read_manifest(tmp_path) == [ROW, plain]


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_torn_line_does_not_survive(tmp_path: Path, cut: int) -> None:
    path = tmp_path / MANIFEST
    for _ in range(2):
        with JsonLines(path) as log:
            log.append([as_line(ROW)])
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_manifest(tmp_path) == [ROW]
    with JsonLines(path) as log:
        log.append([as_line(ROW)])
    assert read_manifest(tmp_path) == [ROW, ROW]


def test_bad_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with pytest.raises(FileNotFoundError, match=r"x\.jsonl"):
        list(read_lines(path))
    path.write_text('{"a": 1}\nnonsense\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        list(read_lines(path))
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match="not a JSON object"):
        list(read_lines(path))

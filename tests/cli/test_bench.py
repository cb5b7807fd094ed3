"""``bench text`` and ``bench identity`` on a tiny random model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speech_mtp import hub
from speech_mtp.hub import heads
from speech_mtp.lm.text_lm import TextLM
from tests.cli.running import refused, run
from tests.llama import needs_invariance
from tests.text_tiny import tiny_folder, tiny_head
from tests.tiny import tiny_model

FIELDS = {
    "head",
    "rule",
    "lossless",
    "tokens_per_forward",
    "speedup_over_vanilla",
    "speedup_over_transformers",
    "speedup_over_transformers_lookup",
    "identical_fraction",
    "acceptance",
    "tokens_per_s",
    "reading",
    "decoding",
    "peak_memory_mb",
    "dtype",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench")
    tiny_head(TextLM.from_folder(tiny_folder(root / "lm")), root / "medusa")
    lines = [{"question_id": 81, "turns": ["Hello there!", "Good morning."]}, {"prompt": "the lazy dog"}]
    (root / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (root / "q.txt").write_text("Hello there!\nGood morning.\nthe fox\n", encoding="utf-8")
    return root


@pytest.fixture(autouse=True)
def packaged(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The head of the folder is the packaged one; the working folder is empty."""
    monkeypatch.setattr(heads, "HEADS", folder)
    for module in (hub, heads):
        monkeypatch.setattr(module, "known_heads", lambda: ["medusa"])
    monkeypatch.setattr(hub, "DEFAULT_HEAD", "medusa")
    monkeypatch.chdir(tmp_path)


def bench(monkeypatch: pytest.MonkeyPatch, folder: Path, kind: str, *arguments: str) -> int:
    where = ["--backbone", str(folder / "lm"), "--max-new-tokens", "10", "--json", "report.json"]
    return run(monkeypatch, "bench", kind, *where, *arguments)


def report() -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = json.loads(Path("report.json").read_text("utf-8"))
    return found


def test_a_table_a_report_and_a_picture(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    more = ["--questions", str(folder / "q.jsonl"), "--heads", "all", "--rules", "chain", "--dtypes", "fp32,bf16"]
    assert bench(monkeypatch, folder, "text", *more, "--png", "speed.png") == 0
    table, said = capsys.readouterr()
    assert said == ""
    made = report()
    assert [(r["head"], r["rule"], r["dtype"]) for r in made["rows"]] == [
        (head, rule, dtype) for dtype in ("fp32", "bf16") for head, rule in ((None, "vanilla"), ("medusa", "chain"))
    ]
    assert [(r["program"], r["dtype"]) for r in made["peers"]] == [
        (name, dtype) for dtype in ("fp32", "bf16") for name in ("transformers", "transformers prompt lookup")
    ]
    for row in (*made["rows"], *made["peers"]):
        assert row.keys() >= FIELDS
        assert row["requests"] == 3
        assert row["identical_fraction"] == 1 or row["dtype"] == "bf16"
    vanilla, chain = made["rows"][:2]
    assert vanilla["tokens_per_forward"] == 1
    assert chain["tokens_per_forward"] > 1
    assert len(chain["acceptance"]) == 2
    assert max(r["speedup_over_vanilla"] for r in made["rows"] if r["rule"] == "vanilla") == pytest.approx(1)
    assert "bonus token included" in table
    assert "tokens/s  reading  decoding" in table
    assert sum(line.startswith("medusa") for line in table.splitlines()) == 2
    assert Path("speed.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_measurement_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from speech_mtp.evaluation import text_bench as module

    original, begun = module.answer_in_turn, []

    def counting(*arguments: object) -> object:
        begun.append(arguments[2].name)  # type: ignore[attr-defined]
        if len(begun) == 2:
            raise KeyboardInterrupt
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "answer_in_turn", counting)
    more = ["--questions", str(folder / "q.txt"), "--heads", "none", "--rules", "vanilla"]
    assert bench(monkeypatch, folder, "text", *more) == 130
    assert not Path("report.json").exists()
    first = Path("report.jsonl").read_text("utf-8").splitlines()
    assert len(first) == 2
    Path("report.jsonl").write_text("\n".join(first) + '\n{"question": "2", "ans', encoding="utf-8")
    assert bench(monkeypatch, folder, "text", *more) == 0
    assert begun == ["1", "2", "2", "3"]
    assert Path("report.jsonl").read_text("utf-8").splitlines()[:2] == first
    assert report()["rows"][0]["requests"] == 3


def test_answers_are_identical_in_batches(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--questions", str(folder / "q.txt"), "--rules", "chain", "--batch", "2"]
    assert bench(monkeypatch, folder, "identity", *more) == 0
    assert "3 prompts" in capsys.readouterr().out
    vanilla, chain, peer = report()["rows"]
    for row, references in ((vanilla, ["transformers"]), (chain, ["vanilla", "transformers"]), (peer, ["vanilla"])):
        assert [name for name in ("vanilla", "transformers") if name in row] == references
        assert all(row[name]["identical"] == 3 for name in references)  # type: ignore[call-overload, index]
    assert len(Path("report.jsonl").read_text("utf-8").splitlines()) == 3


@needs_invariance
def test_invariant_answers_are_compared_with_our_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ["--questions", str(folder / "q.txt"), "--rules", "chain", "--batch", "2"]
    assert bench(monkeypatch, folder, "identity", *more, "--dtypes", "bf16-invariant") == 0
    vanilla, chain = report()["rows"]
    assert "vanilla" not in vanilla
    assert "transformers" not in chain
    assert (chain["dtype"], chain["vanilla"]["identical"]) == ("bf16-invariant", 3)  # type: ignore[index]


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16-invariant", marks=needs_invariance)])
def test_a_rule_that_is_not_lossless_is_found_out(folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    more = ["--questions", str(folder / "q.txt"), "--limit", "2", "--rules", "tests.cli.accept_all:AcceptAll"]
    assert bench(monkeypatch, folder, "identity", *more, "--dtypes", dtype) == 1
    wrong = report()["rows"][1]
    faults = wrong["vanilla"]["mismatches"]  # type: ignore[index]
    assert faults
    assert all(fault["gap"] > 1e-4 and fault["token"] != fault["expected"] for fault in faults)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--questions", "missing.txt"], "no file of questions"),
        (["--questions", "{}/q.txt", "--heads", "nothing"], "no head 'nothing'"),
        (["--questions", "{}/q.txt", "--rules", "chian"], "no decoding rule 'chian'"),
        (["--questions", "{}/q.txt", "--rules", "leap", "--heads", "none"], "rule leap fits none of the heads"),
        (["--questions", "{}/q.txt", "--dtypes", "fp64"], "dtype is 'fp64'"),
        (
            ["--questions", "{}/q.txt", "--dtypes", "bf16-invariant", "--native", "x"],
            "transformers, which has no invariant",
        ),
        (["--questions", "{}/q.txt", "--json", "scores.txt"], "must end in .json"),
    ],
)
def test_a_wrong_input_is_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    given = [argument.replace("{}/", f"{folder}/") for argument in arguments]
    where = ["--json", "r.json"] * ("--json" not in given) + ["--backbone", str(folder / "lm")]
    assert words in refused(monkeypatch, capsys, "bench", "text", *given, *where)
    assert list(Path.cwd().iterdir()) == []


def test_measurements_of_other_settings_are_not_mixed_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("report.jsonl").write_text('{"measured_with": {"max_new_tokens": 11}}\n', encoding="utf-8")
    more = ["--questions", str(folder / "q.txt"), "--heads", "none", "--rules", "vanilla"]
    assert bench(monkeypatch, folder, "text", *more) == 2
    assert "another setting of" in capsys.readouterr().err


def test_the_parts_of_a_forward_are_timed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "bench", "forward", "--backbone", str(folder / "lm"), "--dtypes", "fp32") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert lines[0] == ["part", "rows", "dtype", "plain", "ours"]
    assert [line[:2] for line in lines[1:7]] == [[part, n] for n in ("1", "8", "16") for part in ("products", "output")]
    assert {line[0] for line in lines[7:]} == {"attention", "norm", "choice"}


def test_streams_at_once_are_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("speech_mtp.cli.bench.load_model", lambda *_: tiny_model())
    monkeypatch.setattr("speech_mtp.cli.bench.TEXTS", ["Hello there."])
    assert run(monkeypatch, "bench", "streams", "--streams", "1,2", "--json", "streams.json") == 0
    rows = json.loads(Path("streams.json").read_text("utf-8"))["rows"]
    assert [row["streams"] for row in rows] == [1, 2]
    capsys.readouterr()
    assert {"rtf", "first_audio_ms_p50", "first_audio_ms_p95", "underruns"} <= rows[0].keys()
    assert "numbers of streams" in refused(
        monkeypatch, capsys, "bench", "streams", "--streams", "none", "--json", "x.json"
    )

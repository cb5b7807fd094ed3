"""``generate`` on a tiny random model: what it prints, its figures, what it refuses."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from speech_mtp import hub
from speech_mtp.evaluation.peers import transformers_greedy
from speech_mtp.hub import heads
from speech_mtp.lm.chat import opening
from speech_mtp.lm.text_lm import TextLM
from tests.cli.running import refused, run
from tests.llama import needs_invariance
from tests.text_tiny import tiny_folder, tiny_head

PROMPT = "Hello there!"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone in ``lm``, another in ``other``, and heads of the first in ``medusa`` and ``leap``."""
    root = tmp_path_factory.mktemp("text")
    lm = TextLM.from_folder(tiny_folder(root / "lm"))
    tiny_folder(root / "other", seed=9)
    tiny_folder(root / "plain", chat=None)
    tiny_head(lm, root / "medusa")
    tiny_head(lm, root / "leap", name="leap")
    return root


@pytest.fixture
def generate(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """Run the command; stdout and stderr."""

    def call(*arguments: str) -> tuple[str, str]:
        code = run(monkeypatch, "generate", *arguments, "--backbone", str(folder / "lm"))
        said = capsys.readouterr()
        assert code == 0, said.err
        return said.out, said.err

    return call


def expected(folder: Path, count: int, prompt: str = PROMPT) -> str:
    """What ``transformers`` says."""
    lm = TextLM.from_folder(folder / "lm")
    ids = opening(lm.tokenizer, [{"role": "user", "content": prompt}])
    return str(lm.tokenizer.decode(transformers_greedy(lm)([ids], count)[0], skip_special_tokens=True))


def test_the_stream_is_the_text_of_transformers(folder: Path, generate: Callable[..., tuple[str, str]]) -> None:
    said = [generate(PROMPT, "--max-new-tokens", "40", *more) for more in ([], ["--head", str(folder / "medusa")])]
    assert said == [(expected(folder, 40) + "\n", "")] * 2  # and nothing on standard error
    assert len(said[0][0]) > 10


def test_the_last_line_is_json(folder: Path, generate: Callable[..., tuple[str, str]]) -> None:
    out, _ = generate(PROMPT, "--head", str(folder / "medusa"), "--rule", "chain", "--max-new-tokens", "24", "--json")
    figures = json.loads(out.splitlines()[-1])
    assert figures["text"] == expected(folder, 24)
    assert out == figures["text"] + "\n" + out.splitlines()[-1] + "\n"
    assert (figures["head"], figures["rule"], figures["lossless"]) == (str(folder / "medusa"), "chain", True)
    assert (figures["dtype"], figures["new_tokens"], figures["finish_reason"]) == ("fp32", 24, "length")
    assert figures["tokens_per_forward"] == pytest.approx(24 / figures["forwards"], abs=1e-3)
    assert len(figures["acceptance"]) == 2
    assert figures["tokens_per_s"] > 0
    assert figures["first_text_ms"] <= 1000 * figures["seconds"] + 1


def test_figures_for_people_go_to_standard_error(folder: Path, generate: Callable[..., tuple[str, str]]) -> None:
    out, err = generate(PROMPT, "--max-new-tokens", "5", "--stats", "--rule", "vanilla", "--raw")
    assert "5 forwards, 1.00 tokens per forward (bonus token included), acceptance per depth: none" in err
    assert "forward" not in out


def test_a_stop_string_ends_the_text_before_it(folder: Path, generate: Callable[..., tuple[str, str]]) -> None:
    whole = expected(folder, 40)
    stop = whole[6:8]
    out, _ = generate(PROMPT, "--max-new-tokens", "40", "--stop", stop, "--stop", "never said", "--json")
    figures = json.loads(out.splitlines()[-1])
    assert figures["text"] == whole[: whole.index(stop)]
    assert figures["finish_reason"] == "stop"
    assert figures["new_tokens"] < 40


def test_the_seed_decides_sampled_text(folder: Path, generate: Callable[..., tuple[str, str]]) -> None:
    settings = ["--temperature", "1.5", "--top-k", "50", "--top-p", "0.95", "--repetition-penalty", "1.1"]
    said = [generate(PROMPT, "--max-new-tokens", "20", *settings, "--seed", seed)[0] for seed in ("1", "1", "2")]
    assert said[0] == said[1] != said[2]


def test_bf16_and_settings_of_a_rule(folder: Path, generate: Callable[..., tuple[str, str]]) -> None:
    rule = ["--head", str(folder / "medusa"), "--rule", "{name: chain, depth: 1}"]
    out, _ = generate(PROMPT, "--dtype", "bf16", "--max-new-tokens", "8", "--json", *rule)
    figures = json.loads(out.splitlines()[-1])
    assert (figures["dtype"], figures["rule"], len(figures["acceptance"])) == ("bf16", "chain(depth=1)", 1)


@needs_invariance
def test_the_text_in_bfloat16_does_not_depend_on_the_head(
    folder: Path, generate: Callable[..., tuple[str, str]]
) -> None:
    given = [PROMPT, "--dtype", "bf16-invariant", "--max-new-tokens", "40"]
    assert generate(*given, "--head", str(folder / "medusa"))[0] == generate(*given, "--head", "none")[0]


def test_a_packaged_head_has_a_name(
    folder: Path, generate: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "HEADS", folder)
    assert {"medusa", "leap"} <= set(hub.known_heads())
    out, _ = generate(PROMPT, "--head", "medusa", "--max-new-tokens", "8", "--json")
    assert json.loads(out.splitlines()[-1])["head"] == "medusa"


def test_the_packaged_head_drafts_for_its_backbone(
    folder: Path, generate: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "HEADS", folder)
    monkeypatch.setattr(heads, "DEFAULT_HEAD", "medusa")

    def used(*arguments: str) -> tuple[object, object]:
        out, _ = generate(PROMPT, "--max-new-tokens", "8", "--json", *arguments)
        figures = json.loads(out.splitlines()[-1])
        return figures["head"], figures["rule"]

    head, rule = used()
    assert (head, rule) == ("medusa", "cascade")
    assert used("--rule", "chain") == ("medusa", "chain")
    assert used("--rule", "vanilla") == (None, "vanilla")
    assert used("--rule", "lookup") == (None, "lookup")
    assert used("--head", "none") == (None, "vanilla")
    monkeypatch.setattr(heads, "DEFAULT_HEAD", "eagle")
    assert used() == (None, "vanilla")
    stranger = TextLM.from_folder(folder / "other")
    monkeypatch.setattr(heads, "DEFAULT_HEAD", "medusa")
    assert hub.default_head(stranger.fingerprint) is None


def test_a_conversation_goes_on_in_its_cache(
    generate: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = TextLM.read

    def reading(self: TextLM, state: object, texts: list[list[int]], *more: object) -> object:
        read.append(len(texts[0]))
        return original(self, state, texts, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(TextLM, "read", reading)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{PROMPT}\n\nGood morning.\n"))
    out, err = generate("--chat", "--max-new-tokens", "6", "--json", "--stats")
    turns = [json.loads(line) for line in out.splitlines() if line.startswith('{"head"')]
    assert len(turns) == 2 == err.count("tokens/s")
    assert [turn["prompt_tokens"] for turn in turns] == read


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "either a prompt, or --chat"),
        ([PROMPT, "--chat"], "either a prompt, or --chat"),
        (["--chat", "--raw"], "leave --raw or --chat out"),
        (["  "], "prompt is empty"),
        (["@missing.txt"], "no text file missing.txt"),
        ([PROMPT, "--temperature", "-1"], "temperature is -1"),
        ([PROMPT, "--top-p", "0"], "top_p is 0"),
        ([PROMPT, "--stop", ""], "stop string is empty"),
        ([PROMPT, "--dtype", "bf16-invariant", "--compile"], "bf16-invariant is for a CPU and is not compiled"),
        ([PROMPT, "--dtype", "fp8"], "dtype is 'fp8'; use fp32, bf16, bf16-invariant"),
        ([PROMPT, "--device", "tpu"], "device 'tpu' cannot be used"),
        ([PROMPT, "--rule", "vanila"], "no decoding rule 'vanila'; did you mean 'vanilla'"),
        ([PROMPT, "--rule", "chain"], "rule chain drafts with a head"),
        ([PROMPT, "--rule", "vanilla,chain"], "give one rule"),
        ([PROMPT, "--head", "nothing"], "no head 'nothing'"),
        ([PROMPT, "--head", "{}/medusa", "--rule", "vanilla"], "vanilla does not draft with Medusa"),
        ([PROMPT, "--head", "{}/medusa", "--backbone", "{}/other"], "another backbone"),
        ([PROMPT, "--backbone", "{}/nowhere"], "neither a folder nor a hub id"),
        ([PROMPT, "--max-new-tokens", "600"], "the model reads 512"),
        (["the fox " * 400], "the model reads 512"),
    ],
)
def test_a_wrong_input_is_one_sentence(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    given = [argument.replace("{}/", f"{folder}/") for argument in arguments]
    where = [] if "--backbone" in given else ["--backbone", str(folder / "lm")]
    assert words in refused(monkeypatch, capsys, "generate", *given, *where)


def test_a_conversation_needs_a_chat_template(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\nagain\n"))
    assert run(monkeypatch, "generate", "--chat", "--backbone", str(folder / "plain"), "--max-new-tokens", "2") == 2
    assert "no chat template" in capsys.readouterr().err


def test_the_public_names_do_the_same(folder: Path) -> None:
    from speech_mtp import TextLM as Public
    from speech_mtp import generate_text
    from speech_mtp.types import Sampling

    lm = Public.from_folder(folder / "lm", torch.float32)
    ids = opening(lm.tokenizer, [{"role": "user", "content": PROMPT}])
    steps = generate_text(lm, [ids], Sampling(temperature=0), max_new_tokens=10)
    assert [token for step in steps for token in step[0]] == transformers_greedy(lm)([ids], 10)[0]

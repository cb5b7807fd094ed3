"""``custom_generate``: without this package the text is that of ``model.generate``, and sampling has the same law."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, LogitsProcessorList, TemperatureLogitsWarper
from transformers.generation.utils import GenerateDecoderOnlyOutput

from speech_mtp.exports import _generate
from speech_mtp.exports.custom_generate import CustomGenerate
from speech_mtp.heads.base import MTPHead
from speech_mtp.lm.text_lm import TextLM
from tests.exports.tiny import assert_same, trained, trunk_folder

pytestmark = pytest.mark.filterwarnings("error::FutureWarning")

HEADS: dict[str, dict[str, Any]] = {
    "medusa": {"name": "medusa", "num_heads": 3},
    "private": {"name": "medusa", "num_heads": 2, "num_layers": 2, "private": True, "draft_vocab": 200},
    "reduced": {"name": "medusa", "num_heads": 2, "draft_vocab": 200, "taps": (1, -1), "feed": "mixture"},
    "hydra": {"name": "hydra", "num_heads": 3, "num_layers": 2, "taps": (2, -1), "feed": "concat"},
}
PROMPT = [5, 9, 200, 31]
NAME = list(GenerateDecoderOnlyOutput.__dataclass_fields__)[-1]
"""What this release of transformers calls the cache."""
SETTINGS: list[dict[str, Any]] = [
    {"max_new_tokens": 40},
    {"max_new_tokens": 1},
    {"max_new_tokens": 40, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    {"max_new_tokens": 40, "do_sample": True, "top_k": 1},
]
PROGRAM = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "speech_mtp":
            raise ImportError("blocked")

sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModelForCausalLM
trunk, prompt, settings, *folders = json.loads(sys.stdin.read())
model, prompt = AutoModelForCausalLM.from_pretrained(trunk).eval(), torch.tensor([prompt])
calls = []
model.register_forward_pre_hook(lambda *_: calls.append(1))
found = []
for folder in folders:
    for given in settings:
        calls.clear()
        text = model.generate(prompt, custom_generate=folder, trust_remote_code=True, **given)
        found.append([text[0].tolist(), len(calls)])
assert not any(name.partition(".")[0] == "speech_mtp" for name in sys.modules)
print(json.dumps(found))
"""


def learnt(lm: TextLM, text: Tensor, **spec: Any) -> MTPHead:
    """A head that has seen ``text [1, T]``, so that its drafts are often right."""
    head = trained(lm, **spec)
    if head.token_map is not None:
        head.set_vocabulary(torch.tensor(sorted(set(text[0].tolist()) | set(range(200)), reverse=True)[:200]))
    with torch.no_grad():
        out = lm(text, torch.tensor([text.shape[1]]), head.taps)
        for weight in head.parameters():
            weight.mul_(0.3)
    known = (
        text if head.token_map is None else torch.stack([head.token_map == t for t in text[0]]).int().argmax(1)[None]
    )
    optimizer = torch.optim.Adam(head.parameters(), 0.02)
    for _ in range(80):
        pairs = head.unroll(out, text)
        loss = sum(F.cross_entropy(logits[0, :-o], known[0, o:]) for o, logits in pairs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A trunk, its greedy text, and the exports of :data:`HEADS`, which have learnt that text."""
    root = tmp_path_factory.mktemp("custom")
    lm = TextLM.from_folder(trunk_folder(root / "trunk", initializer_range=0.2))
    text = lm.model.generate(torch.tensor([PROMPT]), do_sample=False, max_new_tokens=40)
    heads = {name: learnt(lm, text, **spec) for name, spec in HEADS.items()}
    for name, head in heads.items():
        CustomGenerate().write(root / name, head, lm)
    return SimpleNamespace(root=root, lm=lm, heads=heads, text=text)


def test_without_this_package_the_text_is_that_of_generate(made: SimpleNamespace) -> None:
    folders = [str(made.root / name) for name in HEADS]
    given = json.dumps([str(made.root / "trunk"), PROMPT, SETTINGS, *folders])
    hidden = {**os.environ, "HF_MODULES_CACHE": str(made.root / "modules"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::FutureWarning", "-c", PROGRAM]
    ended = subprocess.run(command, input=given, cwd=made.root, env=hidden, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    expected = [made.lm.model.generate(torch.tensor([PROMPT]), **s)[0].tolist() for s in SETTINGS]
    assert [text for text, _ in found] == expected * len(HEADS)
    forwards = [
        calls for (_, calls), settings in zip(found, SETTINGS * len(HEADS), strict=True) if settings == SETTINGS[0]
    ]
    assert max(forwards) < 30  # of 40 tokens: drafts were kept


@pytest.mark.parametrize("name", HEADS)
def test_it_is_read_back(made: SimpleNamespace, name: str) -> None:
    assert_same(made.heads[name], CustomGenerate().read(made.root / name, made.lm))
    assert sorted(str(p.relative_to(made.root / name)) for p in (made.root / name).rglob("*") if p.is_file()) == [
        "README.md",
        "custom_generate/generate.py",
        "custom_generate/head.json",
        "custom_generate/head.safetensors",
    ]
    assert "\n- custom_generate\n" in (made.root / name / "README.md").read_text()


# -- in this process --------------------------------------------------------------------------------------------------
@pytest.fixture
def ask(made: SimpleNamespace, modules: Path) -> Any:
    """``model.generate`` with the first head."""

    def call(prompt: Any = PROMPT, **settings: Any) -> Any:
        ids = torch.tensor([prompt]) if isinstance(prompt, list) else prompt
        folder = settings.pop("folder", made.root / "medusa")
        return made.lm.model.generate(ids, custom_generate=str(folder), trust_remote_code=True, **settings)

    return call


def test_it_ends_where_generate_ends(made: SimpleNamespace, ask: Any) -> None:
    text = made.text[0].tolist()
    for at in (4, 9, 12, 13, 14):
        end = text[at]
        cut = text.index(end, len(PROMPT)) + 1
        found = ask(max_new_tokens=40, eos_token_id=end, pad_token_id=0, return_dict_in_generate=True)
        assert found.sequences[0].tolist() == text[:cut]
        assert getattr(found, NAME).get_seq_length() == cut - 1


def test_a_streamer_hears_every_token_and_the_end(made: SimpleNamespace, ask: Any) -> None:
    heard: list[Any] = []
    streamer = SimpleNamespace(put=lambda ids: heard.extend(ids.flatten().tolist()), end=lambda: heard.append("end"))
    ask(max_new_tokens=20, streamer=streamer)
    assert heard == [*made.text[0, : len(PROMPT) + 20].tolist(), "end"]


def test_a_text_goes_on_from_its_cache(made: SimpleNamespace, ask: Any) -> None:
    first = ask(max_new_tokens=10, return_dict_in_generate=True)
    second = ask(first.sequences, max_new_tokens=30, **{NAME: getattr(first, NAME)})
    assert torch.equal(second, made.text)


def test_the_model_may_lie_in_the_same_folder(made: SimpleNamespace, ask: Any, tmp_path: Path) -> None:
    CustomGenerate().write(tmp_path / "both", made.heads["medusa"], made.lm)
    made.lm.model.save_pretrained(tmp_path / "both")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "both", trust_remote_code=True)
    found = model.generate(inputs=torch.tensor([PROMPT]), max_new_tokens=40)
    assert torch.equal(found, made.text)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"prompt": torch.tensor([PROMPT, PROMPT])}, "one text at a time"),
        ({"num_beams": 2}, "one text at a time, without beams"),
        ({"attention_mask": torch.tensor([[0, 1, 1, 1]])}, "hides tokens"),
        ({"return_dict_in_generate": True, "output_scores": True}, "knows nothing of output_scores"),
        ({"cache_implementation": "static"}, "dynamic cache of full attention"),
        ({"use_cache": False}, "dynamic cache of full attention"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused(ask: Any, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ask(max_new_tokens=4, **settings)


def test_a_head_of_another_model_is_refused(made: SimpleNamespace, modules: Path, tmp_path: Path) -> None:
    other = TextLM.from_folder(trunk_folder(tmp_path / "other", vocab_size=310))
    with pytest.raises(ValueError, match=r"300 tokens and states of 32; this model has \(310, 32\)"):
        other.model.generate(
            torch.tensor([PROMPT]), custom_generate=str(made.root / "medusa"), trust_remote_code=True, max_new_tokens=4
        )


# -- the law ----------------------------------------------------------------------------------------------------------
class Chain:
    """A model whose next token depends on the last alone, and its own cache."""

    device = torch.device("cpu")

    def __init__(self, table: Tensor) -> None:
        self.table, self.length = table, 0

    def forward(self, input_ids: Tensor, logits_to_keep: int, **more: Any) -> SimpleNamespace:
        self.length += input_ids.shape[1]
        return SimpleNamespace(logits=self.table[input_ids[:, -logits_to_keep:]], hidden_states=())

    __call__ = forward

    def get_seq_length(self) -> int:
        return self.length

    def crop(self, count: int) -> None:
        self.length += count


def test_sampled_text_follows_the_law_of_the_model() -> None:
    torch.manual_seed(0)
    table, guesses = torch.randn(2, 3, 3) * 1.5
    guesses[:, 2] = float("-inf")  # a token that is never drafted
    head: Any = SimpleNamespace(
        count=2, base=lambda states, at: guesses[:1], scores=lambda base, after: guesses[after[:, -1]]
    )
    config = SimpleNamespace(do_sample=True, max_length=5, return_dict_in_generate=False)
    processors, n = LogitsProcessorList([TemperatureLogitsWarper(1.3)]), 3000
    counts: Counter[tuple[int, ...]] = Counter()

    def ended(ids: Tensor, scores: None) -> Tensor:
        return torch.tensor([ids.shape[1] >= 5])

    for _ in range(n):
        model: Any = Chain(table)
        run = _generate._Decoding(model, head, model, processors, ended, config, None)
        counts[tuple(run.text(torch.tensor([[1, 0]]))[0, 2:].tolist())] += 1
        assert model.length == 4
    p = (table / 1.3).softmax(-1)
    chi = 0.0
    for a, b, c in itertools.product(range(3), repeat=3):
        expected = n * float(p[0, a] * p[a, b] * p[b, c])
        chi += (counts[a, b, c] - expected) ** 2 / expected
    assert chi < 60  # 26 degrees of freedom: exceeded once in 6000 runs

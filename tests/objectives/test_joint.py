"""Heads trained with the trunk, and trunks that learn from another: laws, stages, what is left, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("wordfreq", reason="needs the train extra")

from speech_mtp import plugins
from speech_mtp.corpus.document_store import DocumentStore
from speech_mtp.heads.base import MTPHead
from speech_mtp.hub import load_head
from speech_mtp.lm.byte_tokens import write_byte_tokenizer
from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.lm.llama_folder import write_llama
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.nn.transformer import causal
from speech_mtp.nn.visibility import mask_of, within_segments
from speech_mtp.objectives.base import Course, Objective
from speech_mtp.objectives.ntp import NTP
from speech_mtp.training.trunk import TrunkTask, TrunkTaskConfig
from speech_mtp.types import LMOutput, Positions
from tests.objectives.rows import packed
from tests.training.tiny_documents import CPU, counting_store

DOCUMENTS = [[3, 1, 4, 1, 5, 9, 2, 6], [6, 5, 3], [5, 8, 9, 7, 9, 3]]
HEADS: list[Any] = [
    "leap",
    "deepseek",
    {"name": "eagle3", "depth": 3, "taps": [0, 1]},
    "hydra",
    {"name": "medusa", "num_heads": 2, "taps": [0, 1, -1], "feed": "mixture"},
]


def random_lm(**sizes: Any) -> CausalLM:
    lm = CausalLM.tiny(**sizes)
    with torch.no_grad():
        for weight in lm.parameters():
            weight.normal_(0, 0.2)
    return lm


@pytest.fixture
def lm() -> CausalLM:
    torch.manual_seed(0)
    return random_lm()


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A deeper and wider trunk of the same bytes."""
    torch.manual_seed(1)
    (tmp_path / "bytes").mkdir()
    write_byte_tokenizer(tmp_path / "bytes")
    write_llama(random_lm(dim=48, num_layers=3, num_heads=3, num_kv_heads=1), tmp_path / "teacher", tmp_path / "bytes")
    return tmp_path / "teacher"


def bound(lm: CausalLM, spec: dict[str, Any], length: int = 64) -> Any:
    torch.manual_seed(2)
    objective: Objective = plugins.build("objectives", spec)
    objective.bind(lm, Course(length, 100))
    for weight in objective.parameters() if isinstance(objective, torch.nn.Module) else ():
        torch.nn.init.normal_(weight, 0, 0.2)
    return objective


def states(lm: CausalLM, taps: tuple[int, ...], positions: Positions) -> LMOutput:
    mask = mask_of(within_segments(positions.segment), *positions.segment.shape, CPU)
    out: LMOutput = lm(lm.embed(positions.tokens[..., 0]), positions.index, mask, taps)
    return LMOutput(out.hidden.detach().requires_grad_())


def alone(lm: CausalLM, head: MTPHead, document: list[int]) -> dict[int, Tensor]:
    """A head's scores ``[T, V]`` of one document by itself."""
    tokens = torch.tensor([document])
    x = lm.embed(tokens)
    out = lm(x, *causal(x), (*head.taps, -1))
    mine = LMOutput(out.hidden[:, :, :-1], final=out.top)
    return {offset: scores[0] for offset, scores in head.unroll(mine, tokens)}


def law(lm: CausalLM, document: list[int]) -> Tensor:
    """log p ``[T, V]`` of what follows each token."""
    x = lm.embed(torch.tensor([document]))
    return lm.output.logits(lm(x, *causal(x)).top)[0].log_softmax(-1)


# -- terms ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_every_offset_is_the_mean_over_documents_alone(lm: CausalLM, head: Any) -> None:
    objective, positions = bound(lm, {"name": "joint", "head": head}), packed(DOCUMENTS[:2], DOCUMENTS[2:])
    terms = dict(objective.terms(lm, states(lm, objective.taps, positions), positions))
    ((_, plain),) = NTP().terms(lm, states(lm, (-1,), positions), positions)
    torch.testing.assert_close(terms.pop("next"), plain)
    assert list(terms) == [f"ahead{offset}" for offset in objective.head.offsets]
    for offset in objective.head.offsets:
        losses = [
            F.cross_entropy(
                alone(lm, objective.head, d)[offset][: len(d) - offset], torch.tensor(d[offset:]), reduction="none"
            )
            for d in DOCUMENTS
            if len(d) > offset
        ]
        expected = torch.cat(losses).mean() if losses else torch.zeros(())
        torch.testing.assert_close(terms[f"ahead{offset}"], expected, atol=1e-5, rtol=1e-5)


def test_a_student_learns_the_teachers_law_of_every_offset(lm: CausalLM, teacher: Path) -> None:
    spec = {"name": "distill", "teacher": str(teacher), "share": 0.3, "head": {"name": "parallel", "num_heads": 2}}
    objective, positions = bound(lm, spec), packed(DOCUMENTS[:2], DOCUMENTS[2:])
    terms = dict(objective.terms(lm, states(lm, objective.taps, positions), positions))
    ((_, plain),) = NTP().terms(lm, states(lm, (-1,), positions), positions)
    torch.testing.assert_close(terms["next"], plain)
    theirs = TextLM.from_folder(teacher)
    hard: dict[int, list[Tensor]] = {1: [], 2: [], 3: []}
    soft: dict[int, list[Tensor]] = {1: [], 2: [], 3: []}
    with torch.no_grad():
        for d in DOCUMENTS:
            x = theirs.embed(torch.tensor([d]))
            p = theirs.output.logits(theirs.trunk_states(x, *causal(x)).top)[0].float().log_softmax(-1)
            scores = {1: law(lm, d), **alone(lm, objective.head, d)}
            for k in hard:
                q = scores[k][: max(0, len(d) - k)].log_softmax(-1)
                at = p[k - 1 : len(d) - 1]  # who has read x_{t+k-1}
                hard[k].append(-q[torch.arange(len(q)), torch.tensor(d[k:], dtype=torch.long)])
                soft[k].append((at.exp() * (at - q)).sum(-1))
    means = {k: (torch.cat(hard[k]).mean(), torch.cat(soft[k]).mean()) for k in hard}
    torch.testing.assert_close(terms["next_law"], means[1][1], atol=1e-5, rtol=1e-4)
    for k in (2, 3):
        torch.testing.assert_close(terms[f"ahead{k}"], 0.7 * means[k][0] + 0.3 * means[k][1], atol=1e-5, rtol=1e-4)
    assert [objective.weight(name) for name in ("next", "next_law", "ahead2")] == [0.7, 0.3, 0.3]


def test_a_student_that_is_its_teacher_has_nothing_to_learn_from_the_law(tmp_path: Path, lm: CausalLM) -> None:
    (tmp_path / "bytes").mkdir()
    write_byte_tokenizer(tmp_path / "bytes")
    write_llama(lm, tmp_path / "self", tmp_path / "bytes")
    objective = bound(lm, {"name": "distill", "teacher": str(tmp_path / "self"), "head": None, "share": 1.0})
    positions = packed(DOCUMENTS)
    terms = dict(objective.terms(lm, states(lm, objective.taps, positions), positions))
    assert list(terms) == ["next", "next_law"]
    assert float(terms["next_law"]) == pytest.approx(0, abs=1e-6)
    assert objective.heads() == {}


# -- stages ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DocumentStore:
    return counting_store(tmp_path_factory.mktemp("store") / "documents")


def task_of(store: DocumentStore, spec: dict[str, Any]) -> TrunkTask:
    torch.manual_seed(0)
    config = TrunkTaskConfig(batch=2, length=32, amp=False)
    return TrunkTask(CausalLM.tiny(), store, config, CPU, objective=plugins.build("objectives", spec), steps=4)


def moved(module: torch.nn.Module, before: list[Tensor]) -> list[bool]:
    return [not torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True)]


def test_the_heads_learn_first_and_then_both(store: DocumentStore) -> None:
    task = task_of(store, {"name": "joint", "warmup": 2, "weighting": "decay", "decay": 0.5})
    trunk = [p.detach().clone() for p in task.lm.parameters()]
    for number in range(2):
        assert "next" not in task.step(number, 1e-2)
    assert [task.objective.weight(f"ahead{offset}") for offset in (3, 5, 7)] == [1, 0.5, 0.25]
    assert not any(moved(task.lm, trunk))
    assert "next" in task.step(2, 1e-2)
    assert [task.objective.weight(name) for name in ("next", "ahead3", "ahead5")] == pytest.approx([1, 0.1, 0.05])
    assert all(moved(task.lm, trunk))


def test_a_mixture_of_layers_is_learnt_before_a_trunk_that_stands_still(store: DocumentStore) -> None:
    head = {"name": "medusa", "num_heads": 1, "taps": [1, -1], "feed": "mixture"}
    task = task_of(store, {"name": "joint", "head": head, "warmup": 4})
    trunk, own = ([p.detach().clone() for p in module.parameters()] for module in task.modules.values())
    for number in range(4):
        task.step(number, 1e-2)
    assert not any(moved(task.lm, trunk))
    assert all(moved(task.modules["objective"], own))


def test_the_teacher_stands_still_and_is_not_saved(store: DocumentStore, teacher: Path) -> None:
    task = task_of(store, {"name": "distill", "teacher": str(teacher)})
    ours: Any = task.objective
    before = [p.detach().clone() for p in ours._teacher[0].parameters()]
    task.step(0, 1e-2)
    assert not any(moved(ours._teacher[0], before))
    assert all(key.startswith("head.") for key in task.modules["objective"].state_dict())


# -- what is left ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_heads_draft_for_the_exported_trunk(store: DocumentStore, tmp_path: Path, head: Any) -> None:
    task = task_of(store, {"name": "joint", "head": head})
    for number in range(2):
        task.step(number, 1e-2)
    task.export(tmp_path / "export")
    theirs = TextLM.from_folder(tmp_path / "export")
    loaded, tokens = load_head(tmp_path / "export/head", theirs), torch.randint(256, (1, 20))
    x = theirs.embed(tokens)
    out = theirs.trunk_states(x, *causal(x), None, (*loaded.taps, -1))
    with torch.no_grad():
        scores = dict(loaded.unroll(LMOutput(out.hidden[:, :, :-1], final=out.top), tokens))
        ours: Any = task.objective
        for offset, mine in alone(task.lm, ours.head, tokens[0].tolist()).items():
            torch.testing.assert_close(scores[offset][0, :-offset], mine[:-offset], atol=1e-4, rtol=1e-4)


# -- settings -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"name": "joint", "beta": 0.0}, "beta 0.0"),
        ({"name": "joint", "warmup": -1}, "warmup -1"),
        ({"name": "joint", "head": {"name": "leap", "num_heads": 9, "stride": 8}}, "looks 73 tokens ahead"),
        ({"name": "joint", "head": "nobody"}, "nobody"),
        ({"name": "joint", "weighting": "linear"}, "weighting is 'linear'"),
        ({"name": "joint", "decay": 0.5}, "joint has the decay 0.5"),
        ({"name": "joint", "head": {"name": "medusa", "draft_vocab": 8}}, "leave draft_vocab out"),
        ({"name": "joint", "head": {"name": "medusa", "taps": [2, -1], "feed": "mixture"}}, "reads layer 2 .taps."),
        ({"name": "distill", "teacher": "T", "head": {"name": "medusa", "draft_vocab": 8}}, "leave draft_vocab out"),
        ({"name": "distill", "teacher": "T", "share": 0.0}, "share 0.0"),
        ({"name": "distill", "teacher": "nowhere"}, "no language model in nowhere"),
        ({"name": "distill", "teacher": "T", "head": {"name": "parallel", "num_heads": 70}}, "looks 71 tokens ahead"),
    ],
)
def test_settings_that_do_not_fit_are_refused(lm: CausalLM, teacher: Path, spec: dict[str, Any], words: str) -> None:
    spec = {key: str(teacher) if value == "T" else value for key, value in spec.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        bound(lm, spec)


def test_a_teacher_of_another_vocabulary_or_of_shorter_texts_is_refused(teacher: Path) -> None:
    spec = {"name": "distill", "teacher": str(teacher)}
    with pytest.raises(ValueError, match="knows 257 tokens and the student 29"):
        bound(CausalLM.tiny(29), spec)
    with pytest.raises(ValueError, match="reads 128 tokens, and the rows have 200"):
        bound(CausalLM.tiny(max_positions=256), spec, length=200)

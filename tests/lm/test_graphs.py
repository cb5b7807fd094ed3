"""Recorded forwards. Without a GPU, the traces of ``torch.fx`` stand in for CUDA graphs: they too repeat what was done
to the same memory, and whatever Python had decided is fixed in them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import GemmaConfig, GemmaForCausalLM

from speech_mtp.decoding.base import DecodingRule
from speech_mtp.decoding.chain import Chain
from speech_mtp.decoding.lookup import Lookup
from speech_mtp.decoding.text import start
from speech_mtp.decoding.tree import Tree
from speech_mtp.lm.graphs import CudaRecorder, GraphedForward, Graphs
from speech_mtp.lm.text_lm import TextLM, TextRows
from speech_mtp.types import Draft, Sampling
from tests.decoding.test_text_lossless import make_head
from tests.lm.test_decoder import PARENTS, SIZES, model

PROMPTS = [[5, 9, 2], [7, 7, 30, 1, 12, 4, 22], [3, 18]]
GREEDY = Sampling(temperature=0)


class Tracer:
    """Records what a function does as a graph of ``torch.fx``; counts."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def record(self, run: Callable[[], tuple[Tensor, ...]]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        run()  # warms up, as the true one does
        self.recorded += 1
        trace = make_fx(run)()
        results = tuple(torch.full_like(x, torch.nan) for x in trace())

        def replay() -> None:
            self.replayed += 1
            for own, new in zip(results, trace(), strict=True):
                own.copy_(new)

        return replay, results


class Refusing:
    """Cannot record anything."""

    def __init__(self) -> None:
        self.tried = 0

    def record(self, run: Callable[[], tuple[Tensor, ...]]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
        run()
        self.tried += 1
        raise RuntimeError("operation not permitted when stream is capturing\nmore of this")


@pytest.fixture(scope="module")
def plain() -> TextLM:
    return model("llama").prepare()


def graphed(recorder: Tracer | Refusing, **settings: int) -> tuple[TextLM, GraphedForward]:
    """The model of ``plain`` with ``recorder``, and attention over lengths as on a GPU (but from 32 on)."""
    lm = model("llama").prepare()
    graphs = lm._graphs = GraphedForward(lm._follow, recorder, **settings)
    lm._seen = lambda cache, m: min(cache.size, max(32, 1 << (cache.longest + m - 1).bit_length()))  # type: ignore[method-assign]
    return lm, graphs


def opened(lm: TextLM, size: int = 32) -> TextRows:
    state = lm.open(2, size)
    lm.read(state, [[1, 2, 3, 4, 5, 6], [7, 8, 9]])
    return state


def draft(seed: int, parents: Tensor = PARENTS) -> Draft:
    tokens = torch.randint(67, (*parents.shape, 1), generator=torch.Generator().manual_seed(seed))
    return Draft(tokens, parents)


@pytest.fixture
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def says(lm: TextLM, rule: DecodingRule, count: int = 40) -> list[list[int]]:
    return start(lm, PROMPTS, GREEDY, rule, count).complete()


def test_the_text_is_that_without_graphs(plain: TextLM, quiet: None) -> None:
    recorder = Tracer()
    lm, graphs = graphed(recorder)
    expected = says(plain, Lookup(4))
    assert says(lm, Lookup(4)) == expected
    assert len({len(set(said)) for said in expected}) > 1
    assert recorder.recorded == len(graphs.graphs) < recorder.replayed
    for name in ("chain", "tree"):  # drafts of other sizes by a head with a cache of its own
        rule = {"chain": Chain, "tree": Tree}[name](make_head("eagle", lm))
        assert says(lm, rule, 12) == [said[:12] for said in expected]


@torch.inference_mode()
def test_states_are_copies_and_caches_are_kept_apart(plain: TextLM) -> None:
    lm, _ = graphed(recorder := Tracer())
    a, b, expected = opened(lm), opened(lm), opened(plain)
    b.cache.commit(torch.tensor([[0, 2, 4, -1, -1], [0, 1, -1, -1, -1]]), torch.tensor([3, 2]))
    first, second = lm.verify(a, draft(0), (1, -1)), lm.verify(b, draft(0), (1, -1))
    again, other = lm.verify(a, draft(0), (1, -1)), lm.verify(a, draft(1, PARENTS.flip(0)), (1, -1))
    assert (recorder.recorded, recorder.replayed) == (2, 4)
    assert not torch.equal(first.top, second.top)
    assert torch.equal(first.top, again.top)
    assert torch.equal(first.hidden, again.hidden)
    torch.testing.assert_close(first.hidden, plain.verify(expected, draft(0), (1, -1)).hidden, atol=1e-5, rtol=1e-5)
    last = plain.verify(expected, draft(1, PARENTS.flip(0)), (1, -1))
    torch.testing.assert_close(other.hidden, last.hidden, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other.top, last.top, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_cache_that_grows_is_recorded_anew(plain: TextLM) -> None:
    lm, _ = graphed(recorder := Tracer())
    states = opened(lm), opened(plain)
    lm.verify(states[0], draft(0))
    for state in states:
        state.cache.grow(100)
    out, expected = lm.verify(states[0], draft(1)), plain.verify(states[1], draft(1))
    assert recorder.recorded == 2
    torch.testing.assert_close(out.hidden, expected.hidden, atol=1e-5, rtol=1e-5)


def test_what_was_recorded_on_buffers_that_are_gone_is_dropped() -> None:
    class Once(Tracer):
        """Does the first call alone, and keeps nothing alive."""

        def record(self, run: Callable[[], tuple[Tensor, ...]]) -> tuple[Callable[[], None], tuple[Tensor, ...]]:
            self.recorded += 1
            return (lambda: None), run()

    graphs, x = Graphs(recorder := Once()), torch.ones(3)

    def run(what: str, buffer: Tensor) -> int:
        graphs.run(what, (buffer,), lambda x: (x,), (x,))
        return len(graphs)

    first, second = torch.zeros(3), torch.zeros(3)
    assert [run("a", first), run("a", second), run("b", first), run("a", first)] == [1, 2, 3, 3]
    del first
    assert run("c", second) == 2
    assert recorder.recorded == 4
    # Freed memory is given again: a graph serves whoever owns its addresses now.
    again = torch.empty(0).set_(second)
    assert run("a", again) == 2
    del second
    assert run("d", torch.zeros(3)) == 2
    assert recorder.recorded == 5


@torch.inference_mode()
def test_only_the_graphs_used_last_are_kept() -> None:
    lm, graphs = graphed(recorder := Tracer(), keep=2)
    state = opened(lm)
    sizes = (3, 4, 3, 5, 3, 4)  # 5 puts 4 out, which is recorded again
    for m in sizes:
        lm.verify(state, draft(m, PARENTS[:, :m]))
        assert len(graphs.graphs) <= 2
    assert (recorder.recorded, recorder.replayed) == (4, len(sizes))
    with pytest.raises(ValueError, match="at least one"):
        Graphs(recorder, keep=0)


@torch.inference_mode()
def test_prompts_and_large_drafts_are_not_recorded() -> None:
    lm, _ = graphed(recorder := Tracer(), most_nodes=4)
    state = opened(lm)
    lm.verify(state, draft(0))
    assert recorder.recorded == 0
    lm.verify(state, draft(0, PARENTS[:, :4]))
    assert recorder.recorded == 1


def test_what_cannot_be_recorded_runs_as_it_is_and_says_so_once(plain: TextLM) -> None:
    lm, graphs = graphed(recorder := Refusing())
    with pytest.warns(RuntimeWarning, match="nodes in 3 rows .* not permitted when stream is capturing$") as caught:
        said = says(lm, Lookup(4, min_ngram=2), 20)
    assert said == says(plain, Lookup(4), 20)
    about_graphs = [str(w.message) for w in caught if "CUDA graph" in str(w.message)]
    assert recorder.tried == len(about_graphs) == len(set(about_graphs))
    assert len(graphs.graphs) == 0


def test_who_gets_graphs() -> None:
    assert model("llama").prepare()._graphs is None  # a CPU has none
    with FakeTensorMode(), torch.device("cuda"):
        llama, other = model("llama"), TextLM(GemmaForCausalLM(GemmaConfig(**SIZES)))
        assert isinstance(llama.prepare()._graphs, GraphedForward)
        assert llama.prepare(graphs=False)._graphs is None
        assert other.prepare()._graphs is None


# -- on a GPU ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def cuda() -> tuple[TextLM, TextLM]:
    """A model with graphs and the same without, in float32."""
    lms = [TextLM(model("qwen3").model.cuda()) for _ in range(2)]
    return lms[0].prepare(), lms[1].prepare(graphs=False)


def kept(lm: TextLM) -> int:
    assert lm._graphs is not None
    return len(lm._graphs.graphs)


def placed(parents: Tensor = PARENTS, seed: int = 0) -> Draft:
    given = draft(seed, parents)
    return Draft(given.tokens.cuda(), given.parents.cuda())


@pytest.mark.gpu
@torch.inference_mode()
def test_cuda_graphs_give_the_states_of_plain_forwards(cuda: tuple[TextLM, TextLM], quiet: None) -> None:
    lm, eager = cuda
    states = opened(lm), opened(eager)
    for seed in range(4):
        out, expected = (
            lm.verify(states[0], placed(seed=seed), (1, -1)),
            eager.verify(states[1], placed(seed=seed), (1, -1)),
        )
        torch.testing.assert_close(out.hidden, expected.hidden, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(out.top, expected.top, atol=1e-4, rtol=1e-4)
        path = torch.tensor([[0, 2, 4, -1, -1], [0, 1, -1, -1, -1]]).cuda()
        for state in states:
            state.cache.commit(path, torch.tensor([3, 2]).cuda())
    assert kept(lm) == 1
    torch.testing.assert_close(
        states[0].cache.keys[..., :18, :], states[1].cache.keys[..., :18, :], atol=1e-4, rtol=1e-4
    )


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["vanilla", "lookup", "chain", "tree"])
def test_cuda_graphs_say_what_a_cpu_says(cuda: tuple[TextLM, TextLM], name: str, quiet: None) -> None:
    lm, eager = cuda
    said = start(model("qwen3").prepare(), PROMPTS, GREEDY, None, 30).complete()
    for it in (lm, eager):
        head = make_head("eagle", it).cuda().prepare() if name in ("chain", "tree") else None
        rule = {"vanilla": lambda _: None, "lookup": lambda _: Lookup(4), "chain": Chain, "tree": Tree}[name](head)
        assert start(it, PROMPTS, GREEDY, rule, 30).complete() == said
    assert 1 <= kept(lm) <= 2


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["lookup", "chain", "tree"])
def test_one_copy_a_step(cuda: tuple[TextLM, TextLM], name: str) -> None:
    lm, _ = cuda
    head = make_head("eagle", lm).cuda().prepare()
    rule = {"lookup": lambda _: Lookup(4), "chain": Chain, "tree": Tree}[name](head)
    run = start(lm, PROMPTS, GREEDY, rule, 60)
    for _ in range(3):
        run.advance()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(4):
                run.advance()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([w for w in caught if "synchronizing" in str(w.message)]) == 4


@pytest.mark.gpu
@torch.inference_mode()
def test_cuda_graphs_come_and_go_in_one_pool(cuda: tuple[TextLM, TextLM], quiet: None) -> None:
    lm, eager = cuda
    lm._graphs = GraphedForward(lm._follow, CudaRecorder(lm.device), keep=1)
    states = opened(lm), opened(eager)
    for m in (3, 5, 3, 4, 3):
        given = placed(PARENTS[:, :m], m)
        out, expected = lm.verify(states[0], given), eager.verify(states[1], given)
        torch.testing.assert_close(out.hidden, expected.hidden, atol=1e-4, rtol=1e-4)
        assert kept(lm) == 1
    for state in states:
        state.cache.grow(300)
    torch.testing.assert_close(
        lm.verify(states[0], placed()).hidden, eager.verify(states[1], placed()).hidden, atol=1e-4, rtol=1e-4
    )


@pytest.mark.gpu
def test_a_failed_recording_spoils_nothing() -> None:
    graphs = Graphs(CudaRecorder(torch.device("cuda")))
    x, stream = torch.arange(4.0, device="cuda"), torch.cuda.current_stream()
    buffer = torch.zeros(4, device="cuda")

    def looks(x: Tensor) -> tuple[Tensor]:
        return (x * float(x.sum()),)

    def adds(x: Tensor) -> tuple[Tensor]:
        return (buffer.add_(x),)

    with pytest.warns(RuntimeWarning, match="'looks' runs without a CUDA graph"):
        (out,) = graphs.run("'looks'", (buffer,), looks, (x,))
    assert out.tolist() == [0, 6, 12, 18]
    assert torch.cuda.current_stream() == stream
    with torch.inference_mode():
        graphs.run("'adds'", (buffer,), adds, (x,))
        buffer.zero_()
        for count in (1, 2):
            (out,) = graphs.run("'adds'", (buffer,), adds, (x * 2,))
            assert out.tolist() == [2 * count * n for n in range(4)]
    assert len(graphs) == 1

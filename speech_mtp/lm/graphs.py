"""Forwards of a fixed shape as CUDA graphs: recorded once, then replayed.

A drafted step is hundreds of small kernels, which a GPU runs faster than Python can launch them; a graph launches all
of them at once. It runs on the very addresses that it was recorded on, and nothing of it depends on the host any more.
So inputs are copied into tensors of the graph's own, results are copied out of it, and buffers that are written in
place are part of its key, by address. Whatever cannot be recorded runs as it always did.
"""

from __future__ import annotations

import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from speech_mtp.nn.kv_cache import KVCache
from speech_mtp.types import LMOutput

Tensors = tuple[Tensor, ...]
Replay = Callable[[], None]

KEEP = 16
"""Graphs that are kept. A run needs one for every size of draft and every length that attention is rounded up to."""

MOST_NODES = 64
"""Larger drafts are not recorded: their kernels are long enough to hide their launches."""

WARM_UPS = 2


class Recorder(Protocol):
    """Records what functions do to tensors."""

    def record(self, run: Callable[[], Tensors]) -> tuple[Replay, Tensors]:
        """How to do the same again, to and from the same memory, and the results, which every replay overwrites. The
        first replay must come before they are read. Raises whatever went wrong."""


class CudaRecorder:
    """Records CUDA graphs on ``device``. They share one pool of memory, so only one may run at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: torch.cuda.Stream | None = None
        self._alive: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def record(self, run: Callable[[], Tensors]) -> tuple[Replay, Tensors]:
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.device(self.device):
            try:
                self._stream = side = self._stream or torch.cuda.Stream()
                side.wait_stream(current)
                with torch.cuda.stream(side):  # libraries set themselves up, which must not be recorded
                    for _ in range(WARM_UPS):
                        run()
                current.wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                # "thread_local": what other threads do on the GPU meanwhile is theirs.
                with torch.cuda.graph(graph, self._pool(), side, capture_error_mode="thread_local"):
                    results = run()
            except BaseException:
                torch.cuda.set_stream(current)  # torch leaves the stream as it is when a recording fails at its end
                self._stream = None
                self._alive = weakref.WeakSet()  # a pool that a recording failed in is not used again
                raise
        self._alive.add(graph)
        return graph.replay, results

    def _pool(self) -> Any:
        """The pool of the graphs that live; a pool whose graphs have all gone must not be used again."""
        return next((graph.pool() for graph in self._alive), None) or torch.cuda.graph_pool_handle()


@dataclass
class _Graph:
    """``owner`` is alive as long as the buffers that the graph was last replayed on."""

    inputs: Tensors
    results: Tensors
    replay: Replay
    owner: weakref.ref[Tensor]


class Graphs:
    """Functions of tensors by what they do, recorded at the first call and replayed at all others.

    At most ``keep`` graphs are kept, those used last; what was recorded on buffers that are gone goes first.
    """

    def __init__(self, recorder: Recorder, keep: int = KEEP) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}; at least one graph must be kept.")
        self.recorder, self.keep = recorder, keep
        self._kept: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._refused: set[Hashable] = set()

    def __len__(self) -> int:
        return len(self._kept)

    @torch.inference_mode()
    def run(self, what: Hashable, buffers: Tensors, function: Callable[..., Tensors], inputs: Tensors) -> Tensors:
        """``function(*inputs)``, whose results are copies and stay as they are.

        ``what`` says all that the function depends on besides ``inputs``, whose shapes belong to it, and ``buffers``,
        which it may read and write in place. If it cannot be recorded it is called as it is, now and whenever ``what``
        comes again; a RuntimeWarning says why, once.
        """
        if what in self._refused:
            return function(*inputs)
        key = (what, *((buffer.data_ptr(), buffer.shape) for buffer in buffers))
        graph = self._kept.get(key)
        if graph is None:
            graph = self._record(what, buffers[0], function, inputs)
            if graph is None:
                return function(*inputs)
            self._kept[key] = graph
        else:
            for own, new in zip(graph.inputs, inputs, strict=True):
                own.copy_(new)
            # At the same addresses there may be the buffers of a later run: allocators give freed memory again.
            graph.owner = weakref.ref(buffers[0])
        self._kept.move_to_end(key)
        graph.replay()
        return tuple(result.clone() for result in graph.results)

    def _record(
        self, what: Hashable, owner: Tensor, function: Callable[..., Tensors], inputs: Tensors
    ) -> _Graph | None:
        for key in [key for key, graph in self._kept.items() if graph.owner() is None]:
            del self._kept[key]
        while len(self._kept) >= self.keep:
            self._kept.popitem(last=False)
        own = tuple(x.clone() for x in inputs)
        try:
            replay, results = self.recorder.record(lambda: function(*own))
        except Exception as error:
            self._refused.add(what)
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            warnings.warn(
                f"{what} runs without a CUDA graph, which could not be recorded: {reason}", RuntimeWarning, stacklevel=4
            )
            return None
        return _Graph(own, results, replay, weakref.ref(owner))


Forward = Callable[[KVCache, Tensor, Tensor, tuple[int, ...], int], LMOutput]
"""``(cache, tokens [B, M], parents [B, M], taps, seen)``: a trunk's forward of a draft behind what ``cache`` holds, in
which attention reads the first ``seen`` entries. A function of its arguments alone, with no copies to the host."""


class GraphedForward:
    """``forward`` by a graph for every number of rows and nodes, taps, entries seen, and cache."""

    def __init__(self, forward: Forward, recorder: Recorder, keep: int = KEEP, most_nodes: int = MOST_NODES) -> None:
        self.forward, self.most_nodes = forward, most_nodes
        self.graphs = Graphs(recorder, keep)

    def takes(self, tokens: Tensor) -> bool:
        """Whether ``tokens [B, M]`` are few enough."""
        return tokens.shape[1] <= self.most_nodes

    def __call__(self, cache: KVCache, tokens: Tensor, parents: Tensor, taps: tuple[int, ...], seen: int) -> LMOutput:
        """As ``forward``. ``cache`` must have room; the states are copies, which no later call overwrites."""
        keys, values = cache.keys, cache.values

        def run(tokens: Tensor, parents: Tensor, lengths: Tensor) -> Tensors:
            # A new view of the same buffers every time: a cache remembers where it writes, which must be recorded.
            out = self.forward(KVCache(keys, values, lengths), tokens, parents, taps, seen)
            assert out.final is not None, "a trunk gives its final states"
            return out.hidden, out.final

        rows, nodes = tokens.shape
        what = f"A draft of {nodes} nodes in {rows} rows (layers {taps}, {seen} entries)"
        hidden, final = self.graphs.run(what, (keys, values), run, (tokens, parents, cache.lengths))
        return LMOutput(hidden, final=final)

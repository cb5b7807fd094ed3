"""What teachers share that are ONNX models of Kokoro's family: inner values as outputs, and where phonemes end."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from speech_mtp import plugins

DURATION_S = 0.025
"""Seconds that one step of a duration takes at the model's own pace."""


def session(model: bytes, *inner: str) -> Any:
    """A session of ``model`` on one thread, the values ``inner`` its last outputs."""
    onnxruntime = plugins.require("onnxruntime", "teachers")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    for name in inner:
        model = with_output(model, name)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def with_output(model: bytes, name: str) -> bytes:
    """The ONNX ``model`` with its inner value ``name`` as one more output.

    Protobuf merges messages that follow each other: a model that holds nothing but ``graph { output { name } }`` is
    appended (fields 7, 12 and 1).
    """
    message = name.encode()
    for field in (1, 12, 7):
        assert len(message) < 128, name
        message = bytes([field << 3 | 2, len(message)]) + message
    return model + message


def ends_of(phonemes: str, known: Any, durations: NDArray[np.float32]) -> NDArray[np.float64]:
    """Where each character of ``phonemes`` ends, in steps of :data:`DURATION_S`. ``durations [N + 2]`` are those of the
    N characters that the model has ``known``, between the silence before and after them: the first belongs to the first
    character, the second to the last one. Characters that the model leaves out take no time."""
    taken = iter(durations[1:-1])
    each = np.array([next(taken) if char in known else 0.0 for char in phonemes], np.float64)
    if len(each):
        each[0] += durations[0]
        each[-1] += durations[-1]
    return each.cumsum()

"""How the work of a function grows with its input."""

import time
from collections.abc import Callable


def assert_linear(function: Callable[[str], object], text: str, *, tries: int = 8) -> None:
    """Assert that ``text`` takes at most 8 times as long as a quarter of it (4 if linear, 16 if quadratic), and less
    than 20 s of processor time.

    The least time of each counts, of three tries or more in turn, so that a busy machine does not decide.
    """
    quarter = text[: len(text) // 4] + text[-2:]
    assert len(quarter) > 1000, "the text is too short to tell"
    least = {text: float("inf"), quarter: float("inf")}
    for number in range(tries):
        for part in least:
            start = time.thread_time()
            function(part)
            least[part] = min(least[part], time.thread_time() - start)
        if number >= 2 and least[text] < 8 * least[quarter]:
            assert least[text] < 20
            return
    raise AssertionError(f"{len(text)} characters: {least[text]:.3f} s, a quarter of them: {least[quarter]:.3f} s")

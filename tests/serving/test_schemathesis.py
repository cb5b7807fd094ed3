"""Requests that schemathesis makes of our own OpenAPI schema: no 5xx but for what is not implemented, errors in
OpenAI's shape, answers as the schema says. That a request may be refused though it fits the schema is fine: not every
sentence can be spoken, and random bytes are no recording."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import positive_data_acceptance

from speech_mtp.serving.settings import Settings
from tests.serving.chatting import chatting
from tests.serving.hearing import FakeRecogniser
from tests.serving.running import TEXT, Running
from tests.serving.test_speech import alike, spoken

pytestmark = pytest.mark.slow
EXAMPLES = 30


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    own = Settings(voices_dir=tmp_path_factory.mktemp("voices"), docs=True)
    with chatting(own, recogniser=FakeRecogniser("Hello there!")) as running:
        yield running


@pytest.mark.parametrize("mode", GenerationMode)
def test_the_schema_is_kept(server: Running, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    statuses: list[int] = []
    for found in schema.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.POSITIVE or operation.body or operation.query:  # any text is a fine path
            statuses += _tried(operation, mode)
    assert statuses.count(400) > 50
    assert mode is GenerationMode.NEGATIVE or statuses.count(200) > 20
    good = server.post(input=TEXT, voice="low", response_format="pcm")
    assert alike(good.content, spoken()), "it serves on"
    assert not server.service.ears.busy
    assert not server.service.voice_maker.busy


def _tried(operation: Any, mode: GenerationMode) -> list[int]:
    statuses: list[int] = []

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def keeps(case: Any) -> None:
        answer = case.call()
        statuses.append(answer.status_code)
        assert answer.status_code < 500 or answer.status_code == 501, answer.text
        case.validate_response(answer, excluded_checks=[not_a_server_error, positive_data_acceptance])
        if answer.status_code >= 400:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

    keeps()
    return statuses

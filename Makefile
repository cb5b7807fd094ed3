# Every target works on a fresh machine: uv installs what it needs into .venv.
UV := .uv/bin/uv
RUN := $(UV) run --extra offline --extra train --extra eval --extra serve --extra demo --extra dev

.PHONY: check test fmt gate pins test-newest

check: $(UV)
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(RUN) lint-imports

test: $(UV)
	$(RUN) pytest

fmt: $(UV)
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

# The newest versions of everything, written down as the ones that were tested together.
pins: $(UV)
	python3 -m tests.pins

# The tests with the newest versions; it only reports.
test-newest: $(UV)
	python3 -m tests.pins build/newest
	-cd build/newest && $(abspath $(UV)) run --extra offline --extra train --extra eval --extra serve --extra demo --extra dev pytest

gate: $(UV)
	$(RUN) python -m tests.gate

$(UV):
	python3 -m venv .uv
	.uv/bin/pip install -q uv

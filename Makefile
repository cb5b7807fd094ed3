# Every target works on a fresh machine: uv installs what it needs into .venv.
UV := .uv/bin/uv
RUN := $(UV) run --extra offline --extra train --extra eval --extra dev

.PHONY: check test fmt gate

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

gate: $(UV)
	$(RUN) python -m tests.gate

$(UV):
	python3 -m venv .uv
	.uv/bin/pip install -q uv

#!/usr/bin/env bash
# Corpus -> audio store -> codec in runs/codec/export. Stop it at any time; run it again to go on.
#   recipes/tokenizer/run.sh [cuda]
set -euo pipefail
cd "$(dirname "$0")/../.."
preset=recipes/tokenizer/config.yaml
[ "${1:-}" != cuda ] || preset=recipes/tokenizer/cuda.yaml
speech-mtp train recipes/tokenizer/store.yaml
speech-mtp train "$preset"
speech-mtp eval codec --corpus runs/store --codec runs/codec/export --json runs/codec/scores.json

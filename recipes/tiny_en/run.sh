#!/usr/bin/env bash
# Corpus -> codec -> codes -> alignment -> talker -> model in runs/tiny-en -> scores. Every stage resumes after a kill.
#   recipes/tiny_en/run.sh [cuda]
set -euo pipefail
cd "$(dirname "$0")/../.."
recipes/corpus/run.sh
recipes/tokenizer/run.sh "${1:-}"
speech-mtp train recipes/tiny_en/encode.yaml
speech-mtp train recipes/tiny_en/units.yaml
preset=recipes/tiny_en/config.yaml
[ "${1:-}" != cuda ] || preset=recipes/tiny_en/cuda.yaml
speech-mtp train "$preset"
speech-mtp train recipes/tiny_en/text_encoder.yaml
speech-mtp train recipes/tiny_en/package.yaml   # with our own reader of spelling: run.g2p=own run.text_encoder=runs/text_encoder/export
for voice in heart drew; do
  speech-mtp eval speech --model runs/tiny-en --voice "$voice" --sentences recipes/corpus/dev_sentences.txt --json "runs/tiny-en.$voice.json"
done

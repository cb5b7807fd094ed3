#!/usr/bin/env bash
# Speech of many voices -> codec 2, in runs/codec2_voices_critics/export, and its figures on sentences and voices that
# were held out. It begins with the packaged codec's weights, where they fit. Every stage resumes after a kill. Extras: offline,
# train, eval, teachers.
# A codec of recordings of one's own: store.yaml, then config.yaml, or cuda.yaml on a GPU.
set -euo pipefail
cd "$(dirname "$0")/../.."
recipes=(
    recipes/tokenizer/speak.yaml
    recipes/tokenizer/speak_kokoro.yaml
    recipes/tokenizer/aligned.yaml
    recipes/tokenizer/codec2.yaml
    recipes/tokenizer/codec2_frames.yaml
    recipes/tokenizer/aligned_voices.yaml
    recipes/tokenizer/codec2_voices.yaml
    recipes/tokenizer/codec2_voices_decoder.yaml
    recipes/tokenizer/codec2_voices_critics.yaml
    recipes/tokenizer/dev.yaml
    recipes/tokenizer/dev_voices.yaml
)
for recipe in "${recipes[@]}"; do speech-mtp train "$recipe"; done
codec=runs/codec2_voices_critics
for store in dev_told dev_voices; do
    speech-mtp eval codec --corpus "runs/$store" --codec "$codec/export" --json "$codec/$store.json"
done

#!/usr/bin/env bash
# Speech of many voices -> the codec of the shipped model, in runs/codec2_voices/export, and its figures on sentences and
# voices that were held out. Every stage resumes after a kill. After speech-mtp train recipes/corpus/many.yaml.
# A codec of recordings of one's own: store.yaml, then config.yaml, or cuda.yaml on a GPU.
set -euo pipefail
cd "$(dirname "$0")/../.."
for stage in speak speak_kokoro aligned codec2 codec2_frames aligned_voices codec2_voices dev dev_voices; do
    speech-mtp train "recipes/tokenizer/$stage.yaml"
done
for store in dev_told dev_voices; do
    speech-mtp eval codec --corpus "runs/$store" --codec runs/codec2_voices/export --json "runs/codec2_voices/$store.json"
done

#!/usr/bin/env bash
# Speech of many voices -> codec 2, in runs/codec2_voices_decoder/export, and its figures on sentences and voices that were
# held out. It begins with the packaged codec's weights, where they fit. Every stage resumes after a kill. Extras: offline,
# train, eval, teachers.
# A codec of recordings of one's own: store.yaml, then config.yaml, or cuda.yaml on a GPU.
set -euo pipefail
cd "$(dirname "$0")/../.."
for stage in speak speak_kokoro aligned codec2 codec2_frames aligned_voices codec2_voices codec2_voices_decoder \
    dev dev_voices; do
    speech-mtp train "recipes/tokenizer/$stage.yaml"
done
for store in dev_told dev_voices; do
    speech-mtp eval codec --corpus "runs/$store" --codec runs/codec2_voices_decoder/export \
        --json "runs/codec2_voices_decoder/$store.json"
done

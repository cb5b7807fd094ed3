#!/usr/bin/env bash
# Hundreds of hours of speech as codes, which take a thousandth of the room: each part is spoken, encoded and let go.
# What is done is left alone, a part that was cut off goes on. After speech-mtp train recipes/corpus/many.yaml.
#   recipes/tiny_en/hours.sh                          parts 0 to 11 of 24,000 utterances, about 25 hours each
#   PARTS="12 13" CODEC=runs/codec/export recipes/tiny_en/hours.sh
# Then name them all: run.codes=[runs/hours/codes00,runs/hours/codes01,...] in units.yaml, config.yaml and package.yaml.
set -euo pipefail
cd "$(dirname "$0")/../.."
out="${OUT:-runs/hours}" each="${EACH:-24000}"
for part in ${PARTS:-0 1 2 3 4 5 6 7 8 9 10 11}; do
    codes="$out/codes$(printf %02d "$part")" spoken="$out/spoken$(printf %02d "$part")"
    [ -f "$codes/codes.safetensors" ] && continue
    speech-mtp train recipes/tiny_en/speak.yaml "run.out=$spoken" "run.utterances=$each" \
        "run.first=$((part * each))" "run.workers=${WORKERS:-0}"
    speech-mtp train recipes/tiny_en/encode.yaml "run.data=[$spoken]" "run.codec=${CODEC:-runs/codec/export}" \
        "run.aligner=${ALIGNER:-tiny-en}" "run.out=$codes"
    rm -r "$spoken"
done

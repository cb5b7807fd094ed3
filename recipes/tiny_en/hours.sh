#!/usr/bin/env bash
# Hundreds of hours of speech as codes, which take little room: each part is spoken, encoded and let go.
# What is done is left alone, a part that was cut off goes on. After speech-mtp train recipes/corpus/many.yaml, whose
# sentences must then stay as they are: which one an utterance says depends on how many there are.
#   recipes/tiny_en/hours.sh                          parts 0 to 11 of 24,000 utterances each
#   PARTS="12 13" CODEC=runs/codec/export recipes/tiny_en/hours.sh
# Then name them all: run.codes=[runs/hours/codes00,runs/hours/codes01,...] in units.yaml, config.yaml and package.yaml.
set -euo pipefail
cd "$(dirname "$0")/../.."
out="${OUT:-runs/hours}" each="${EACH:-24000}"
mkdir -p "$out"
codec="${CODEC:-runs/codec/export}"
made_of="$each utterances a part, sentences $(sha256sum < "${SENTENCES:-runs/sentences/sentences.txt}")
codec $([ -f "$codec/model.safetensors" ] && sha256sum < "$codec/model.safetensors" || echo "$codec")"
if [ -f "$out/made_of" ] && [ "$(cat "$out/made_of")" != "$made_of" ]; then
    echo "$out was made of other sentences, with another codec, or in parts of another size; restore those, or give" \
        "another folder (OUT)." >&2
    exit 1
fi
echo "$made_of" > "$out/made_of"
for part in ${PARTS:-0 1 2 3 4 5 6 7 8 9 10 11}; do
    part=$((10#$part))
    codes="$out/codes$(printf %02d "$part")" spoken="$out/spoken$(printf %02d "$part")"
    if [ ! -f "$codes/made.json" ]; then
        speech-mtp train recipes/tiny_en/speak.yaml "run.out=$spoken" "run.utterances=$each" \
            "run.first=$((part * each))" "run.workers=${WORKERS:-0}" \
            "run.texts=[${SENTENCES:-runs/sentences/sentences.txt}]"
        speech-mtp train recipes/tiny_en/encode.yaml "run.data=[$spoken]" "run.codec=$codec" \
            "run.aligner=${ALIGNER:-tiny-en}" "run.out=$codes"
    fi
    rm -rf "$spoken"
done

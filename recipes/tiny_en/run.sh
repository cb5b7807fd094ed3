#!/usr/bin/env bash
# Sentences -> codec 2 -> speech as codes -> talker -> model in runs/tiny-en -> scores. Every stage resumes after a kill;
# what is done is left alone. Days of two cores. Extras: offline, train, eval, teachers.
#   recipes/tiny_en/run.sh                       48 hours of the two voices, and what the codec was trained on
#   PARTS="0 1 2 3" recipes/tiny_en/run.sh recipes/tiny_en/cuda.yaml     twice as much, the talker on a GPU
#   SENTENCES=runs/sentences/sentences.txt recipes/tiny_en/run.sh        after speech-mtp train recipes/corpus/many.yaml
set -euo pipefail
cd "$(dirname "$0")/../.."
preset="${1:-recipes/tiny_en/config.yaml}"
[ -f "$preset" ] || { echo "There is no recipe $preset; name one, as recipes/tiny_en/cuda.yaml." >&2 && exit 1; }
export OUT="${OUT:-runs/hours}" PARTS="${PARTS:-0 1}" SENTENCES="${SENTENCES:-recipes/corpus/sentences.txt}"
export CODEC=runs/codec2_voices/export # its codes; what is trained after it is the decoder alone
recipes/tokenizer/run.sh
recipes/tiny_en/hours.sh
codes=()
for part in $PARTS; do codes+=("$OUT/codes$(printf %02d "$((10#$part))")"); done
for voices in spoken spoken_kokoro; do # strangers: the talker learns to say its text in any voice
    speech-mtp train recipes/tiny_en/encode.yaml "run.data=[runs/$voices]" "run.codec=$CODEC" "run.out=$OUT/codes_$voices"
    codes+=("$OUT/codes_$voices")
done
every="[$(IFS=,; echo "${codes[*]}")]"
speech-mtp train recipes/tiny_en/units.yaml "run.codes=$every"
speech-mtp train "$preset" "run.codes=$every"
speech-mtp train recipes/tiny_en/heads.yaml "run.codes=$every" run.lm=runs/talker/export
# Write a card of your own: run.card=FILE.
speech-mtp train recipes/tiny_en/package.yaml "run.codes=$every" run.codec=runs/codec2_voices_critics/export
for voice in heart drew; do
    speech-mtp eval speech --model runs/tiny-en --voice "$voice" --sentences recipes/corpus/dev_sentences.txt \
        --sentences recipes/corpus/dev_patterns.txt --opinions 120 --json "runs/tiny-en.$voice.json"
done

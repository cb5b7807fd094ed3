#!/usr/bin/env bash
# Sentences -> codec -> speech as codes -> talker -> model in runs/tiny-en -> scores. Every stage resumes after a kill; what
# is done is left alone. Prompts of one's own, runs/text_mtp/prompts_more.jsonl, come first (recipes/corpus/many.yaml).
#   recipes/tiny_en/run.sh                                  48 hours of speech
#   PARTS="0 1 2 3" recipes/tiny_en/run.sh recipes/tiny_en/cuda.yaml     twice as much, on a GPU
set -euo pipefail
cd "$(dirname "$0")/../.."
speech-mtp train recipes/text_mtp/cpu_answers.yaml
speech-mtp train recipes/corpus/many.yaml
recipes/tokenizer/run.sh
codec=runs/codec2_voices/export
CODEC=$codec PARTS="${PARTS:-0 1}" recipes/tiny_en/hours.sh
for voices in spoken spoken_kokoro; do # strangers make the talker say what it is told in any voice
    [ -f "runs/hours/codes_$voices/made.json" ] ||
        speech-mtp train recipes/tiny_en/encode.yaml "run.data=[runs/$voices]" "run.codec=$codec" "run.out=runs/hours/codes_$voices"
done
codes="[$(echo runs/hours/codes* | tr ' ' ,)]"
speech-mtp train recipes/tiny_en/units.yaml "run.codes=$codes"
speech-mtp train "${1:-recipes/tiny_en/config.yaml}" "run.codes=$codes"
speech-mtp train recipes/tiny_en/heads.yaml "run.codes=$codes" run.lm=runs/talker/export
speech-mtp train recipes/tiny_en/package.yaml "run.codes=$codes" "run.codec=$codec"
for voice in heart drew; do
    speech-mtp eval speech --model runs/tiny-en --voice "$voice" --sentences recipes/corpus/dev_sentences.txt \
        --sentences recipes/corpus/dev_patterns.txt --opinions 120 --json "runs/tiny-en.$voice.json"
done

#!/usr/bin/env bash
# One talker of a study, by name of what is done: trained, a draft head before it trained, packaged, both measured. What
# is done is left alone, what was cut off goes on.
#   talker.sh RUN CODES UNITS CODEC FRAMES_OF_A_GROUP SEED [key=value ...]
# Paths are from the root of the repository; key=value are changes of talker.yaml.
set -euo pipefail
[ $# -ge 6 ] || { echo "talker.sh needs RUN CODES UNITS CODEC FRAMES_OF_A_GROUP SEED; see its first lines." >&2 && exit 1; }
run="$1" codes="$2" units="$3" codec="$4" group="$5" seed="$6"
sentences="${SENTENCES:-recipes/corpus/dev_sentences.txt}" # words of all are judged, the sound of some
patterns="${MORE_SENTENCES-recipes/corpus/dev_patterns.txt}"
cd "$(dirname "$0")/../.."

recipe() { speech-mtp train "recipes/tokenizer_study/$1.yaml" "${@:2}"; }

advance=$((group * 2 < 4 ? 4 : group * 2)) stall=$((30 / group))
[ -d "$run/talker/export" ] || recipe talker "run.out=$run/talker" "run.codes=[$codes]" "run.units=$units" \
    "run.model.frames_per_group=$group" "run.loop.seed=$seed" "run.task.seed=$seed" \
    "run.model.layout={name: aligned, max_advance: $advance, ahead: 10, max_stall: $stall}" "${@:7}"
[ -d "$run/heads/export" ] || recipe heads "run.lm=$run/talker/export" "run.codes=[$codes]" "run.units=$units" \
    "run.out=$run/heads" "run.loop.seed=$seed"
[ -d "$run/model" ] || speech-mtp train recipes/tiny_en/package.yaml "run.out=$run/model" \
    "run.lm=$run/talker/export" "run.codes=[$codes]" "run.codec=$codec" run.storage=fp32 \
    run.card=recipes/tiny_en/CARD.md
[ -f "$run/drafts.json" ] || speech-mtp eval drafts --model "$run/model" --sentences "$sentences" --limit 60 \
    --decoded 12 --heads "$run/heads/export/eagle3,$run/heads/export/medusa" --json "$run/drafts.json"
[ -f "$run/speech.json" ] || speech-mtp eval speech --model "$run/model" --sentences "$sentences" \
    ${patterns:+--sentences "$patterns"} --opinions "${OPINIONS:-120}" --json "$run/speech.json"

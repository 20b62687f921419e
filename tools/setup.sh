#!/usr/bin/env bash
# Makes the virtual environment tools/venv (or $DUS_VENV) with espnet_dus and everything
# it needs, in the tested versions of tools/constraints.txt. Safe to call at any time: it
# does nothing when the environment is up to date, and resumes after an interruption.
# $PYTHON names the Python 3.12 or 3.13 to use; without it, one is looked for.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${DUS_VENV:-${root}/tools/venv}
stamp=${venv}/.espnet_dus_setup

log() {
    echo "setup.sh: $*" >&2
}

# What the environment depends on. An environment holds absolute paths, so a moved one
# is not up to date.
wanted_stamp() {
    echo "${root} ${venv}"
    cat "${root}/setup.py" "${root}/tools/constraints.txt" | cksum
}

up_to_date() {
    [ -e "${stamp}" ] && [ "$(<"${stamp}")" = "$(wanted_stamp)" ]
}

# Every Python worth a look, one path a line. A name on PATH may be a pyenv shim that
# has nothing behind it, so all of them are tried, not only the first.
candidates() {
    if [ -n "${PYTHON:-}" ]; then
        type -aP "${PYTHON}" || echo "${PYTHON}"
    fi
    type -aP python3.12 python3.13 python3 || true
    for candidate in "${HOME:-}"/.pyenv/versions/*/bin/python; do
        [ ! -e "${candidate}" ] || echo "${candidate}"
    done
    if command -v uv > /dev/null; then
        uv python find '>=3.12,<3.14' 2> /dev/null || true
    fi
}

# Prints the version, fails if it is not one we can use.
probe() {
    "$1" - 2>&1 << 'EOF'
import sys

print("%d.%d.%d" % sys.version_info[:3])
if not (3, 12) <= sys.version_info[:2] < (3, 14):
    sys.exit(1)
try:
    import ensurepip
    import venv
except ImportError as error:
    print("but %s (on Debian: apt install python3-venv)" % error)
    sys.exit(1)
EOF
}

# Whether there is an environment, with pip, at the place that it was made for: the
# scripts of a moved one lead to where it was.
usable() {
    probe "${venv}/bin/python" > /dev/null \
        && "${venv}/bin/python" -m pip --version > /dev/null 2>&1 \
        && [ "$(. "${venv}/bin/activate" && echo "${VIRTUAL_ENV}")" -ef "${venv}" ]
}

# Sets $python.
find_python() {
    local seen='' answer
    while IFS= read -r python; do
        # The environment that is about to be made cannot make itself.
        [[ ${python} != "${venv}"/* ]] || continue
        if answer=$(probe "${python}"); then
            log "${python} is Python ${answer}"
            return
        fi
        answer=$(tr -s '\n' ' ' <<< "${answer}")
        seen+="  ${python}: ${answer:-does not run}"$'\n'
    done < <(candidates | awk '!seen[$0]++')
    log "error: no Python 3.12 or 3.13 found. Looked at \$PYTHON, at python3.12," \
        "python3.13 and python3 on PATH, at ~/.pyenv/versions and at uv's. Found:"
    echo "${seen:-  nothing}" >&2
    log "install one of them, or name it: PYTHON=/path/to/python3.12 tools/setup.sh"
    return 1
}

if up_to_date; then
    log "${venv} is up to date"
    exit 0
fi

mkdir -p "$(dirname "${venv}")"
exec 9> "${venv}.lock"
if ! flock -n 9; then
    log "another setup.sh is at work on ${venv}; waiting for it"
    flock 9
    if up_to_date; then
        exit 0
    fi
fi

rm -f "${stamp}"
if usable; then
    log "going on with ${venv}"
else
    find_python
    log "making the virtual environment ${venv}"
    "${python}" -m venv --clear "${venv}"
fi

log "installing espnet_dus and what it needs (about 7.3 GB, some minutes)"
install=(install --constraint "${root}/tools/constraints.txt" --editable "${root}[test]")
"${venv}/bin/python" -m pip install --quiet --constraint "${root}/tools/constraints.txt" \
    uv 9>&-
# Compiled now, by all cores, the modules need not be compiled by every first command.
if ! "${venv}/bin/uv" pip "${install[@]}" --compile-bytecode \
    --python "${venv}/bin/python" 9>&-; then
    log "uv failed; installing with pip, which also follows pip.conf"
    "${venv}/bin/python" -m pip "${install[@]}" 9>&-
fi

# A package that an earlier interruption left half-copied shows here.
log "checking that the packages load"
if ! "${venv}/bin/python" -c 'import espnet2, peft, torchaudio, transformers' 9>&-; then
    log "error: ${venv} is damaged. Delete it and run tools/setup.sh again"
    exit 1
fi

wanted_stamp > "${stamp}.new"
mv "${stamp}.new" "${stamp}"
log "${venv} is ready"

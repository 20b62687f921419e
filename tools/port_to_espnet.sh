#!/usr/bin/env bash
# Links the recipes, egs2/*/dus1 and the template they share, into an ESPnet checkout:
#
#     tools/port_to_espnet.sh /path/to/espnet
#
# They then run there, as egs2/an4/dus1/run.sh, and use the package, environment and
# disk space (data, dump, exp) of this checkout, to which the links lead. Safe to repeat;
# existing files there are not replaced.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

die() {
    echo "port_to_espnet.sh: error: $*" >&2
    exit 1
}

[ $# -eq 1 ] || die "expected one argument, the path of an ESPnet checkout; got $#"
[ -d "$1" ] || die "$1: no such directory"
espnet=$(cd "$1" && pwd -P)
for part in espnet2 egs2/TEMPLATE/asr1; do
    [ -d "${espnet}/${part}" ] || die "${espnet} is not an ESPnet checkout: ${part} is missing"
done

# All are checked before the first link is made.
recipes=("${root}"/egs2/*/dus1)
for recipe in "${recipes[@]}"; do
    link=${espnet}/${recipe#"${root}"/}
    if [ -e "${link}" ] && ! [ "${link}" -ef "${recipe}" ]; then
        die "${link} exists and is not a link to ${recipe}: move it away"
    fi
done

for recipe in "${recipes[@]}"; do
    link=${espnet}/${recipe#"${root}"/}
    mkdir -p "$(dirname "${link}")"
    ln -sfn "${recipe}" "${link}"  # -f: a dead link is renewed
    echo "${link} -> ${recipe}"
done

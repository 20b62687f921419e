# shellcheck shell=bash
# Sets the variables of the sourcing script from its command line, as Kaldi's script of
# this name does: "--some-option value" sets $some_option, which must have a default.
#     nj=4
#     help_message="..."
#     . utils/parse_options.sh
# Positional arguments must follow the options and are left in $@.

parse_options_error() {
    echo "${0##*/}: error: $* (--help lists the options)" >&2
    exit 1
}

while [ $# -gt 0 ] && [[ $1 == --* ]]; do
    if [ "$1" = --help ]; then
        echo "${help_message:-${0##*/}: no help is written}"
        exit 0
    fi
    option_name=${1#--}
    option_name=${option_name//-/_}
    # Lower case only: PATH and the like are not options.
    if ! [[ ${option_name} =~ ^[a-z][a-z0-9_]*$ ]] || [ -z "${!option_name+set}" ]; then
        parse_options_error "unknown option $1"
    fi
    if [ $# -lt 2 ]; then
        parse_options_error "option $1 needs a value"
    fi
    if [[ ${!option_name} =~ ^(true|false)$ ]] && ! [[ $2 =~ ^(true|false)$ ]]; then
        parse_options_error "option $1: expected true or false, not '$2'"
    fi
    printf -v "${option_name}" '%s' "$2"
    shift 2
done
unset option_name

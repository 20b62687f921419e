#!/usr/bin/env python3
"""Transcribe a data set with a trained model (stage 12)."""

from espnet_dus.bin import channel, user_errors


def get_parser():
    """Build the command's parser; the options are those of ESPnet's asr_inference."""
    from espnet2.utils.types import str2triple_str, str_or_none

    from espnet_dus.config import ConfigParser
    from espnet_dus.search.config import add_options

    parser = ConfigParser(description=__doc__)
    parser.add_argument("--log_level", default="INFO", help="verbosity")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--ngpu", type=int, default=0, help="0 or 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--data_path_and_name_and_type",
        type=str2triple_str,
        required=True,
        action="append",
        help="such as dump/raw/test/wav.scp,speech,sound",
    )
    parser.add_argument("--key_file", type=str_or_none, help="utterances to transcribe")
    parser.add_argument("--asr_train_config", required=True, help="config.yaml")
    parser.add_argument("--asr_model_file", required=True, help="a checkpoint")
    parser.add_argument(
        "--batch_size",
        type=float,
        default=1.0,
        help="seconds of speech in a batch; a longer utterance is decoded alone",
    )
    parser.add_argument(
        "--segment_seconds",
        type=float,
        default=0.0,
        help="cut long recordings at pauses into segments of at most this many "
        "seconds; 0: decode each utterance as it is",
    )
    parser.add_argument(
        "--channel",
        type=channel,
        default="mean",
        help="channel to take of multi-channel audio: an index from 0, or mean",
    )
    parser.add_argument(
        "--dtype",
        type=str_or_none,
        help="precision of the base LM: float32 or bfloat16; default: as in training",
    )
    add_options(parser.add_argument_group("Search"))
    return parser


@user_errors
def main(cmd=None):
    """Run the command."""
    import logging
    from dataclasses import fields

    args = get_parser().parse_args(cmd)
    logging.getLogger().setLevel(args.log_level)
    from espnet2.torch_utils.set_all_random_seed import set_all_random_seed

    from espnet_dus.search.config import SearchConfig
    from espnet_dus.search.decode import decode
    from espnet_dus.search.speech2text import Speech2Text

    set_all_random_seed(args.seed)
    speech2text = Speech2Text(
        args.asr_train_config,
        args.asr_model_file,
        "cuda" if args.ngpu else "cpu",
        args.dtype,
        {option.name: getattr(args, option.name) for option in fields(SearchConfig)},
    )
    decode(
        speech2text,
        args.data_path_and_name_and_type,
        args.key_file,
        args.output_dir,
        args.batch_size,
        args.segment_seconds,
        args.channel,
    )


if __name__ == "__main__":
    main()

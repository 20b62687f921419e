#!/usr/bin/env python3
"""Write the base LM's token list and make the CTC units (stage 5)."""

import argparse

from espnet_dus.bin import user_errors


def get_parser() -> argparse.ArgumentParser:
    """Build the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--base_lm", required=True, help="base LM directory")
    parser.add_argument("--text", required=True, help="transcripts to train on")
    parser.add_argument("--out_dir", required=True, help="gets tokens.txt and ctc/")
    parser.add_argument("--ctc_token_type", default="llm", help="llm, bpe or char")
    parser.add_argument("--nbpe", type=int, default=500, help="units of type bpe")
    parser.add_argument("--cleaner", default="none", help="ESPnet's text cleaner")
    return parser


@user_errors
def main(cmd=None):
    """Run the command."""
    args = get_parser().parse_args(cmd)
    from pathlib import Path

    from espnet2.text.cleaner import TextCleaner
    from transformers import AutoTokenizer

    from espnet_dus.data.ctc_units import CTCUnits
    from espnet_dus.io import read_scp, write_text

    tokenizer = AutoTokenizer.from_pretrained(args.base_lm, local_files_only=True)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    out_dir = Path(args.out_dir)
    write_text(out_dir / "tokens.txt", "".join(f"{token}\n" for token in tokens))
    clean = TextCleaner(None if args.cleaner == "none" else args.cleaner)
    texts = [clean(text) for text in read_scp(args.text).values()]
    CTCUnits.make(out_dir / "ctc", args.ctc_token_type, texts, tokenizer, args.nbpe)


if __name__ == "__main__":
    main()

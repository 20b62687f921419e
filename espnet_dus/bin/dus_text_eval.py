#!/usr/bin/env python3
"""Evaluate a base LM, and a model adapted from it, on text."""

import argparse

from espnet_dus.bin import user_errors


def get_parser() -> argparse.ArgumentParser:
    """Get the argument parser of `dus_text_eval`."""
    parser = argparse.ArgumentParser(
        description="Perplexity and text tasks of a base LM and, with "
        "--asr_train_config and --asr_model_file, of the model adapted from it: "
        "results.json and results.md in OUT_DIR. An interrupted evaluation goes on "
        "where it was.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--base_lm", required=True, help="base LM directory")
    parser.add_argument("--out_dir", required=True, help="where the results go")
    parser.add_argument("--asr_train_config", help="config.yaml of the training")
    parser.add_argument("--asr_model_file", help="its checkpoint")
    parser.add_argument(
        "--perplexity_text", nargs="+", default=[], help="text files", metavar="FILE"
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=[],
        metavar="TASK",
        help="names of lm-evaluation-harness (hellaswag, arc_easy, ..., which it "
        "downloads) or of the local task files (local_lambada, ...)",
    )
    parser.add_argument("--data_dir", help="directory of the local tasks' data")
    parser.add_argument(
        "--limit",
        type=int,
        help="at most this many items of each task and windows of each text, taken at "
        "even distances",
    )
    parser.add_argument(
        "--window", type=int, default=1024, help="context of the perplexity in tokens"
    )
    parser.add_argument(
        "--batch_size", type=int, default=16, help="requests in a batch"
    )
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16"),
        help="precision of both models; bfloat16 is faster where the hardware has it",
    )
    parser.add_argument(
        "--cache_dir", help="where results of the base LM are kept for other models"
    )
    parser.add_argument(
        "--even_if_identical",
        action="store_true",
        help="evaluate the adapted model although its logits on text are the base LM's "
        "bit for bit",
    )
    parser.add_argument(
        "--check_only",
        action="store_true",
        help="only see whether the texts and the items of the tasks are there",
    )
    return parser


@user_errors
def main(cmd=None):
    """Run `dus_text_eval`."""
    args = get_parser().parse_args(cmd)
    from espnet_dus.evaluation.text.comparison import evaluate, read_parts
    from espnet_dus.evaluation.text.report import markdown

    if args.check_only:
        read_parts(args.perplexity_text, args.tasks, args.data_dir)
        return
    results = evaluate(
        base_lm=args.base_lm,
        out_dir=args.out_dir,
        config=args.asr_train_config,
        model_file=args.asr_model_file,
        texts=args.perplexity_text,
        tasks=args.tasks,
        data_dir=args.data_dir,
        limit=args.limit,
        window=args.window,
        batch_size=args.batch_size,
        dtype=args.dtype,
        cache_dir=args.cache_dir,
        even_if_identical=args.even_if_identical,
    )
    print(markdown(results))


if __name__ == "__main__":
    main()

"""Commands that score and compare (stages 8, 9 and 13)."""

from espnet_dus.bin import Commands, call


def add_commands(commands: Commands) -> None:
    """Add the commands of this wing."""
    commands.add(
        "inference",
        _inference,
        "Transcribe a data set with a trained model (stage 12).",
        add_help=False,
    )

    command = commands.add(
        "score", _score, "Score decoded text: WER and CER in ESPnet's layout."
    )
    command.add_argument(
        "--ref",
        required=True,
        help="`text` of the decoded data directory, with `utt2spk` beside it",
    )
    command.add_argument(
        "--hyp_dir",
        required=True,
        help="decoding directory with the file `text`; "
        "score_{wer,cer}/{ref.trn,hyp.trn,result.txt} are written there",
    )

    command = commands.add(
        "cross_entropy",
        call("espnet_dus.evaluation.cross_entropy:cross_entropy"),
        "Measure the cross-entropy of a data set's transcripts, given its speech.",
    )
    command.add_argument(
        "--data_path_and_name_and_type",
        type=lambda triple: tuple(triple.split(",")),
        required=True,
        action="append",
        metavar="TRIPLE",
        help="first dump/raw/test/text,text,text, then "
        "dump/raw/test/wav.scp,speech,sound",
    )
    command.add_argument("--asr_train_config", required=True, help="config.yaml")
    command.add_argument("--asr_model_file", required=True, help="a checkpoint")
    command.add_argument(
        "--hyp_dir",
        required=True,
        help="decoding directory; score_ce/result.json is written there",
    )
    command.add_argument("--device", default="cpu", help="cpu or cuda")

    command = commands.add(
        "text_eval",
        _text_eval,
        "Evaluate a base LM, and a model adapted from it, on text: perplexity and "
        "tasks. An interrupted evaluation resumes.",
    )
    command.add_argument("--base_lm", required=True, help="base LM directory")
    command.add_argument(
        "--out_dir", required=True, help="for results.json and results.md"
    )
    command.add_argument(
        "--asr_train_config", dest="config", help="config.yaml of the training"
    )
    command.add_argument(
        "--asr_model_file", dest="model_file", help="checkpoint of the training"
    )
    command.add_argument(
        "--perplexity_text",
        dest="texts",
        nargs="+",
        default=[],
        help="text files",
        metavar="FILE",
    )
    command.add_argument(
        "--tasks",
        nargs="+",
        default=[],
        metavar="TASK",
        help="names of lm-evaluation-harness (hellaswag, arc_easy, ..., which it "
        "downloads), of the local task files (local_lambada, ...), or of the paper's "
        "suite: paper, or local_paper (all but MMLU, with local data)",
    )
    command.add_argument("--data_dir", help="directory of the local tasks' data")
    command.add_argument(
        "--limit",
        type=int,
        help="number of items of each task and windows of each text, at even distances",
    )
    command.add_argument(
        "--window", type=int, default=1024, help="context of the perplexity in tokens"
    )
    command.add_argument(
        "--batch_size", type=int, default=16, help="requests in a batch"
    )
    command.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16"),
        help="precision of both models; bfloat16 is faster where the hardware has it",
    )
    command.add_argument(
        "--cache_dir", help="where results of the base LM are kept for other models"
    )
    command.add_argument(
        "--even_if_identical",
        action="store_true",
        help="evaluate the adapted model although its logits on text equal the base "
        "LM's, bit for bit",
    )
    command.add_argument(
        "--check_only",
        action="store_true",
        help="only check that the texts and the items of the tasks exist",
    )

    command = commands.add(
        "results",
        call("espnet_dus.evaluation.report:write_results", show=True),
        "Write RESULTS.md of an experiment in ESPnet's format, and print it.",
    )
    command.add_argument("--exp_dir", required=True, help="experiment directory")

    command = commands.add(
        "compare",
        call("espnet_dus.evaluation.comparison:compare", show=True),
        "Compare arms of one base LM: one table, and one picture of WER against text "
        "degradation.",
    )
    command.add_argument(
        "--exp_dir",
        dest="exp_dirs",
        nargs="+",
        required=True,
        metavar="DIR",
        help="experiment directories, scored (stage 13)",
    )
    command.add_argument(
        "--test_set", default="test", help="test set whose WER is compared"
    )
    command.add_argument(
        "--inference_tag",
        help="decoding that is compared, where an experiment has several",
    )
    command.add_argument(
        "--reference",
        help="arm that the others' cross-entropy is compared with (default: the first)",
    )
    command.add_argument(
        "--out_dir", required=True, help="for comparison.{md,json,png} and curves.png"
    )

    command = commands.add(
        "best_learning_rate",
        call("espnet_dus.evaluation.learning_rate:best_learning_rate", show=True),
        "Print the learning rate of the best of several short trainings of one arm.",
    )
    command.add_argument(
        "--exp_dir",
        dest="exp_dirs",
        nargs="+",
        required=True,
        metavar="DIR",
        help="experiment directories that differ in optim_conf lr",
    )


def _inference(others):
    from espnet_dus.bin import dus_inference

    dus_inference.main(others)


def _score(ref, hyp_dir):
    import logging

    from espnet_dus.evaluation.scoring import read_result, score_dir

    for score, path in score_dir(ref, hyp_dir).items():
        result = read_result(path)
        logging.info(
            f"{score.upper()} {result['Err']} (95 % interval {result['low']} to "
            f"{result['high']}) on {result['Snt']:.0f} utterances: {path}"
        )


def _text_eval(check_only, **options):
    from espnet_dus.evaluation.text.evaluate import evaluate, read_parts
    from espnet_dus.evaluation.text.tables import markdown

    if check_only:
        read_parts(options["texts"], options["tasks"], options["data_dir"])
    else:
        print(markdown(evaluate(**options)))

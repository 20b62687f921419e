"""A pack on the Hugging Face hub, with a model card."""

import logging
import tempfile
import zipfile
from pathlib import Path
from typing import Any, Dict, Union

from espnet_dus.io import read_yaml, write_text
from espnet_dus.zoo.pack import check_archive

WHAT = {
    "dus": "multimodal depth up-scaling: trained layers added to a frozen text LLM",
    "lora": "low-rank updates (LoRA) of a text LLM",
    "full": "full fine-tuning of a text LLM",
    "frozen": "a speech embedder in front of a frozen text LLM",
}
# Hub ids of models that a package carries.
HUB_IDS = {"SmolLM2-135M-Instruct-Q4_1": "HuggingFaceTB/SmolLM2-135M-Instruct"}
CARD = """\
# {repo_id}

Speech recognition by {what}. Trained with
`espnet_dus` on {dataset}.

- Adaptation: {adaptation}
- Base LM: `{name}` {revision}(sha256 of its weights `{sha256}`). It is not in this
  repository: loading the model fetches it from {source} and verifies it.

## How to load it

With `espnet_dus` installed:

```python
import soundfile
from espnet_dus import Speech2Text

speech2text = Speech2Text.from_pretrained("{repo_id}")
speech, rate = soundfile.read("speech.wav")
text, *_ = speech2text(speech)[0]
```

In the recipe, on its test sets:

```sh
./run.sh --skip_train true --download_model {repo_id}
```

{results}
## Configuration

<details><summary>expand</summary>

```yaml
{config}```

</details>

## Citation

```bibtex
@misc{{yano2026adapting,
  title={{Adapting Text LLMs to Speech via Multimodal Depth Up-Scaling}},
  author={{K. Yano and J. Suzuki and S. Watanabe}},
  year={{2026}},
  eprint={{2604.00489}},
  archivePrefix={{arXiv}},
}}
@inproceedings{{watanabe2018espnet,
  title={{{{ESPnet}}: End-to-End Speech Processing Toolkit}},
  author={{Shinji Watanabe and Takaaki Hori and Shigeki Karita and Tomoki Hayashi and
    Jiro Nishitoba and Yuya Unno and Nelson {{Enrique Yalta Soplin}} and
    Jahn Heymann and Matthew Wiesner and Nanxin Chen and Adithya Renduchintala and
    Tsubasa Ochiai}},
  year={{2018}},
  booktitle={{Proceedings of Interspeech}},
  pages={{2207--2211}},
  doi={{10.21437/Interspeech.2018-1456}},
}}
```
"""


def upload(
    pack: Union[str, Path],
    repo_id: str,
    dataset: str,
    lang: str = "noinfo",
    license: str = "cc-by-4.0",
    dry_run: bool = False,
) -> Dict[str, int]:
    """Send a pack's content and a model card to the Hugging Face hub.

    An interrupted upload resumes when it is started again. The user must have logged in
    (`hf auth login`) or set `HF_TOKEN`.

    Args:
        pack: Made by stage 14.
        repo_id: `user/name`. It is created if it does not exist.
        dataset: Name of the training data, for the model card.
        lang: Language of the speech as ISO 639 code; `noinfo`: none.
        license: Licence of the trained parameters, by its name on the hub.
        dry_run: Only log what would be sent.

    Returns:
        Sizes in bytes of the files that were sent, or would be.

    Raises:
        ValueError: The pack or the repository's name is not valid.
        RuntimeError: The hub refused, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repository {repo_id!r}: {error}") from error
    if "/" not in repo_id:
        raise ValueError(f"repository {repo_id!r}: expected user/name")
    meta = check_archive(pack)
    with tempfile.TemporaryDirectory(
        dir=Path(pack).parent, prefix=".uploading-"
    ) as directory:
        with zipfile.ZipFile(pack) as archive:
            archive.extractall(directory)
        card = model_card(Path(directory), meta, repo_id, dataset, lang, license)
        write_text(Path(directory) / "README.md", card)
        sizes = {
            str(path.relative_to(directory)): path.stat().st_size
            for path in sorted(Path(directory).rglob("*"))
            if path.is_file()
        }
        for name, size in sizes.items():
            logging.info(f"{size:>13,} bytes  {name}")
        logging.info(f"{sum(sizes.values()):>13,} bytes in {len(sizes)} files")
        if dry_run:
            logging.info(f"dry run: nothing was sent to {repo_id}; its card:\n{card}")
            return sizes
        api = HfApi(library_name="espnet")
        try:
            api.create_repo(repo_id, exist_ok=True)
            api.upload_folder(
                repo_id=repo_id,
                folder_path=directory,
                commit_message=f"{Path(pack).name}, packed by espnet_dus",
            )
        except Exception as error:  # of whichever HTTP library the hub's client uses
            raise RuntimeError(
                f"upload to {repo_id}: {error}\nIf you are not logged in: hf auth "
                "login. Started again, the upload resumes."
            ) from error
    logging.info(f"uploaded: {api.endpoint}/{repo_id}")
    return sizes


def model_card(
    directory: Path,
    meta: Dict[str, Any],
    repo_id: str,
    dataset: str,
    lang: str,
    license: str,
) -> str:
    """Write the model card of an unpacked pack; see `upload`.

    Its tables of word errors and of text degradation are those of `RESULTS.md`.
    """
    from huggingface_hub import ModelCardData

    config_path = directory / meta["yaml_files"]["asr_train_config"]
    config = read_yaml(config_path)
    base_lm = meta["base_lm"]
    from_hub = "/" in base_lm["source"]
    base_model = base_lm["source"] if from_hub else HUB_IDS.get(base_lm["name"])
    front = ModelCardData(
        tags=["espnet", "audio", "automatic-speech-recognition"],
        language=None if lang == "noinfo" else lang,
        datasets=[dataset],
        license=license,
        base_model=base_model,
        library_name="espnet",
        pipeline_tag="automatic-speech-recognition",
    )
    results = config_path.with_name("RESULTS.md")
    if results.is_file():
        # one level deeper: the page has its own title
        lines = results.read_text("utf-8").splitlines()
        text = "\n".join("#" + line if line[:1] == "#" else line for line in lines)
    else:
        text = "## RESULTS\n\nThis model has not been scored."
    options = ", ".join(
        f"{key} {value}" for key, value in config["adaptation_conf"].items()
    )
    body = CARD.format(
        repo_id=repo_id,
        what=WHAT[config["adaptation"]],
        dataset=dataset,
        adaptation=f"`{config['adaptation']}` ({options or 'no options'})",
        name=base_lm["name"],
        revision=f"revision {base_lm['revision']} " if base_lm["revision"] else "",
        sha256=base_lm["sha256"][:12],
        source=f"`{base_lm['source']}`" if base_lm["source"] else "your own copy",
        results=text.strip() + "\n",
        config=config_path.read_text("utf-8"),
    )
    return f"---\n{front.to_yaml()}\n---\n\n{body}"

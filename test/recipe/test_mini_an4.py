"""The recipe itself, on real speech, with a tiny random base LM."""

import json
import re
import shutil
import time

import psutil
import pytest
import torch

from espnet_dus.io import read_scp

# The options of a real training, with sizes that fit the tiny base LM.
TINY = """
    --base_lm_conf dtype=float32 --speech_embedder_conf channels=8
    --adaptation_conf cgmlp_linear_units=16 --adaptation_conf positions=[0,2]
    --max_epoch 2 --num_iters_per_epoch 2 --use_tensorboard false
    --scheduler_conf warmup_steps=2
"""


@pytest.fixture(scope="module")
def tiny(tiny_base_lm_dir):
    """Options of run.sh for the tiny base LM."""
    return [
        *("--base_lm", tiny_base_lm_dir, "--base_lm_dir", tiny_base_lm_dir),
        *("--dus_args", " ".join(TINY.split()), "--ngpu", 0, "--nj", 2),
        *("--inference_nj", 1, "--dus_exp", "exp/tiny"),
        *("--feats_type", "raw", "--ctc_token_type", "llm"),
        *("--dus_config", "conf/tuning/train_dus_features.yaml"),
    ]


@pytest.fixture(scope="module")
def prepared(checkout, tiny):
    """The recipe with its data, tokens and statistics made."""
    checkout.run("mini_an4", *tiny, "--stop_stage", 5)
    checkout.run("mini_an4", *tiny, "--stage", 10, "--stop-stage", 10)
    return checkout.recipe("mini_an4")


def parameters(path):
    return torch.load(path, map_location="cpu", weights_only=True)


@pytest.fixture(scope="module")
def finished(checkout, prepared, tiny):
    """What stages 6 to 14 print."""
    return checkout.run("mini_an4", *tiny, "--stage", 6, "--skip_packing", "false")


def test_all_stages_lead_to_a_table_of_results(finished, prepared):
    output = finished
    results = (prepared / "exp/tiny/RESULTS.md").read_text()
    assert results in output
    rows = re.findall(
        r"^\| *(\S+)/(seen|test) *\| *(\d+) *\| *(\d+) *\|", results, re.M
    )
    # WER, then CER, each of five and two utterances
    assert [(name, int(n)) for _, name, n, _ in rows] == [("seen", 5), ("test", 2)] * 2
    assert "too small to measure anything" in results
    assert "0 exactly" in results and "verified bit for bit" in results
    for name in ("text", "token", "token_int", "score"):
        (path,) = prepared.glob(f"exp/tiny/*/test/{name}")
        assert len(path.read_text().splitlines()) == 2
    report = (prepared / "exp/tiny/upscale/report.md").read_text()
    assert report.count("| equal ") == 8 and "DIFFERENT" not in report


def test_the_papers_setting_is_the_default(checkout, prepared, tiny_base_lm_dir):
    options = TINY.replace("--speech_embedder_conf channels=8", "")
    checkout.run(
        *("mini_an4", "--base_lm", tiny_base_lm_dir, "--base_lm_dir", tiny_base_lm_dir),
        *("--dus_args", " ".join(options.split()), "--ngpu", 0, "--inference_nj", 1),
        *("--dus_exp", "exp/tokens", "--skip-stages", "1 8 9"),
        *("--cross_entropy", "true", "--perplexity_text", ""),
    )
    dump = prepared / "dump/tokens_logmel"
    tokenizer = json.loads(
        (prepared / "data/speech_tokenizer/logmel/tokenizer.json").read_text()
    )
    assert tokenizer["name"] == "logmel" and tokenizer["vocab_sizes"] == [50]
    frames = [line.split()[1] for line in (dump / "test/utt2num_frames").open()]
    assert all(0 < int(number) < 500 for number in frames)
    shapes = (prepared / "exp").glob("dus_stats_tokens_logmel_*/*/speech_shape")
    assert [line.endswith(",1\n") for path in shapes for line in path.open()] == [
        True
    ] * 6
    (path,) = prepared.glob("exp/tokens/*/seen/score_ce/result.json")
    utterances = json.loads(path.read_text())["utterances"]
    assert sorted(utterances) == sorted(read_scp(dump / "seen/text"))
    report = (prepared / "exp/tokens/upscale/report.md").read_text()
    assert "DIFFERENT" not in report
    assert re.search(
        r"/seen *\| *5 *\|", (prepared / "exp/tokens/RESULTS.md").read_text()
    )


def test_a_pack_decodes_alike_where_the_experiment_is_gone(
    checkout, finished, prepared, tiny_base_lm_dir, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pack = tmp_path / "published.zip"
    shutil.copy(prepared / "exp/tiny/tiny_train.acc.ave.zip", pack)
    (prepared / "exp").rename(prepared / "gone")
    try:
        checkout.run(
            *("mini_an4", "--download_model", pack, "--skip_train", "true"),
            *("--feats_type", "raw"),
            *("--base_lm_dir", tiny_base_lm_dir, "--inference_nj", 1, "--stage", 12),
            *("--ngpu", 0, "--dus_exp", "exp/fetched"),
        )
        for name in ("text", "token", "token_int"):
            (ours,) = prepared.glob(f"exp/fetched/*/test/{name}")
            (theirs,) = prepared.glob(f"gone/tiny/*/test/{name}")
            assert ours.read_text() == theirs.read_text()
        assert (prepared / "exp/fetched/RESULTS.md").is_file()
    finally:
        shutil.rmtree(prepared / "exp", ignore_errors=True)
        (prepared / "gone").rename(prepared / "exp")


def test_training_killed_at_any_time_ends_as_if_it_had_not_been(
    checkout, prepared, tiny
):
    train = [*tiny, "--stage", 11, "--stop-stage", 11]
    whole = [*train, "--dus_exp", "exp/whole"]
    checkout.run("mini_an4", *whole)

    killed = prepared / "exp" / "killed"
    train += ["--dus_exp", "exp/killed"]
    process = checkout.start("mini_an4", *train)
    deadline = time.time() + 300
    while not (killed / "checkpoint.pth").exists():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.01)
    # the training too, which run_local.py has put into a session of its own
    family = psutil.Process(process.pid).children(recursive=True)
    assert any("espnet_dus.bin.dus_train" in p.cmdline() for p in family)
    for member in [*family, psutil.Process(process.pid)]:
        member.kill()
    psutil.wait_procs(family, timeout=60)
    process.wait()
    assert not (killed / "train.acc.ave.pth").exists()
    checkout.run("mini_an4", *train)

    first = parameters(prepared / "exp/whole/2epoch.pth")
    second = parameters(killed / "2epoch.pth")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)

    written = (killed / "2epoch.pth").stat().st_mtime_ns
    checkout.run("mini_an4", *train)
    assert (killed / "2epoch.pth").stat().st_mtime_ns == written
    assert "already reached at max_epoch" in (killed / "train.log").read_text()


def test_features_on_disk_lead_to_results_too(checkout, prepared, tiny):
    options = [*tiny, "--feats_type", "fbank", "--dus_exp", "exp/fbank"]
    # test_all_stages_lead_to_a_table_of_results has two test sets and the text
    options += ["--test_sets", "seen", "--perplexity_text", ""]
    checkout.run("mini_an4", *options, "--skip-stages", "1 6 7 8 9")
    assert re.search(
        r"/seen *\| *5 *\|", (prepared / "exp/fbank/RESULTS.md").read_text()
    )


def test_copies_in_front_of_the_base_lm_train(checkout, prepared, tiny):
    options = dict(zip(tiny[::2], tiny[1::2]))
    # copies have no sizes of their own
    kept = [o for o in options["--dus_args"].split("--") if "units" not in o]
    options["--dus_args"] = "--".join(kept)
    options["--dus_exp"] = "exp/transformer_speech"
    flat = [item for pair in options.items() for item in pair]
    config = "conf/tuning/train_dus_transformer_speech.yaml"
    checkout.run(
        "mini_an4", *flat, "--dus_config", config, "--stage", 11, "--stop-stage", 11
    )
    assert (prepared / "exp/transformer_speech/train.acc.ave.pth").exists()


def test_bad_utterance_stops_the_training_unless_it_may_be_left_out(
    checkout, prepared, tiny
):
    dump = prepared / "dump/raw/train"
    scp = (dump / "wav.scp").read_text()
    utt_id, path = scp.splitlines()[0].split()
    whole = (prepared / path).read_bytes()
    train = [*tiny, "--stage", 11, "--stop-stage", 11, "--dus_exp", "exp/bad"]
    (prepared / path).write_bytes(whole[:200])
    try:
        checkout.run("mini_an4", *train, succeeds=False)
        log = (prepared / "exp/bad/train.log").read_text()
        assert f"utterance {utt_id}" in log and "--max_bad_utterances" in log
        train[train.index("--dus_args") + 1] += " --max_bad_utterances 1"
        checkout.run("mini_an4", *train)
    finally:
        (prepared / path).write_bytes(whole)
    bad = (prepared / "exp/bad/bad_utterances.txt").read_text().splitlines()
    assert [line.split()[0] for line in bad] == [utt_id]

"""Token shards hold the tokens of stage 3, from a dump or from audio shards."""

import functools
import json
import shutil

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
import yaml
from espnet2.train.distributed_utils import DistributedOption
from lhotse import CutSet
from lhotse.array import Array

from espnet_dus.app import cli
from espnet_dus.data.dataset import TooManyBadUtterances, token_frames
from espnet_dus.data.format import format_data
from espnet_dus.data.shards.cuts import make_cut, token_cut
from espnet_dus.data.shards.from_cuts import store_audio
from espnet_dus.data.shards.from_data_dir import write_data_dir
from espnet_dus.data.shards.shar import list_shards, read_info
from espnet_dus.data.shards.shar_writer import write_blocks
from espnet_dus.data.shards.tokenize import tokenize_shards
from espnet_dus.data.speech_tokens.info import TokenizerInfo
from espnet_dus.data.speech_tokens.kmeans import make_tokenizer
from espnet_dus.task import DUSTask

KEYS = [f"u{n:02d}" for n in range(12)]


@pytest.fixture(scope="module", params=[False, True], ids=["all", "without repeats"])
def root(request, tmp_path_factory, noise):
    """A corpus as audio and as tokens: dumps, and shards of each dump."""
    root = tmp_path_factory.mktemp("corpus")
    (root / "data").mkdir()
    tables = {"wav.scp": "", "text": "", "utt2spk": ""}
    for n, key in enumerate(KEYS):
        samples = noise(0.3 + 0.05 * n, seed=n)
        loud = np.arange(len(samples)) // 3000 % 3 + 0.1
        soundfile.write(root / f"data/{key}.wav", samples * loud, 16000)
        tables["wav.scp"] += f"{key} {root}/data/{key}.wav\n"
        tables["text"] += f"{key} YES NO\n"
        tables["utt2spk"] += f"{key} spk\n"
    for name, lines in tables.items():
        (root / "data" / name).write_text(lines)
    make_tokenizer(
        root / "data", root / "tokenizer", "logmel", 6, remove_repeats=request.param
    )
    format_data(root / "data", root / "raw")
    format_data(
        root / "data", root / "tokens", "tokens", speech_tokenizer=root / "tokenizer"
    )
    write_data_dir(root / "raw", root / "shar/train", shard_size=2)
    write_data_dir(root / "tokens", root / "from_dump/train", shard_size=2)
    return root


def stage_3(root):
    info = TokenizerInfo.read(root / "tokenizer")
    vectors = kaldiio.load_scp(str(root / "tokens/feats.scp"))
    return {key: token_frames(vectors[key], info) for key in KEYS}


def read_back(shard_dir):
    fields = {"cuts": [], "tokens": []}
    for shard in list_shards(shard_dir):
        for name, path in shard.items():
            fields[name].append(path)
    return {cut.id: cut for cut in CutSet.from_shar(fields=fields)}


def assert_as_stage_3(root, shard_dir, keys=KEYS):
    cuts, expected = read_back(shard_dir), stage_3(root)
    assert sorted(cuts) == list(keys)
    for key, cut in cuts.items():
        found = cut.load_tokens()
        assert found.dtype == np.int16 and cut.tokens.shape == list(found.shape)
        np.testing.assert_array_equal(found, expected[key])
        assert cut.duration == pytest.approx(0.3 + 0.05 * KEYS.index(key))
        assert cut.supervisions[0].text == "YES NO" and not cut.has_recording
    info = read_info(shard_dir)
    assert info.tokenizer == TokenizerInfo.read(root / "tokenizer").identity
    assert info.num_utterances == len(keys)


def test_a_dump_of_tokens_becomes_shards(root):
    assert_as_stage_3(root, root / "from_dump/train")


def test_audio_shards_give_the_tokens_of_stage_3(root, tmp_path):
    mix = tmp_path / "mix.yaml"
    mix.write_text(f"{root}/shar/train: 0.5\n{root}/absent: 0\n")
    options = ["--shards", mix, "--speech_tokenizer", root / "tokenizer", "--nj", 2]
    out = tmp_path / "out"
    cli.main([str(x) for x in ("tokenize_shards", "--out_dir", out, *options)])
    assert_as_stage_3(root, out / "train")
    assert yaml.safe_load((out / "mix.yaml").read_text()) == {f"{out}/train": 0.5}
    assert {path.name for path in out.iterdir()} == {"train", "mix.yaml"}


def test_tokens_beyond_16_bits_are_kept():
    tokens = np.array([[0, 70000], [32767, 5]])
    cut, content = token_cut("a", 0.04, "YES", "spk", tokens)
    cut.tokens = Array("memory_npy", "", content, cut.tokens.shape)
    assert cut.load_tokens().dtype == np.int32
    np.testing.assert_array_equal(cut.load_tokens(), tokens)


def snapshot(path):
    return {file.name: file.stat().st_mtime_ns for file in path.rglob("*.tar")}


def test_jobs_share_the_shards_and_a_run_without_a_job_completes_them(root, tmp_path):
    audio, tokenizer = str(root / "shar/train"), root / "tokenizer"
    for job, count in (("2/3", 2), ("1/3", 4)):
        tokenize_shards(audio, tmp_path, tokenizer, job=job)
        assert len(snapshot(tmp_path / ".train.partial")) == count
    assert not (tmp_path / "train").exists()
    before = snapshot(tmp_path / ".train.partial")
    tokenize_shards(audio, tmp_path, tokenizer)
    after = snapshot(tmp_path / "train")
    assert len(after) == 6 and before.items() <= after.items()
    assert_as_stage_3(root, tmp_path / "train")
    tokenize_shards(audio, tmp_path, tokenizer)
    assert snapshot(tmp_path / "train") == after
    with pytest.raises(ValueError, match="expected K/N, such as 1/8, got '4/3'"):
        tokenize_shards(audio, tmp_path, tokenizer, job="4/3")


def test_shards_of_a_dump_or_of_audio_that_is_gone_are_not_made_again(root, tmp_path):
    audio = shutil.copytree(root / "shar/train", tmp_path / "shar/train")
    tokenize_shards(str(audio), tmp_path / "out", root / "tokenizer")
    before = snapshot(tmp_path / "out")
    shutil.rmtree(audio)
    tokenize_shards(str(audio), tmp_path / "out", root / "tokenizer")
    assert snapshot(tmp_path / "out") == before
    make_tokenizer(root / "data", tmp_path / "other", "logmel", 5)
    with pytest.raises(RuntimeError, match="out/train belongs to the speech tok"):
        tokenize_shards(str(audio), tmp_path / "out", tmp_path / "other")
    with pytest.raises(ValueError, match="absent/info.json: no such file"):
        tokenize_shards("absent", tmp_path / "out", root / "tokenizer")
    mix = {str(root / "shar/train"): 1.0, "absent": 1.0}
    with pytest.raises(ValueError, match="absent/info.json: no such file"):
        tokenize_shards(mix, tmp_path / "mix", root / "tokenizer")
    assert not (tmp_path / "mix").exists()  # before anything is computed
    tokens = str(root / "from_dump/train")
    shutil.copytree(tokens, tmp_path / "of_dump/train")
    before = snapshot(tmp_path / "of_dump")
    tokenize_shards(str(root / "shar/train"), tmp_path / "of_dump", root / "tokenizer")
    assert snapshot(tmp_path / "of_dump") == before
    with pytest.raises(ValueError, match="expected shards of audio, it holds tokens"):
        tokenize_shards(tokens, tmp_path / "again", root / "tokenizer")


def test_unreadable_audio_is_counted_and_nothing_half_written(root, tmp_path):
    audio = shutil.copytree(root / "shar/train", tmp_path / "shar")
    broken = list_shards(audio)[1]
    with open(broken["recording"], "r+b") as file:
        file.truncate(20000)
    with pytest.raises(TooManyBadUtterances, match="0 are allowed"):
        tokenize_shards(str(audio), tmp_path / "out", root / "tokenizer")
    assert not (tmp_path / "out/shar").exists()
    tokenize_shards(
        str(audio), tmp_path / "out", root / "tokenizer", max_bad_utterances=1
    )
    lost = {cut.id for cut in CutSet.from_jsonl_lazy(broken["cuts"])} - {
        *read_back(tmp_path / "out/shar")
    }
    assert lost
    assert_as_stage_3(root, tmp_path / "out/shar", sorted({*KEYS} - lost))


def test_audio_of_another_rate_is_refused(root, tmp_path):
    cut = make_cut("a", str(root / "data/u00.wav"), 16000, 4800, "YES", "spk")
    store = functools.partial(store_audio, fs=8000)
    write_blocks([[cut]], store, tmp_path / "shar", "x")
    with pytest.raises(ValueError, match="audio of 8000 Hz, but .* takes 16000 Hz"):
        tokenize_shards(str(tmp_path / "shar"), tmp_path / "out", root / "tokenizer")


# -- the stream ------------------------------------------------------------------------


@pytest.fixture
def make_factory(root, tiny_options, tmp_path):
    """Return a function that builds the iterator factory of a model of tokens."""

    def make(num_workers=0, tokens=True, tokenizer=None, **conf):
        conf = {
            "shards": str(root / "from_dump/train"),
            "max_tokens": 256,
            "buffer_size": 8,
            "max_text_rate": 120.0,
            **conf,
        }
        options = {}
        if tokens:
            options = dict(
                speech_input="tokens",
                speech_tokenizer=str(tokenizer or root / "tokenizer"),
                speech_embedder_conf={},
            )
        args = tiny_options(
            iterator_type="task",
            output_dir=str(tmp_path / "exp"),
            streaming_conf=conf,
            num_workers=num_workers,
            model_conf=dict(prompt="Transcript:\n"),
            **options,
        )
        return DUSTask.build_iter_factory(args, DistributedOption(), mode="train")

    return make


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_has_every_utterance_once_with_its_tokens(
    make_factory, root, num_workers
):
    expected, seen = stage_3(root), []
    for keys, batch in make_factory(num_workers).build_iter(1):
        assert batch["speech"].dtype == torch.int64
        for key, tokens, length in zip(keys, batch["speech"], batch["speech_lengths"]):
            np.testing.assert_array_equal(tokens[:length], expected[key])
            assert (tokens[length:] == -1).all()
            seen.append(key)
    assert sorted(seen) == KEYS


def test_a_batch_fits_into_its_llm_positions(make_factory, root, tiny_model):
    options = dict(
        speech_input="tokens",
        speech_tokenizer=str(root / "tokenizer"),
        speech_embedder_conf={},
    )
    model = tiny_model(**options)
    for _, batch in make_factory().build_iter(1):
        with torch.no_grad():
            speech = model.embed_speech(batch["speech"], batch["speech_lengths"])
            seq = model.join_text(*speech, batch["text"], batch["text_lengths"])
        batch_size, positions = seq.attention_mask_BT.shape
        assert batch_size * positions <= 256


def test_ranks_and_readers_share_the_utterances(make_factory):
    factory = make_factory()
    factory.readers, factory.world_size = 2, 3
    share = []
    for factory.rank in range(3):
        for reader in range(2):
            share += [cut.id for cut in factory.cuts(1, reader)]
    assert sorted(share) == KEYS


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_epoch_goes_on_with_the_same_batches(make_factory, num_workers):
    whole = list(make_factory(num_workers).build_iter(2))
    iterator = make_factory(num_workers).build_iter(2)
    batches = iter(iterator)
    begun = [next(batches) for _ in range(2)]
    resumed = make_factory(num_workers).build_iter(2)
    resumed.load_state_dict(iterator.state_dict())
    both = begun + list(resumed)
    assert len(whole) > 2 and [keys for keys, _ in both] == [keys for keys, _ in whole]
    for (_, one), (_, other) in zip(both, whole):
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_model_is_trained_from_token_shards(
    root, tmp_path, tiny_base_lm_dir, ctc_units_dirs
):
    config = tmp_path / "train.yaml"
    options = dict(
        speech_input="tokens",
        speech_tokenizer=str(root / "tokenizer"),
        base_lm_conf=dict(dtype="float32"),
        adaptation_conf=dict(cgmlp_linear_units=16, positions=[0]),
        iterator_type="task",
        valid_iterator_type="sequence",
        streaming_conf=dict(
            shards=str(root / "from_dump/train"), max_tokens=256, max_text_rate=120
        ),
    )
    config.write_text(yaml.safe_dump(options))
    dump, out = root / "tokens", tmp_path / "exp"
    command = f"--config {config} --base_lm {tiny_base_lm_dir} --output_dir {out} "
    command += f"--ctc_units {ctc_units_dirs['llm']} --num_workers 1 --ngpu 0 "
    command += "--max_epoch 1 --num_att_plot 0 --use_tensorboard false "
    command += f"--valid_shape_file {dump}/utt2num_frames --batch_type unsorted "
    for table, name, kind in (
        ("feats.scp", "speech", "kaldi_ark"),
        ("text", "text", "text"),
    ):
        command += f"--valid_data_path_and_name_and_type {dump}/{table},{name},{kind} "
    DUSTask.main(cmd=command.split())
    assert (out / "1epoch.pth").is_file()


def test_shards_that_do_not_fit_the_model_are_refused(make_factory, root, tmp_path):
    with pytest.raises(ValueError, match="holds audio, but the model takes speech tok"):
        make_factory(shards=str(root / "shar/train"))
    with pytest.raises(ValueError, match="holds tokens .* but the model takes audio"):
        make_factory(tokens=False)
    make_tokenizer(root / "data", tmp_path / "other", "logmel", 5)
    with pytest.raises(RuntimeError, match="train belongs to the speech tokenizer log"):
        make_factory(tokenizer=tmp_path / "other")
    info = root / "from_dump/train/info.json"
    assert json.loads(info.read_text())["tokenizer"]["name"] == "logmel"


@pytest.mark.parametrize(
    "conf", [dict(speed_factors=[0.9, 1.0]), dict(noise="n"), dict(rir="r")]
)
def test_options_that_change_audio_are_refused(make_factory, conf):
    with pytest.raises(ValueError, match="has no effect on speech tokens"):
        make_factory(**conf)

"""Streaming: every utterance once on any number of processes, exactly resumed."""

import gzip
import re
import shutil
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from espnet2.train.distributed_utils import DistributedOption

from espnet_dus.data.dataset import BadUtterances, TooManyBadUtterances
from espnet_dus.data.format import format_data
from espnet_dus.data.lengths import speech_positions
from espnet_dus.data.shards.build import read_batch_sizes
from espnet_dus.data.shards.from_data_dir import write_data_dir
from espnet_dus.data.shards.shar import list_shards
from espnet_dus.task import DUSTask

KEYS = [f"u{n:02d}" for n in range(24)]
SECONDS = sum(0.5 + 0.05 * n for n in range(24))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory, noise):
    """Two corpora of 24 and 8 utterances, in shards of two."""
    import soundfile

    root = tmp_path_factory.mktemp("corpora")
    for name, keys in (("a", KEYS), ("b", [f"v{n}" for n in range(8)])):
        data = root / "data" / name
        data.mkdir(parents=True)
        tables = {"wav.scp": "", "text": "", "utt2spk": ""}
        for n, key in enumerate(keys):
            path = data / f"{key}.wav"
            soundfile.write(path, noise(0.5 + 0.05 * n, seed=n), 16000)
            tables["wav.scp"] += f"{key} {path}\n"
            tables["text"] += f"{key} YES NO\n"
            tables["utt2spk"] += f"{key} spk\n"
        for table, lines in tables.items():
            (data / table).write_text(lines)
        format_data(data, root / "dump" / name)
        write_data_dir(root / "dump" / name, root / "shar" / name, shard_size=2)
    return root


@pytest.fixture
def make_factory(corpora, tiny_options, tmp_path):
    """Return a function that builds the iterator factory as the task does."""

    def make(
        num_workers=0,
        max_bad_utterances=0,
        seed=0,
        prompt="Transcript:\n",
        more=(),
        **conf,
    ):
        conf = {
            "shards": f"{corpora / 'shar' / 'a'}",
            "max_tokens": 128,
            "buffer_size": 12,
            "max_text_rate": 120.0,
            **conf,
        }
        args = tiny_options(
            iterator_type="task",
            output_dir=str(tmp_path / "exp"),
            streaming_conf=conf,
            num_workers=num_workers,
            max_bad_utterances=max_bad_utterances,
            seed=seed,
            model_conf=dict(prompt=prompt),
            **dict(more),
        )
        return DUSTask.build_iter_factory(
            args, distributed_option=DistributedOption(), mode="train"
        )

    return make


def ids(iterator):
    return [keys for keys, _ in iterator]


def flat(batches):
    return [key for keys in batches for key in keys]


# -- what is in an epoch ---------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_has_every_utterance_once(make_factory, num_workers):
    factory = make_factory(num_workers)
    first = ids(factory.build_iter(1))
    assert sorted(flat(first)) == KEYS
    assert ids(factory.build_iter(1)) == first  # the seed and the epoch say it all
    second = ids(factory.build_iter(2))
    assert sorted(flat(second)) == KEYS and second != first


def test_batches_are_what_the_kaldi_path_makes(make_factory, corpora, tiny_options):
    import soundfile

    args = tiny_options()
    preprocess = DUSTask.build_preprocess_fn(args, train=True)
    for keys, batch in make_factory().build_iter(1):
        assert set(batch) >= {"speech", "speech_lengths", "text", "text_ctc"}
        for key, speech, length in zip(keys, batch["speech"], batch["speech_lengths"]):
            samples, _ = soundfile.read(
                corpora / "data" / "a" / f"{key}.wav", dtype="float32"
            )
            assert np.array_equal(speech[:length], samples)
        expected = preprocess("x", {"speech": samples, "text": "YES NO"})
        assert batch["text"][0].tolist() == expected["text"].tolist()


def test_a_batch_fits_into_its_llm_positions(make_factory, tiny_model):
    model = tiny_model()
    for _, batch in make_factory(max_tokens=96).build_iter(1):
        with torch.no_grad():
            speech, lengths = model.embed_speech(
                batch["speech"], batch["speech_lengths"]
            )
            seq = model.join_text(speech, lengths, batch["text"], batch["text_lengths"])
        batch_size, positions = seq.attention_mask_BT.shape
        assert batch_size * positions <= 96


def test_fixed_batch_sizes_hold_for_each_bucket(make_factory, tmp_path):
    (tmp_path / "sizes.yaml").write_text(
        "streaming_conf:\n    batch_sizes:\n        16: 4\n        48: 2\n"
    )
    for sizes in ({16: 4, 48: 2}, str(tmp_path / "sizes.yaml")):
        batches = ids(make_factory(batch_sizes=sizes).build_iter(1))
        assert sorted(flat(batches)) == KEYS
        assert max(map(len, batches)) in (2, 4)


@pytest.mark.parametrize("input_layer", ["conv2d", "conv2d8"])
def test_speech_positions_are_the_embedders(tiny_model, tiny_options, input_layer):
    options = dict(speech_embedder_conf=dict(input_layer=input_layer, channels=4))
    model, args = tiny_model(**options).eval(), tiny_options(**options)
    for samples in (2800, 4801, 8000, 12345):
        speech = torch.randn(1, samples)
        _, lengths = model.embed_speech(speech, torch.tensor([samples]))
        assert speech_positions(args, samples) == lengths.item()


@pytest.mark.parametrize("ranks, readers", [(1, 1), (3, 2), (24, 2)])
def test_ranks_and_readers_share_the_utterances(make_factory, ranks, readers):
    factory = make_factory()  # 12 shards of two utterances
    factory.readers, factory.world_size = readers, ranks
    share = []
    for factory.rank in range(ranks):
        for reader in range(readers):
            share.append([cut.id for cut in factory.cuts(1, reader)])
    assert sorted(flat(share)) == KEYS
    assert max(map(len, share)) - min(map(len, share)) <= 1


def test_corpora_are_mixed_and_weights_say_how_often_each_is_seen(
    make_factory, corpora, tmp_path
):
    mix = tmp_path / "mix.yaml"
    mix.write_text(f"{corpora}/shar/a: 0.5\n{corpora}/shar/b: 2.0\n")
    factory = make_factory(shards=str(mix))
    seen = [Counter(flat(ids(factory.build_iter(epoch)))) for epoch in (1, 2)]
    for counts in seen:
        of_a = [key for key in counts if key in KEYS]
        assert len(of_a) == 12 and all(counts[f"v{n}"] == 2 for n in range(8))
    assert set(seen[0]) | set(seen[1]) >= set(KEYS)  # the other half


def test_a_pass_over_the_data_may_take_several_epochs(make_factory):
    factory = make_factory(hours_per_epoch=SECONDS / 3 / 3600)
    parts = [flat(ids(factory.build_iter(epoch))) for epoch in (1, 2, 3)]
    assert [len(part) for part in parts] == [8, 8, 8]
    assert sorted(flat(parts)) == KEYS
    assert sorted(flat(ids(factory.build_iter(4)))) != sorted(parts[0])


@pytest.mark.parametrize("weight", [0.625, 0.875])
def test_a_later_pass_may_have_fewer_shards_than_there_are_readers(
    make_factory, corpora, weight
):
    factory = make_factory(shards={f"{corpora}/shar/b": weight})
    factory.readers = 4
    seen = Counter()
    for epoch in range(1, 9):  # 8 passes over 4 shards of two utterances
        for reader in range(4):
            seen.update(cut.id for cut in factory.cuts(epoch, reader))
    assert seen == Counter({f"v{n}": 8 * weight for n in range(8)})


def test_an_update_has_as_many_positions_on_any_number_of_processes(make_factory):
    factory = make_factory(max_tokens=96, tokens_per_update=768)
    positions = []
    for world_size in (1, 2, 8):
        factory.world_size = world_size
        factory._measure()
        batch = sum(n * factory.capacity(n) for n in (16, 32)) / 2
        positions.append((factory.accum_grad, batch * world_size * factory.accum_grad))
    assert [accum for accum, _ in positions] == [8, 4, 1]
    for _, update in positions:
        assert update == pytest.approx(768, rel=0.01)
    factory.world_size = 64
    with pytest.raises(ValueError, match="768 LLM positions are less .* each of 64"):
        factory._measure()


def test_the_expected_number_of_batches_is_about_right(make_factory, corpora):
    options = dict(shards={f"{corpora}/shar/a": 2, f"{corpora}/shar/b": 0.5})
    iterator = make_factory(**options).build_iter(1)
    assert len(iterator) == pytest.approx(len(list(iterator)), abs=2)


def test_a_model_is_trained_from_shards(
    corpora, tmp_path, tiny_base_lm_dir, ctc_units_dirs
):
    config = tmp_path / "train.yaml"
    config.write_text(
        yaml.safe_dump(
            dict(
                base_lm_conf=dict(dtype="float32"),
                frontend_conf=dict(n_mels=20, center=False),
                speech_embedder_conf=dict(channels=4),
                adaptation_conf=dict(cgmlp_linear_units=16, positions=[0]),
                iterator_type="task",
                valid_iterator_type="sequence",
                streaming_conf=dict(max_tokens=96, buffer_size=8, max_text_rate=120),
            )
        )
    )
    dump, out = corpora / "dump" / "b", tmp_path / "exp"
    command = f"--config {config} --base_lm {tiny_base_lm_dir} --output_dir {out} "
    command += f"--ctc_units {ctc_units_dirs['llm']} --normalize utterance_mvn "
    command += f"--streaming_conf shards={corpora}/shar/b --num_workers 1 --ngpu 0 "
    command += "--max_epoch 2 --num_att_plot 0 --use_tensorboard false "
    command += f"--valid_shape_file {dump}/utt2num_samples --batch_type unsorted "
    for table, name, kind in (("wav.scp", "speech", "sound"), ("text", "text", "text")):
        command += f"--valid_data_path_and_name_and_type {dump}/{table},{name},{kind} "
    DUSTask.main(cmd=command.split())
    saved = yaml.safe_load((out / "config.yaml").read_text())
    assert saved["streaming_conf"]["shards"] == f"{corpora}/shar/b"
    assert (out / "2epoch.pth").is_file()


# -- resume ----------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 3])
def test_a_resumed_epoch_goes_on_with_the_same_batches(
    make_factory, corpora, num_workers
):
    options = dict(
        num_workers=num_workers,
        shards={f"{corpora}/shar/a": 1, f"{corpora}/shar/b": 1},
        speed_factors=[0.9, 1.0, 1.1],
    )
    whole = list(make_factory(**options).build_iter(2))
    for stop in (1, 4, len(whole) - 1):
        iterator = make_factory(**options).build_iter(2)
        batches = iter(iterator)
        begun = [next(batches) for _ in range(stop)]
        state = iterator.state_dict()
        batches.close()
        resumed = make_factory(**options).build_iter(2)
        resumed.load_state_dict(state)
        both = begun + list(resumed)
        assert [keys for keys, _ in both] == [keys for keys, _ in whole]
        for (_, one), (_, other) in zip(both, whole):
            assert all(torch.equal(one[name], other[name]) for name in other)


def test_an_epoch_that_was_stopped_behind_its_last_batch_has_no_more(make_factory):
    iterator = make_factory().build_iter(1)
    assert len(list(iterator)) > 1
    resumed = make_factory().build_iter(1)
    resumed.load_state_dict(iterator.state_dict())
    assert list(resumed) == []


def test_the_state_is_plain(make_factory, tmp_path):
    iterator = make_factory().build_iter(1)
    next(iter(iterator))
    torch.save(iterator.state_dict(), tmp_path / "state.pth")
    state = torch.load(tmp_path / "state.pth", weights_only=True)
    assert state["given"] == [1] and state["next_reader"] == 0


@pytest.mark.parametrize(
    "change, named",
    [
        (dict(max_tokens=96), r"streaming_conf max_tokens \(was 128, is 96\)"),
        (dict(tokens_per_update=64), "streaming_conf tokens_per_update"),
        (dict(max_duration=1.2), "streaming_conf max_duration"),
        (dict(min_text_rate=0.3), "streaming_conf min_text_rate"),
        (dict(noise_snr=[0.0, 9.0]), "streaming_conf noise_snr"),
        (dict(speed_factors=[0.9]), "streaming_conf speed_factors"),
        (dict(buffer_size=13), "streaming_conf buffer_size"),
        (dict(num_workers=1), r"num_workers \(was 0, is 1\)"),
        (dict(seed=5), r"seed \(was 0, is 5\)"),
        (dict(prompt="a longer prompt"), "mean length .prompt, cleaner, frontend"),
        (dict(b=True), "streaming_conf shards"),
    ],
)
def test_an_option_that_has_changed_is_named(
    make_factory, corpora, noises_and_rooms, change, named
):
    noise = dict(noise=f"{noises_and_rooms}/noise", max_bad_utterances=99)
    iterator = make_factory(**noise).build_iter(1)
    next(iter(iterator))
    state = iterator.state_dict()
    make_factory(**noise).build_iter(1).load_state_dict(state)
    if "b" in change:
        change = dict(shards=f"{corpora}/shar/b")
    changed = make_factory(**noise, **change).build_iter(1)
    with pytest.raises(ValueError, match=f"cannot be resumed.*{named}"):
        changed.load_state_dict(state)


def test_a_changed_number_of_processes_is_named(make_factory):
    state = make_factory().build_iter(1).state_dict()
    factory = make_factory()
    factory.world_size = 2
    with pytest.raises(ValueError, match=r"number of processes \(was 1, is 2\)"):
        factory.build_iter(1).load_state_dict(state)


def test_the_global_random_numbers_stay_as_they_are(make_factory):
    factory = make_factory(num_workers=1)
    before = torch.get_rng_state()
    ids(factory.build_iter(1))
    assert torch.equal(torch.get_rng_state(), before)


# -- augmentation ----------------------------------------------------------------------


@pytest.fixture(scope="session")
def noises_and_rooms(tmp_path_factory):
    """The noises and room responses that the espnet package carries."""
    import importlib.metadata

    package = importlib.metadata.distribution("espnet").locate_file("")
    root = tmp_path_factory.mktemp("augment")
    with tarfile.open(package / "egs3/mini_an4/esp2_asr/downloads.tar.gz") as tar:
        names = [name for name in tar.getnames() if name.endswith(".wav")]
        for name in names:
            tar.extract(name, root, filter="data")
    return root / "downloads"


def test_speed_noise_and_reverberation_change_the_speech_and_not_the_words(
    make_factory, noises_and_rooms
):
    plain = {
        key: speech[:length]
        for keys, batch in make_factory().build_iter(1)
        for key, speech, length in zip(keys, batch["speech"], batch["speech_lengths"])
    }
    for conf, same_length in (
        (dict(speed_factors=[1.1]), False),
        (dict(noise=f"{noises_and_rooms}/noise", noise_prob=1.0), True),
        (dict(rir=f"{noises_and_rooms}/rirs", rir_prob=1.0), True),
    ):
        seen = []
        for keys, batch in make_factory(**conf).build_iter(1):
            assert torch.isfinite(batch["speech"]).all()
            for key, speech, n in zip(keys, batch["speech"], batch["speech_lengths"]):
                seen.append(key)
                if same_length:
                    assert n == len(plain[key])
                    assert not torch.equal(speech[:n], plain[key])
                else:
                    assert n == pytest.approx(len(plain[key]) / 1.1, abs=1)
        assert sorted(seen) == KEYS


# -- faults ----------------------------------------------------------------------------


@pytest.fixture
def copy_of_shards(corpora, tmp_path):
    shutil.copytree(corpora / "shar" / "a", tmp_path / "shar")
    return tmp_path / "shar", list_shards(tmp_path / "shar")


def rewrite_cuts(path, old, new):
    with gzip.open(path, "rt") as lines:
        text = lines.read()
    with gzip.open(path, "wt") as lines:
        lines.write(text.replace(old, new))


def break_shards(shards):
    """Break six shards in as many ways; give what is left out."""
    cuts, tars = ([shard[name] for shard in shards] for name in ("cuts", "recording"))
    with open(tars[0], "r+b") as file:  # half a tar file
        file.truncate(20000)
    with open(cuts[1], "wb") as file:
        file.write(b"no gzip")
    with tarfile.open(tars[2]) as tar:
        where = tar.getmembers()[0].offset_data
    with open(tars[2], "r+b") as file:  # the audio of one utterance
        file.seek(where)
        file.write(bytes(2000))
    rewrite_cuts(cuts[3], '"text": "YES NO"', '"text": ""')
    rewrite_cuts(cuts[4], '"text": "YES NO"', '"text": "' + "YES " * 200 + '"')
    with open(
        tars[5], "r+b"
    ) as file:  # ends where an utterance does: no error by itself
        with tarfile.open(tars[5]) as tar:
            file.truncate(tar.getmembers()[2].offset)


def test_faulty_shards_and_utterances_are_named_counted_and_left_out(
    make_factory, copy_of_shards, tmp_path
):
    path, shards = copy_of_shards
    break_shards(shards)
    for num_workers in (0, 2):
        shutil.rmtree(tmp_path / "exp", ignore_errors=True)
        factory = make_factory(num_workers, max_bad_utterances=99, shards=str(path))
        read = flat(ids(factory.build_iter(1)))
        assert len(set(read)) == len(read) and 12 <= len(read) <= 16
        report = (tmp_path / "exp" / "bad_utterances.txt").read_text().splitlines()
        named = [line.split()[0] for line in report]
        bad_shards = {n for n in range(6) if f"shard:{shards[n]['cuts']}" in named}
        assert bad_shards == {0, 1, 5}
        assert not any("transcript tokens in" in line for line in report)
        assert sum("the transcript is empty" in line for line in report) == 2
        assert sum("its speech cannot be read" in line for line in report) == 1
        assert any("1 of 2 are missing in its tar file" in line for line in report)
        assert not set(read) & set(named)


def test_too_many_faults_end_the_training(make_factory, copy_of_shards):
    path, shards = copy_of_shards
    break_shards(shards)
    with pytest.raises(TooManyBadUtterances, match="2 are allowed"):
        ids(make_factory(0, max_bad_utterances=2, shards=str(path)).build_iter(1))


def test_a_fault_in_a_worker_process_reaches_the_training(make_factory, copy_of_shards):
    path, shards = copy_of_shards
    factory = make_factory(1, shards=str(path))
    with open(shards[0]["recording"], "r+b") as file:
        file.truncate(20000)
    with pytest.raises(TooManyBadUtterances, match="0 are allowed"):
        ids(factory.build_iter(1))


@pytest.mark.parametrize(
    "conf, message",
    [
        (dict(max_duration=0.1), r"lasts \d\.\d s, 0.1 are allowed"),
        (dict(max_tokens=16), r"\d+ LLM positions, 16 are allowed"),
        (dict(max_text_rate=0.5), r"tokens in \d\.\d s: 0.06 to 0.5 a second are"),
        (dict(min_text_rate=100.0), r"tokens in \d\.\d s: 100.0 to 120.0 a second"),
    ],
)
def test_utterances_outside_the_limits_are_left_out(
    make_factory, caplog, conf, message
):
    with pytest.raises(ValueError, match="no utterance of the shards can be used"):
        make_factory(**conf)
    first = [r.message for r in caplog.records if "1 of 1 utterances" in r.message]
    assert first and all(re.search(message, line) for line in first)


def test_utterances_outside_the_limits_are_no_faults(make_factory, caplog):
    longest = 1.3
    factory = make_factory(max_duration=longest, max_bad_utterances=0)
    durations = [cut.duration for cut in factory.cuts(1, 0)]
    everything = [cut.duration for cut in make_factory().cuts(1, 0)]
    assert durations == [d for d in everything if d <= longest]
    assert 0 < len(durations) < len(everything)
    assert "s, 1.3 are allowed (streaming_conf: max_duration)" in caplog.text


def test_bad_utterances_are_counted_once_over_epochs(tmp_path):
    bad = BadUtterances(tmp_path / "bad", 1)
    for _ in range(3):
        bad.add("shard:x", ValueError("broken"))
    with pytest.raises(TooManyBadUtterances):
        bad.add("shard:y", ValueError("broken"))


# -- options ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "conf, message",
    [
        (dict(shards=None), "shards: name a directory of shards"),
        (dict(shards="nowhere"), "nowhere/info.json: no such file"),
        (dict(shards="nowhere.yaml"), "nowhere.yaml: no such file"),
        (dict(shards={"a": -1}), "a: expected a weight from 0 on, got -1"),
        (dict(shards={"a": 0}), "all weights are 0"),
        (dict(shards=[1]), r"expected a directory of shards.*got \[1\]"),
        (dict(max_tokens=0), "max_tokens: expected an integer from 1 on, got 0"),
        (dict(tokens_per_update=0.5), "tokens_per_update: expected an integer from 1"),
        (dict(hours_per_epoch=0), "hours_per_epoch: expected more than 0, got 0"),
        (dict(noise_prob=0.9), "noise_prob=0.9 has no effect without noise"),
        (dict(rir_prob=0.9), "rir_prob=0.9 has no effect without rir"),
        (
            dict(more=dict(num_iters_per_epoch=9)),
            "num_iters_per_epoch: 9 has no effect",
        ),
        (dict(more=dict(accum_grad=2)), "accum_grad: 2 has no effect on a stream"),
        (dict(batch_sizes={16: 0}), "expected utterances by LLM positions"),
        (dict(batch_sizes="nowhere.yaml"), "nowhere.yaml: no such file"),
        (dict(speed_factors=[3]), "expected a speed factor from 0.5 to 2"),
        (dict(noise="nowhere"), "nowhere: no audio there"),
        (dict(max_token=9), "streaming_conf: unknown option.*max_token; expected"),
    ],
)
def test_a_wrong_option_is_an_error_that_names_it(make_factory, conf, message):
    with pytest.raises(ValueError, match=message):
        make_factory(**conf)


def test_a_file_without_batch_sizes_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "sizes.yaml"
    path.write_text("max_epoch: 3\n")
    message = "sizes.yaml: streaming_conf: batch_sizes: expected utterances .* got None"
    with pytest.raises(ValueError, match=message):
        read_batch_sizes(str(path))


def test_validation_takes_files(tiny_options, tmp_path):
    args = tiny_options(iterator_type="task", output_dir=str(tmp_path))
    with pytest.raises(ValueError, match="--valid_iterator_type sequence"):
        DUSTask.build_iter_factory(args, DistributedOption(), mode="valid")

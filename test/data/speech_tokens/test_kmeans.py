"""Learning a tokenizer on the training set."""

import numpy as np
import pytest
import torch
from tqdm import tqdm

from espnet_dus.data.speech_tokens import kmeans
from espnet_dus.data.speech_tokens.info import CENTRES, INFO, read_tokenizer
from espnet_dus.data.speech_tokens.kmeans import learn_centres, make_tokenizer
from espnet_dus.data.speech_tokens.tokenizer import load_tokenizer


@pytest.fixture
def data_dir(make_data_dir):
    return make_data_dir({f"utt{n}": 0.5 + n / 10 for n in range(5)})


def files(directory):
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in directory.iterdir()}


def test_centres_are_those_of_the_clusters():
    generator = np.random.default_rng(0)
    means = generator.standard_normal((4, 3)) * 10
    frames = np.concatenate(
        [mean + 0.1 * generator.standard_normal((50, 3)) for mean in means]
    ).astype(np.float32)
    centres = learn_centres(generator.permutation(frames), 4, seed=0)
    assert centres.dtype == np.float32
    nearest = np.abs(means[:, None] - centres[None]).max(-1).argmin(1)
    assert sorted(nearest) == [0, 1, 2, 3]
    assert np.abs(means - centres[nearest]).max() < 0.1


def test_a_tokenizer_is_learned_once_and_tokenizes_what_it_has_seen(data_dir, tmp_path):
    out_dir = tmp_path / "tokenizer"
    info = make_tokenizer(data_dir, out_dir, "logmel", num_clusters=8)
    assert (info.name, info.vocab_sizes) == ("logmel", (8,))
    assert (info.frames_per_second, info.sampling_rate) == (50.0, 16000)
    # 0.5 + 0.6 + ... + 0.9 s
    assert info.learned_on["frames"] == 175
    before = files(out_dir)
    assert make_tokenizer(data_dir, out_dir, "logmel", num_clusters=8) == info
    assert files(out_dir) == before
    again = make_tokenizer(data_dir, tmp_path / "again", "logmel", num_clusters=8)
    assert again.sha256 == info.sha256
    speech = np.random.default_rng(0).standard_normal(16000) * 0.1
    tokens = load_tokenizer(out_dir)([speech.astype(np.float32)])[0]
    assert tokens.shape == (50, 1) and set(tokens.flat) <= set(range(8))


def test_what_changes_the_centres_makes_them_anew(data_dir, tmp_path):
    out_dir = tmp_path / "tokenizer"

    def learned(**options):
        options = {"num_clusters": 8, **options}
        return make_tokenizer(data_dir, out_dir, "logmel", **options).sha256

    made = [learned(), learned(num_clusters=7), learned(seed=1)]
    wav_scp = data_dir / "wav.scp"
    lines = wav_scp.read_text()
    wav_scp.write_text(lines.replace("utt0.wav", "utt1.wav"))
    made.append(learned())
    assert len(set(made)) == 4
    wav_scp.write_text(lines)
    assert learned() == made[0]


def test_removing_repeats_keeps_the_centres(data_dir, tmp_path, monkeypatch):
    out_dir = tmp_path / "tokenizer"
    one = make_tokenizer(data_dir, out_dir, "logmel", num_clusters=8)
    monkeypatch.setattr(kmeans, "learn_centres", None)  # not to be called
    options = dict(num_clusters=8, remove_repeats=True)
    other = make_tokenizer(data_dir, out_dir, "logmel", **options)
    assert other.remove_repeats and other.sha256 != one.sha256
    assert read_tokenizer(out_dir)[0] == other


def test_an_existing_tokenizer_is_copied(data_dir, tmp_path):
    one = make_tokenizer(data_dir, tmp_path / "one", "logmel", num_clusters=8)
    copy = make_tokenizer(data_dir, tmp_path / "copy", str(tmp_path / "one"))
    assert copy.sha256 == one.sha256
    assert read_tokenizer(tmp_path / "copy")[0].identity == one.identity
    with pytest.raises(ValueError, match="num_clusters and remove_repeats have no eff"):
        make_tokenizer(data_dir, tmp_path / "copy", str(tmp_path / "one"), 7)


def test_a_few_hours_are_drawn_the_same_in_any_number_of_processes(
    data_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr(kmeans, "BLOCK_SIZE", 1)
    # 1.5 s of 3.5
    options = dict(num_clusters=8, kmeans_hours=1.5 / 3600)
    one = make_tokenizer(data_dir, tmp_path / "one", "logmel", **options)
    two = make_tokenizer(data_dir, tmp_path / "two", "logmel", **options, nj=2)
    assert one.learned_on["frames"] == two.learned_on["frames"] == 75
    assert one.sha256 == two.sha256
    seeded = make_tokenizer(data_dir, tmp_path / "three", "logmel", **options, seed=1)
    assert seeded.sha256 != one.sha256


def test_no_more_is_read_than_needed_without_a_progress_bar_too(
    data_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr(kmeans, "BLOCK_SIZE", 1)
    monkeypatch.setattr(kmeans, "progress", lambda **_: tqdm(disable=True))
    blocks, read = [], kmeans._frames_of_block
    monkeypatch.setattr(
        kmeans, "_frames_of_block", lambda *a, **o: blocks.append(a) or read(*a, **o)
    )
    options = dict(num_clusters=8, kmeans_hours=0.9 / 3600)
    make_tokenizer(data_dir, tmp_path / "tokenizer", "logmel", **options)
    assert len(blocks) == 2  # of five utterances of 0.5 to 0.9 s


def test_too_few_frames_are_refused_and_nothing_is_written(data_dir, tmp_path):
    with pytest.raises(ValueError, match="50 clusters needs .* 250 frames.* has 175"):
        make_tokenizer(data_dir, tmp_path / "tokenizer", "logmel", num_clusters=50)
    assert not (tmp_path / "tokenizer").exists()


def test_audio_that_cannot_be_read_is_left_out(data_dir, tmp_path, caplog):
    (data_dir / "utt3.wav").write_bytes(b"")
    info = make_tokenizer(data_dir, tmp_path / "tokenizer", "logmel", num_clusters=8)
    assert info.learned_on["frames"] == 175 - 40
    assert "left out of k-means" in caplog.text and "utt3" in caplog.text


def test_a_training_set_that_is_not_valid_is_refused(data_dir, tmp_path):
    wav_scp = data_dir / "wav.scp"
    wav_scp.write_text("".join(wav_scp.read_text().splitlines(True)[1:]))
    with pytest.raises(ValueError, match="utterance utt0 is in .*text, not in wav.scp"):
        make_tokenizer(data_dir, tmp_path / "tokenizer", "logmel", num_clusters=8)


def test_encoders_of_tokens_have_nothing_to_cluster(
    data_dir, tmp_path, opuslm, monkeypatch
):
    monkeypatch.setattr(kmeans, "make_encoder", lambda spec, device: opuslm)
    with pytest.raises(ValueError, match="num_clusters: the tokenizer opuslm gives"):
        make_tokenizer(data_dir, tmp_path / "tokenizer", "opuslm", num_clusters=5)
    info = make_tokenizer(data_dir, tmp_path / "tokenizer", "opuslm")
    assert info.vocab_sizes == (12, 16, 16)
    assert info.encoder["ssl_hf_model_tag"] == "espnet/xeus"
    assert sorted(p.name for p in (tmp_path / "tokenizer").iterdir()) == [INFO]
    with pytest.raises(ValueError, match="repeats can be removed from one stream"):
        make_tokenizer(data_dir, tmp_path / "other", "opuslm", remove_repeats=True)


@pytest.mark.parametrize("name", ["hubert", "whisper"])
def test_kmeans_over_ssl_and_whisper(name, request, data_dir, tmp_path):
    if name == "whisper":
        spec = "encoder: ctranslate2_whisper\nmodel: {}"
    else:
        spec = "encoder: frontend\nfrontend: huggingface\nfrontend_conf:\n  model: {}\n"
    path = tmp_path / f"{name}.yaml"
    path.write_text(spec.format(request.getfixturevalue(f"{name}_dir")))
    info = make_tokenizer(data_dir, tmp_path / "tokenizer", str(path), num_clusters=8)
    assert info.name == name and len(info.encoder["sha256"]) == 64
    assert (tmp_path / "tokenizer" / CENTRES).is_file()
    torch.manual_seed(0)
    (tokens,) = load_tokenizer(tmp_path / "tokenizer")([torch.randn(8000) * 0.1])
    assert tokens.shape == (25, 1) and 0 <= tokens.min() and tokens.max() < 8

"""Bad utterances: named where none is allowed, counted and left out where some are."""

import numpy as np
import pytest
import soundfile
from espnet2.train.dataset import ESPnetDataset

from espnet_dus.data.ctc_units import CTCUnits, llm_text
from espnet_dus.data.dataset import (
    BadUtterances,
    DUSCollateFn,
    DUSPreprocessor,
    FaultTolerantDataset,
    NonEmptyBatches,
    TooManyBadUtterances,
    check_speech_tokenizer,
    token_frames,
)
from espnet_dus.data.speech_tokens.info import TokenizerInfo
from espnet_dus.task import DUSTask

MIN_LENGTH = 2800


@pytest.fixture
def corpus(tmp_path, noises):
    """A good utterance, and one of each kind of fault."""
    (speech,) = noises(0.5)
    speeches = {
        "good": speech,
        "nan": np.where(np.arange(len(speech)) == 70, np.float32("nan"), speech),
        "inf": np.where(np.arange(len(speech)) == 70, np.float32("inf"), speech),
        "short": speech[: MIN_LENGTH - 1],
        "fits": speech[:MIN_LENGTH],
        "untranscribed": speech,
    }
    wav_scp = text = ""
    for key, samples in speeches.items():
        soundfile.write(tmp_path / f"{key}.wav", samples, 16000, subtype="FLOAT")
        wav_scp += f"{key} {tmp_path}/{key}.wav\n"
        text += f"{key} {'' if key == 'untranscribed' else 'HELLO WORLD'}\n"
    (tmp_path / "broken.wav").write_bytes(b"RIFF, but no more")
    wav_scp += f"broken {tmp_path}/broken.wav\nmissing {tmp_path}/missing.wav\n"
    (tmp_path / "wav.scp").write_text(wav_scp)
    (tmp_path / "text").write_text(text + "broken YES\nmissing YES\n")
    return tmp_path


@pytest.fixture
def open_dataset(corpus, tiny_base_lm_dir):
    """The dataset as the task builds it, with a limit of bad utterances."""

    def make(limit):
        bad = BadUtterances(corpus / "exp" / "bad_utterances.txt", limit)
        preprocessor = DUSPreprocessor(
            tiny_base_lm_dir,
            train=True,
            bad_utterances=bad,
            min_length=MIN_LENGTH,
        )
        dataset = ESPnetDataset(
            [
                (str(corpus / "wav.scp"), "speech", "sound"),
                (str(corpus / "text"), "text", "text"),
            ],
            preprocess=preprocessor,
        )
        return FaultTolerantDataset(dataset, bad)

    return make


FAULTS = {
    "nan": "NaN or infinite values in the speech",
    "inf": "NaN or infinite values in the speech",
    "short": "2799 samples or frames, the subsampling needs 2800",
    "untranscribed": "the transcript is empty",
    "broken": "broken.wav",
    "missing": "missing.wav",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_utterance_is_an_error_that_names_it(open_dataset, fault):
    with pytest.raises(TooManyBadUtterances) as error:
        open_dataset(0)[fault]
    message = str(error.value)
    assert fault in message.split(":")[0] and FAULTS[fault] in message
    assert "0 are allowed (--max_bad_utterances); see " in message


def test_bad_utterances_are_counted_once_each_until_there_are_too_many(
    open_dataset, corpus
):
    dataset = open_dataset(len(FAULTS) - 1)
    for _ in range(3):  # epochs
        for fault in list(FAULTS)[:-1]:
            assert dataset[fault] == (fault, {})
    lines = (corpus / "exp" / "bad_utterances.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == list(FAULTS)[:-1]
    for line, reason in zip(lines, FAULTS.values()):
        assert reason in line
    with pytest.raises(TooManyBadUtterances, match="6 bad utterance.* 5 are allowed"):
        dataset["missing"]


def test_processes_and_resumed_runs_count_together(open_dataset):
    for fault in ("nan", "short"):
        assert open_dataset(2)[fault][1] == {}  # each its own object, as in a worker
    with pytest.raises(TooManyBadUtterances, match="utterance inf: .*3 bad"):
        open_dataset(2)["inf"]


def test_a_good_utterance_is_not_touched(open_dataset, tiny_lm, corpus):
    for key in ("good", "fits"):
        uid, data = open_dataset(0)[key]
        samples, _ = soundfile.read(corpus / f"{key}.wav", dtype="float32")
        assert uid == key and np.array_equal(data["speech"], samples)
        assert tiny_lm[1].decode(data["text"]) == llm_text("HELLO WORLD")
    assert not (corpus / "exp").exists()


def test_text_before_the_speech_becomes_ids_with_special_tokens(
    tiny_options, tiny_lm, noises
):
    options = tiny_options()
    preprocess = DUSTask.build_preprocess_fn(options, train=True)
    befores = ["<|im_start|>the cat<|im_end|>", "yes"]
    utterances = [
        (uid, preprocess(uid, {"speech": speech, "text": "GO", "text_before": before}))
        for uid, speech, before in zip("ab", noises(0.5, 0.5), befores)
    ]
    expected = [
        tiny_lm[1](before, add_special_tokens=False).input_ids for before in befores
    ]
    special = tiny_lm[1].convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert [expected[0][0], expected[0][-1]] == special
    _, batch = DUSTask.build_collate_fn(options, train=True)(utterances)
    lengths = batch["text_before_lengths"].tolist()
    assert lengths == [len(ids) for ids in expected]
    for row, ids in zip(batch["text_before"].tolist(), expected):
        assert row[: len(ids)] == ids and set(row[len(ids) :]) <= {-1}
    assert "text_before" in DUSTask.optional_data_names()


def test_the_dataset_tells_its_names(open_dataset):
    dataset = open_dataset(0)
    assert sorted(dataset.names()) == ["speech", "text"]
    assert dataset.has_name("text") and not dataset.has_name("spk")


def test_without_a_place_to_count_a_bad_utterance_is_an_error(tiny_base_lm_dir):
    preprocessor = DUSPreprocessor(tiny_base_lm_dir, train=True)
    with pytest.raises(ValueError, match="utterance u1: NaN"):
        preprocessor("u1", {"speech": np.array([np.nan]), "text": "A"})


def test_the_others_of_a_batch_go_on_and_a_batch_of_bad_ones_disappears(open_dataset):
    dataset, collate = open_dataset(9), DUSCollateFn()
    batches = [["good", "nan", "fits"], ["short", "broken"], ["fits"]]
    loader = [collate([dataset[key] for key in keys]) for keys in batches]
    left = NonEmptyBatches(loader)
    assert [keys for keys, _ in left] == [["good", "fits"], ["fits"]]
    assert len(left) == 3  # an upper bound: what is bad is known when it is read
    _, batch = next(iter(left))
    assert batch["speech"].shape == (2, 8000)
    assert batch["speech_lengths"].tolist() == [8000, MIN_LENGTH]


@pytest.mark.parametrize("unit_type", ["char", "llm"])
def test_tokens_and_ctc_units_are_made_of_the_cleaned_transcript(
    tiny_lm, tiny_base_lm_dir, ctc_units_dirs, noises, unit_type
):
    tokenizer = tiny_lm[1]
    units = CTCUnits(ctc_units_dirs[unit_type], tokenizer)
    preprocessor = DUSPreprocessor(tiny_base_lm_dir, train=True, ctc_units=units)
    preprocessor.text_cleaner = str.upper
    data = preprocessor("u1", {"speech": noises(0.1)[0], "text": "hello world"})
    assert tokenizer.decode(data["text"]) == llm_text("HELLO WORLD")
    assert units.decode(data["text_ctc"]) == "HELLO WORLD"
    assert data["text_ctc"].dtype == np.int64
    if unit_type == "llm":  # a draft that the LLM can verify as it stands
        tokens = [units.units[unit] for unit in data["text_ctc"]]
        assert tokenizer.convert_tokens_to_ids(tokens) == data["text"].tolist()


# -- speech tokens


TWO_STREAMS = TokenizerInfo("toy", {}, 50.0, 16000, (5, 3), sha256="0" * 64)


def test_tokens_are_shaped_into_frames():
    vector = np.array([4, 2, 0, 0, 3, 1], dtype=np.int32)
    tokens = token_frames(vector, TWO_STREAMS)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == [[4, 2], [0, 0], [3, 1]]
    assert token_frames(tokens, TWO_STREAMS).tolist() == tokens.tolist()


@pytest.mark.parametrize(
    "vector, message",
    [
        ([4, 2, 0], "3 speech tokens do not fill frames of 2 streams"),
        ([4, 2, 0, 3], r"token 3 in frame 1, stream 1: .* toy has tokens from 0 to 2"),
        ([-1, 0], "token -1 in frame 0, stream 0: .* from 0 to 4"),
        ([0.5, 1.0], "expected speech tokens .* got float64"),
    ],
)
def test_what_is_no_token_of_the_tokenizer_is_refused(vector, message):
    with pytest.raises(ValueError, match=message):
        token_frames(np.array(vector), TWO_STREAMS)


def test_data_of_another_tokenizer_are_refused_by_name(tmp_path):
    path = str(tmp_path / "feats.scp")
    triples = [(path, "speech", "kaldi_ark")]
    check_speech_tokenizer(triples, TWO_STREAMS)  # nothing is recorded
    (tmp_path / "tokenizer").write_text(f"toy {'0' * 64}\n")
    check_speech_tokenizer(triples, TWO_STREAMS)
    (tmp_path / "tokenizer").write_text(f"other {'1' * 64}\n")
    with pytest.raises(RuntimeError, match=f"{path} belongs to .* other .* is toy"):
        check_speech_tokenizer(triples, TWO_STREAMS)


def test_the_task_trains_on_tokens_and_counts_those_outside_the_table(
    tiny_options, tmp_path
):
    info = TokenizerInfo("toy", {}, 50.0, 16000, (5, 3)).write(tmp_path / "tokenizer")
    args = tiny_options(
        speech_input="tokens",
        speech_tokenizer=str(tmp_path / "tokenizer"),
        speech_embedder_conf={},
        output_dir=str(tmp_path),
        max_bad_utterances=1,
    )
    preprocess = DUSTask.build_preprocess_fn(args, True)
    data = {"speech": np.array([4, 2, 0, 1]), "text": "hello"}
    assert preprocess("a", data)["speech"].tolist() == [[4, 2], [0, 1]]
    batch = [("a", preprocess("a", data))]
    data = {"speech": np.array([1, 1, 2, 2, 3, 0]), "text": "hello"}
    batch.append(("b", preprocess("b", data)))
    assert preprocess("c", {"speech": np.array([5, 0]), "text": "hello"}) == {}
    reason = (tmp_path / "bad_utterances.txt").read_text()
    assert reason.startswith("c ") and f"tokenizer {info.name}" in reason
    _, batch = DUSTask.build_collate_fn(args, True)(batch)
    assert batch["speech"].tolist()[0] == [[4, 2], [0, 1], [-1, -1]]
    assert batch["speech_lengths"].tolist() == [2, 3]

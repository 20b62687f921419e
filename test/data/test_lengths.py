"""Lengths of speech tokens, from samples to positions and back."""

from argparse import Namespace

import pytest

from espnet_dus.data import lengths
from espnet_dus.data.speech_tokens.info import TokenizerInfo


@pytest.fixture
def args(tmp_path):
    TokenizerInfo("toy", {}, 50.0, 8000, (5,)).write(tmp_path)
    return Namespace(speech_input="tokens", speech_tokenizer=str(tmp_path))


def test_a_frame_of_tokens_is_a_speech_position(args):
    assert lengths.sampling_rate(args) == 8000
    assert lengths.input_rate(args) == 50.0
    assert lengths.min_length(args) == 1
    # a frame for each 160 samples, the last of which may be incomplete
    assert [lengths.speech_positions(args, n) for n in (1, 160, 161, 8000)] == [
        *(1, 1, 2, 50),
    ]
    for positions in (1, 7, 50):
        samples = lengths.samples_of_positions(args, positions)
        assert lengths.speech_positions(args, samples) == positions
        assert lengths.speech_positions(args, samples - 1) == positions - 1


def test_a_token_stands_for_the_middle_of_its_frame(args):
    assert lengths.position_times(args) == pytest.approx((0.01, 0.02))


def test_tokens_without_a_tokenizer_are_an_error_that_says_what_to_do():
    args = Namespace(speech_input="tokens", speech_tokenizer=None)
    with pytest.raises(ValueError, match="tokens needs .* with --feats_type tokens"):
        lengths.tokenizer_info(args)

"""The options of a search are checked by name."""

from dataclasses import asdict

import pytest

from espnet_dus.search.config import SearchConfig


def test_a_dict_of_options_is_a_configuration():
    config = SearchConfig.make({"beam_size": 4, "ctc_weight": 0.5})
    assert (config.beam_size, config.ctc_weight, config.nbest) == (4, 0.5, 1)
    assert SearchConfig.make(config) is config
    assert SearchConfig.make(None) == SearchConfig()
    assert SearchConfig(**asdict(config)) == config


def test_an_unknown_option_is_an_error():
    with pytest.raises(ValueError, match="unknown option.*beamsize.*beam_size"):
        SearchConfig.make({"beamsize": 4})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"beam_size": 0}, "beam_size: 0"),
        ({"beam_size": 2, "nbest": 3}, "nbest: 3"),
        ({"beam_size": 2, "ctc_weight": 1.5}, "ctc_weight: 1.5"),
        ({"maxlenratio": -1.0}, "maxlenratio: -1"),
        ({"repetition": 1}, "repetition: 1"),
        ({"no_speech": 1.0}, "no_speech: 1"),
        ({"draft": True, "beam_size": 2}, "draft.*greedy.*beam_size is 2"),
        ({"ctc_weight": 0.3}, "ctc_weight: 0.3 has no effect"),
        ({"penalty": 0.3}, "penalty: 0.3 has no effect"),
        ({"word_reward": 0.3}, "word_reward: 0.3 has no effect"),
    ],
)
def test_a_value_that_does_not_fit_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        SearchConfig.make(options)

"""Options that YAML reads otherwise than they are meant."""

import pytest

from espnet_dus.model.build import build_model, check_numbers


@pytest.mark.parametrize(
    "conf, where",
    [
        ({"lr": "8e-4"}, "x: lr=8e-4"),
        ({"a": {"b": [1.0, "2e1"]}}, "x: a: b=2e1"),
        ({"a": ".5E+3"}, "x: a=.5E+3"),
        ({"a": "-3"}, "x: a=-3"),
        ({"a": "nan"}, "x: a=nan"),
    ],
)
def test_a_number_that_yaml_takes_for_text_gets_the_hint(conf, where):
    with pytest.raises(ValueError) as error:
        check_numbers("x", conf)
    message = str(error.value)
    assert message.startswith(f"{where} is text to YAML, not a number; write ")


def test_what_is_meant_as_text_passes():
    check_numbers("x", {"prompt": "Transcript 2:", "fs": "16k", "a": ["base:7", None]})


@pytest.mark.parametrize(
    "block",
    "adaptation_conf base_lm_conf ctc_conf frontend_conf model_conf optim_conf "
    "scheduler_conf specaug_conf speech_embedder_conf streaming_conf lr_scale".split(),
)
def test_every_block_of_the_configuration_is_checked(tiny_options, block):
    with pytest.raises(ValueError, match=f"{block}: value=4e-2 is text to YAML"):
        build_model(tiny_options(**{block: {"value": "4e-2"}}))

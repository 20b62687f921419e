"""Batches that fit: the search, what is counted, and the file that training reads."""

import pytest
import torch
import yaml

from espnet_dus.app import cli
from espnet_dus.data.lengths import samples_of_positions, speech_positions
from espnet_dus.data.speech_tokens.info import TokenizerInfo
from espnet_dus.task import DUSTask
from espnet_dus.training.batch_search import (
    default_lengths,
    find_batch_sizes,
    gradient_bytes,
    largest,
    make_batch,
    step_bytes,
)


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 8, 31, 100])
@pytest.mark.parametrize("most", [1, 8, 31, 1000])
def test_the_largest_number_is_found_in_few_trials(limit, most):
    tried = []

    def fits(number):
        tried.append(number)
        assert 1 <= number <= most
        return number <= limit

    assert largest(fits, most) == min(limit, most)
    assert len(tried) == len(set(tried)) <= 2 * most.bit_length() + 1


@pytest.mark.parametrize("input_layer", ["conv2d", "conv2d8"])
@pytest.mark.parametrize("center", [True, False])
def test_samples_are_the_fewest_for_their_positions(tiny_options, input_layer, center):
    args = tiny_options(
        speech_embedder_conf=dict(input_layer=input_layer),
        frontend_conf=dict(n_fft=400, hop_length=160, center=center),
    )
    for positions in (1, 2, 9, 100):
        samples = samples_of_positions(args, positions)
        assert speech_positions(args, samples) == positions
        assert speech_positions(args, samples - 1) == positions - 1


@pytest.fixture
def trial(tiny_options, tiny_model):
    """A tiny model, its optimizer and what gives samples for positions."""
    args, model = tiny_options(optim="adamw"), tiny_model().train()
    (optimizer,) = DUSTask.build_optimizers(args, model)
    return model, optimizer, lambda positions: samples_of_positions(args, positions)


def test_a_batch_has_exactly_its_llm_positions(trial):
    model, _, samples_of = trial
    for length in (32, 48, 160):
        batch = make_batch(model, 3, length, samples_of)
        speech, lengths = model.embed_speech(batch["speech"], batch["speech_lengths"])
        seq = model.join_text(speech, lengths, batch["text"], batch["text_lengths"])
        assert (seq.lengths_B + 1).tolist() == [length] * 3  # and EOS, a target only


def test_a_batch_of_speech_tokens_has_exactly_its_llm_positions(tiny_model, tmp_path):
    TokenizerInfo("opus", {"encoder": "log-mel"}, 50.0, 16000, (5, 3)).write(tmp_path)
    model = tiny_model(
        speech_input="tokens",
        speech_tokenizer=str(tmp_path),
        speech_embedder_conf={},
        frontend_conf={},
        model_conf=dict(ctc_weight=0.0, packing=True),
        ctc_units=None,
    ).train()
    batch = make_batch(model, 3, 48, samples_of=lambda positions: 320 * positions)
    speech, lengths = model.embed_speech(batch["speech"], batch["speech_lengths"])
    seq = model.join_text(speech, lengths, batch["text"], batch["text_lengths"])
    assert (seq.lengths_B + 1).tolist() == [48] * 3
    model(**batch)[0].backward()
    assert model.speech_embedder.table.weight.grad.any()


def test_more_and_longer_utterances_take_more_memory(trial):
    model, optimizer, samples_of = trial

    def used(batch_size, length):
        return step_bytes(
            model, optimizer, make_batch(model, batch_size, length, samples_of)
        )

    weights = sum(p.nbytes for p in model.parameters())
    assert weights < used(1, 32) < used(2, 32) < used(2, 64) < used(9, 64)
    assert used(2, 32) == used(2, 32)
    assert all(p.grad is None for p in model.parameters())


def test_what_is_found_fits_and_one_more_does_not(trial):
    model, optimizer, samples_of = trial
    before = {name: p.clone() for name, p in model.named_parameters()}
    limit = step_bytes(model, optimizer, make_batch(model, 9, 48, samples_of))
    limit += 2 * sum(p.nbytes for p in model.parameters() if p.requires_grad)  # AdamW
    sizes = find_batch_sizes(model, optimizer, samples_of, [96, 48], limit, most=64)
    assert list(sizes) == [48, 96] and 1 <= sizes[96] < sizes[48] <= 9
    for length, size in sizes.items():
        for batch_size, fits in ((size, True), (size + 1, False)):
            batch = make_batch(model, batch_size, length, samples_of)
            assert (step_bytes(model, optimizer, batch) <= limit) == fits
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_what_cannot_be_is_an_error(trial):
    with pytest.raises(ValueError, match="not even one utterance of 32 LLM positions"):
        find_batch_sizes(*trial, [32], max_bytes=1000)
    with pytest.raises(ValueError, match="expected multiples of 16 from 32 on, got 40"):
        find_batch_sizes(*trial, [40], max_bytes=1000)


def test_the_command_writes_what_training_reads(
    tmp_path, tiny_base_lm_dir, ctc_units_dirs, capsys
):
    from espnet_dus.data.shards.build import read_batch_sizes

    config, out = tmp_path / "train.yaml", tmp_path / "sizes.yaml"
    conf = dict(cgmlp_linear_units=16)
    config.write_text(
        yaml.safe_dump(
            dict(
                base_lm_conf=dict(dtype="float32"),
                speech_embedder_conf=dict(channels=4),
                adaptation_conf=conf,
                normalize="global_mvn",
            )
        )
    )
    command = f"--config {config} --base_lm {tiny_base_lm_dir} --out {out} "
    command += "--device cpu --lengths 32 64 --most 4 --ctc_units "
    command += f"{ctc_units_dirs['llm']} --adaptation_conf positions=[0]"
    with pytest.raises(SystemExit):
        cli.main(["find_batch", *command.split()])
    assert "--max_memory: on a CPU, say" in capsys.readouterr().err
    cli.main(["find_batch", *command.split(), "--max_memory", "1"])
    assert read_batch_sizes(str(out)) == {32: 4, 64: 4}
    assert "train.yaml on tiny-random-llama, CPU" in out.read_text()


def test_ddp_has_a_second_copy_of_the_gradients(trial):
    model = trial[0]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert gradient_bytes(model) == 4 * trained > 0


def test_checkpointing_and_ddp_are_heeded(
    tmp_path, tiny_base_lm_dir, ctc_units_dirs, capsys
):
    found = {}
    for name, more in (
        ("plain", []),
        ("checkpointing", ["--gradient_checkpointing", "true"]),
        ("ddp", ["--num_processes", "2"]),
    ):
        (tmp_path / "train.yaml").write_text("base_lm_conf: {dtype: float32}\n")
        command = f"--config {tmp_path}/train.yaml --base_lm {tiny_base_lm_dir} --out "
        command += f"{tmp_path}/{name} --device cpu --lengths 128 --max_memory 0.1 "
        command += f"--ctc_units {ctc_units_dirs['llm']} --speech_embedder_conf "
        command += "channels=4 --adaptation_conf positions=[0]"
        cli.main(["find_batch", *command.split(), *more])
        written = yaml.safe_load((tmp_path / name).read_text())
        found[name] = written["streaming_conf"]["batch_sizes"][128]
    assert found["ddp"] <= found["plain"] < found["checkpointing"]


def test_buckets_reach_the_longest_utterance(tiny_options):
    # 30 s: 2,998 frames, 373 speech positions, 375 tokens, 3 of a prompt, EOS
    args = tiny_options(streaming_conf={})
    lengths = default_lengths(args, 3)
    assert lengths[:2] == [64, 96] and lengths[-1] == 752
    args = tiny_options(streaming_conf=dict(max_duration=10.0, max_text_rate=6))
    assert default_lengths(args, 3)[-1] == 192

"""An update of several batches is that of one big batch, and no batch is lost."""

import math
from functools import partial

import pytest
import torch

from espnet_dus.data.lengths import input_positions
from espnet_dus.training.accumulation import as_one_batch

SECONDS = (1.3, 1.2, 0.9, 1.3)  # transcripts of 17, 10, 3 and 9 characters or so


def gradient(model):
    parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(parts)


@pytest.fixture
def num_positions(tiny_options):
    """Return a function that maps samples to speech positions, as a training does."""
    return partial(input_positions, tiny_options())


def update(model, batches, accum_grad, num_positions):
    """Add up gradients as ESPnet's Trainer does, over one window; give the loss too."""
    model.zero_grad()
    losses = []
    for _, batch in as_one_batch(batches, accum_grad, num_positions):
        loss, stats, weight = model(**batch)
        assert weight == 1
        (loss / accum_grad).backward()
        losses.append(float(stats["loss"]))
    return gradient(model), sum(losses) / len(losses)


@pytest.fixture
def model(tiny_model, randomise):
    """A model without what is random, such as dropout."""
    return randomise(tiny_model(model_conf=dict(prompt="T:")), seed=1).eval()


@pytest.mark.parametrize(
    "split", [[[0, 1, 2], [3]], [[2], [0, 1, 3]], [[0], [2], [1, 3]]]
)
@pytest.mark.parametrize("seconds", [SECONDS, (0.3, *SECONDS[1:])])
def test_accumulated_gradients_and_losses_are_those_of_one_batch(
    model, tiny_batch, num_positions, split, seconds
):
    model.zero_grad()
    whole_loss, statistics, _ = model(**tiny_batch(*seconds))
    # CTC cannot place a transcript of more units than the speech has positions
    assert (statistics["ctc_skipped"] > 0) == (seconds != SECONDS)
    whole_loss.backward()
    whole = gradient(model)
    batches = [("x", tiny_batch(*seconds, which=which)) for which in split]
    for accum_grad in (len(split), len(split) + 2):  # with fillers too
        accumulated, loss = update(model, batches, accum_grad, num_positions)
        torch.testing.assert_close(accumulated, whole, rtol=1e-4, atol=1e-6)
        assert loss == pytest.approx(whole_loss.item(), rel=1e-5)


def test_validation_does_not_depend_on_the_batches(model, tiny_batch):
    def means(split):
        sums = {}
        for which in split:
            batch = tiny_batch(*SECONDS, which=which)
            for name, pair in model.loss_sums(**batch).items():
                sums[name] = sums.get(name, 0) + torch.stack(pair)
        return {name: (total / count).item() for name, (total, count) in sums.items()}

    whole = means([[0, 1, 2, 3]])
    assert set(whole) == {"loss_ce", "acc", "loss_ctc", "ctc_skipped", "wer_ctc"}
    for split in ([[0], [1], [2], [3]], [[0, 1], [2, 3]], [[2], [0, 1, 3]]):
        assert means(split) == pytest.approx(whole, rel=1e-5)


def batch_of(*lengths):
    lengths_B = torch.tensor(lengths)
    return dict(text=torch.ones(len(lengths), 9), text_lengths=lengths_B)


def test_an_update_is_completed_by_fillers_that_weigh_nothing():
    batches = [(["a", "b"], batch_of(4, 5)), (["c"], batch_of(6)), (["d"], batch_of(2))]
    given = list(as_one_batch(iter(batches), 2, int))
    assert [ids for ids, _ in given] == [["a", "b"], ["c"], ["d"], []]
    # tokens and EOS: (5 + 6 + 7) / 2 batches, then 3 / 2, without CTC units
    denominators = [batch["loss_denominators"].tolist() for _, batch in given]
    assert denominators == [[9, 0.5], [9, 0.5], [1.5, 0.5], [math.inf, math.inf]]
    filler = given[-1][1]
    assert filler["text"].shape == (1, 9) and filler["text_lengths"].tolist() == [2]
    assert list(as_one_batch([], 2, int)) == []

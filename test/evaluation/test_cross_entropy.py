"""The cross-entropy of transcripts."""

import json

import pytest
import soundfile
import torch
import yaml

from espnet_dus.evaluation.cross_entropy import cross_entropy
from espnet_dus.model.checkpoint import checkpoint_sha256


@pytest.fixture
def model_files(tmp_path, tiny_options, tiny_model):
    """config.yaml and checkpoint of a tiny model with label smoothing."""

    def make(**model_conf):
        options = dict(model_conf={"prompt": "Transcript:", **model_conf})
        config, checkpoint = tmp_path / "config.yaml", tmp_path / "model.pth"
        args = {**vars(tiny_options(**options)), "output_dir": f"{tmp_path}/exp"}
        config.write_text(yaml.safe_dump(args))
        model = tiny_model(**options)
        torch.save(model.state_dict(), checkpoint)
        return config, checkpoint, model.eval()

    return make


@pytest.fixture
def triples(tmp_path, noises, transcripts):
    """A data set of two utterances."""
    scp, text = tmp_path / "wav.scp", tmp_path / "text"
    for i, speech in enumerate(noises(0.7, 1.1)):
        soundfile.write(tmp_path / f"{i}.wav", speech, 16000, subtype="FLOAT")
    scp.write_text("".join(f"utt{i} {tmp_path}/{i}.wav\n" for i in range(2)))
    text.write_text("".join(f"utt{i} {transcripts[i]}\n" for i in range(2)))
    return [f"{text},text,text", f"{scp},speech,sound"]


@torch.no_grad()
def test_it_is_the_loss_of_each_utterance_without_label_smoothing(
    model_files, triples, tiny_batch, tmp_path
):
    config, checkpoint, model = model_files(lsm_weight=0.1)
    metric = cross_entropy(config, checkpoint, triples, tmp_path / "hyp")
    model.lsm_weight = 0.0
    sums = [
        model.loss_sums(**tiny_batch(0.7, 1.1, which=[i]))["loss_ce"] for i in range(2)
    ]
    expected = torch.tensor(sums, dtype=torch.double)
    assert metric.items == pytest.approx(expected.numpy(), rel=1e-5)
    assert metric.score == pytest.approx(
        float(expected[:, 0].sum() / expected[:, 1].sum())
    )
    written = json.loads((tmp_path / "hyp/score_ce/result.json").read_text())
    assert written["utterances"] == ["utt0", "utt1"]
    assert written["score"] == metric.score
    assert written["checkpoint"] == checkpoint_sha256(checkpoint)


def test_a_model_of_ctc_alone_has_none(model_files, triples, tmp_path):
    config, checkpoint, _ = model_files(ctc_weight=1.0)
    assert cross_entropy(config, checkpoint, triples, tmp_path / "hyp") is None
    assert not (tmp_path / "hyp").exists()

"""Tiny models for the searches, of every arm."""

import pytest
import torch
import yaml

from espnet_dus.search.config import SearchConfig
from espnet_dus.search.encoding import encode

# name -> (adaptation, its options, ctc_layer, ctc_compression or nothing); for dus
# (kind, scope, positions)
ARMS = {
    "transformer-all": ("dus", ("transformer", "all", (0, 2)), "inserted:0"),
    "transformer-speech": ("dus", ("transformer", "speech", (0, 2)), "inserted:-1"),
    "e_branchformer-all": ("dus", ("e_branchformer", "all", (-1, 1)), "inserted:0"),
    "e_branchformer-speech": (
        "dus",
        ("e_branchformer", "speech", (0, 2)),
        "inserted:0",
    ),
    # inserted layers that are an encoder
    "encoder": ("dus", ("e_branchformer", "speech", (-1, -1)), "inserted:-1"),
    "compressed": ("dus", ("e_branchformer", "speech", (-1, -1)), "inserted:-1", True),
    "lora": ("lora", {"rank": 2}, "base:1"),
    "full": ("full", {}, "base:1"),
    "frozen": ("frozen", {}, "base:0"),
}


@pytest.fixture(params=ARMS)
def arm(request):
    """The name of each arm."""
    return request.param


@pytest.fixture(scope="session")
def make_arm(tiny_model, adaptation_conf, randomise):
    """Return a function that makes a tiny model of an arm, in some training state.

    With `trained` false it is as training begins.
    """

    def make(name, trained=True, **options):
        adaptation, conf, ctc_layer, *compression = ARMS[name]
        if adaptation == "dus":
            conf = adaptation_conf(*conf)
        model = tiny_model(
            adaptation=adaptation,
            adaptation_conf=conf,
            model_conf={
                "prompt": "Transcript:\n",
                "ctc_layer": ctc_layer,
                "ctc_compression": bool(compression),
            },
            **options,
        ).eval()
        if not trained:
            return model
        randomise(model.lm, seed=3)
        randomise(model.ctc, seed=4, std=0.3)
        return model

    return make


@pytest.fixture(scope="session")
def experiment(tiny_model, tiny_options, randomise, tmp_path_factory):
    """The directory of a tiny model, as a training leaves it."""
    directory = tmp_path_factory.mktemp("exp")
    (directory / "config.yaml").write_text(yaml.safe_dump(vars(tiny_options())))
    model = tiny_model()
    randomise(model.lm, seed=3)
    # far from ties between alignments, which batch mates' rounding would decide
    randomise(model.ctc, seed=4, std=0.3)
    torch.save(model.state_dict(), directory / "valid.acc.ave.pth")
    return directory


@pytest.fixture(scope="session")
def encode_all():
    """Return a function that encodes waveforms as one batch, with CTC."""

    def encode_all(model, speeches, with_ctc=True):
        speeches = [torch.as_tensor(speech) for speech in speeches]
        lengths = torch.tensor([len(speech) for speech in speeches])
        padded = torch.nn.utils.rnn.pad_sequence(speeches, batch_first=True)
        return encode(model, padded, lengths, with_ctc)

    return encode_all


@pytest.fixture(scope="session")
def full_logits():
    """Return a function that computes the logits (N, V) of N tokens in one pass.

    Without search and cache; those of the first stand before it.
    """

    @torch.no_grad()
    def logits(model, speech, ids):
        read, lengths = model.embed_speech(
            torch.from_numpy(speech)[None], torch.tensor([len(speech)])
        )
        if model.compression is not None:
            read, lengths = model.compress(model.hear(read, lengths), lengths)
        text = torch.tensor([ids])
        seq = model.join_text(read, lengths, text, torch.tensor([len(ids)]))
        compressed = model.compression is not None
        lower_BTD = seq.inputs_BTD if compressed else model.lower(seq)
        hidden_BTD = model.upper(lower_BTD, seq)
        first = int(lengths) + len(model.prompt_ids) - 1
        return model.lm.lm_head(hidden_BTD)[0, first : first + len(ids)]

    return logits


@pytest.fixture(scope="session")
def config():
    """Return a function that makes a SearchConfig without the guards against loops."""

    def config(**options):
        return SearchConfig(**{"repetition": 0, **options})

    return config


@pytest.fixture(scope="session")
def trained_model(make_arm, tiny_batch):
    """A model that has seen four utterances, of 1.3, 1.6, 0.9 and 1.4 s, for long.

    It has memorized its transcripts, more or less.
    """
    model = make_arm("encoder", trained=False)
    batch = tiny_batch(1.3, 1.6, 0.9, 1.4)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    model.train()
    for _ in range(200):
        optimizer.zero_grad()
        model(**batch)[0].backward()
        optimizer.step()
    return model.eval()

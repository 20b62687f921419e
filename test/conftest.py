"""A base LM small enough to build in a second, shared by the tests."""

import json

import pytest

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = (
    "HELLO WORLD HOW ARE YOU TODAY the cat sat on the mat and the dog ran after it "
    "one two three four five six seven eight nine ten yes no stop go help rubout "
) * 4


@pytest.fixture(scope="session")
def tiny_base_lm_dir(tmp_path_factory):
    """Directory of a random Llama with a byte-level BPE tokenizer and identity.json."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from espnet_dus.base_lm import weights_sha256

    directory = tmp_path_factory.mktemp("tiny_base_lm")

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([CORPUS], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=SPECIAL_TOKENS[1:],
    )
    tokenizer.save_pretrained(directory)

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(directory)
    identity = {
        "name": "tiny-random-llama",
        "revision": "test",
        "sha256": weights_sha256(directory),
    }
    (directory / "identity.json").write_text(json.dumps(identity))
    return directory


@pytest.fixture
def tiny_lm(tiny_base_lm_dir):
    """A fresh copy of the tiny base LM, float32, in eval mode: (model, tokenizer)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_base_lm_dir, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(tiny_base_lm_dir)

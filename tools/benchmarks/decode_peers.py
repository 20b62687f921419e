"""The peers of tools/benchmarks/decode.py, each behind the same call.

A peer is made of what it needs and then called with one waveform (float32, 16 kHz); it
returns the transcript and the number of tokens it wrote, or None where it has none.
"""

import re
from pathlib import Path

import numpy as np

TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
TEENS = (
    "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
).split()
ONES = "zero one two three four five six seven eight nine".split()
ORDINALS = {"first": "1", "second": "2", "third": "3", "fifth": "5", "eighth": "8"}
ORDINALS |= {"ninth": "9", "twelfth": "12", "twentieth": "20", "thirtieth": "30"}


class ESPnet:
    """ESPnet's own path for a decoder-only LLM, through its `Speech2Text`.

    Encoder and linear layer are random and as small as they can be (one layer), which
    favours this side; the base LM's weights are ours, the subsampling too, so that as
    many speech positions reach it. As nothing was trained, it would not stop where a
    trained model does: the tokens of each utterance are given.

    Args:
        train_args: Of our model.
        directory: For its configuration.
    """

    def __init__(self, train_args, directory: Path):
        import yaml
        from espnet2.bin.asr_inference import Speech2Text
        from transformers import AutoTokenizer

        base_lm = train_args.base_lm
        tokenizer = AutoTokenizer.from_pretrained(base_lm)
        embedder = {"input_layer": "conv2d8", **train_args.speech_embedder_conf}
        config = dict(
            token_type="hugging_face",
            token_list=tokenizer.convert_ids_to_tokens(range(len(tokenizer))),
            bpemodel=str(base_lm),
            frontend="default",
            frontend_conf=dict(train_args.frontend_conf),
            input_size=None,
            specaug=None,
            normalize="utterance_mvn",
            normalize_conf={},
            encoder="transformer",
            encoder_conf=dict(
                input_layer=embedder["input_layer"], num_blocks=1, output_size=256
            ),
            decoder="hugging_face_transformers",
            decoder_conf=dict(
                model_name_or_path=str(base_lm),
                causal_lm=True,
                postfix=train_args.model_conf.get("prompt", ""),
                # its frontend works in float32 alone, and it has no autocast
                overriding_architecture_config=dict(dtype="float32"),
            ),
            model="espnet",
            model_conf=dict(ctc_weight=0.0),
            ctc_conf={},
            init=None,
        )
        (directory / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
        self.speech2text = Speech2Text(
            asr_train_config=str(directory / "config.yaml"),
            hugging_face_decoder=True,
            hugging_face_decoder_conf=dict(num_beams=1, do_sample=False),
        )

    def __call__(self, speech: np.ndarray, num_tokens: int):
        """Write this many tokens, EOS included."""
        self.speech2text.hugging_face_decoder_conf.update(
            max_new_tokens=num_tokens, min_new_tokens=num_tokens
        )
        ((text, _, _, hypothesis),) = self.speech2text(speech)
        return text, len(hypothesis.yseq) - 1


class FasterWhisper:
    """faster-whisper in int8, greedy, without timestamps: its fastest way.

    Args:
        model: Directory of a CTranslate2 model.
        threads: Of its own.
    """

    def __init__(self, model: str, threads: int):
        from faster_whisper import WhisperModel

        self.model = WhisperModel(
            model, device="cpu", compute_type="int8", cpu_threads=threads
        )

    def __call__(self, speech: np.ndarray, _):
        """Transcribe; Whisper works on 30 s, however short the speech."""
        segments, _ = self.model.transcribe(
            speech, language="en", beam_size=1, without_timestamps=True
        )
        segments = list(segments)
        text = " ".join(segment.text for segment in segments)
        return text, sum(len(segment.tokens) for segment in segments)


class PocketSphinx:
    """pocketsphinx with the US English model in its package."""

    def __init__(self):
        from pocketsphinx import Decoder

        self.decoder = Decoder(loglevel="FATAL")

    def __call__(self, speech: np.ndarray, _):
        """Transcribe."""
        samples = np.clip(np.rint(speech * 32768.0), -32768, 32767).astype(np.int16)
        self.decoder.start_utt()
        self.decoder.process_raw(samples.tobytes(), full_utt=True)
        self.decoder.end_utt()
        found = self.decoder.hyp()
        return (found.hypstr if found else ""), None


# -- one spelling for all ------------------------------------------------------------


def normalize(text: str, vocabulary: set) -> str:
    """Return a transcript in a spelling that does not depend on its author.

    "Erase CQQ-F7", "erase c q q f seven" -> "erase c q q f 7"; "11:27", "eleven twenty
    seven" -> "1 1 2 7". Lower case without punctuation; numbers, words or digits, as
    digits; what is not a word of the task, as single letters.

    Args:
        text: A transcript, of anyone.
        vocabulary: The words of the references, of two letters and more.
    """
    text = re.sub(r"(\d)(st|nd|rd|th)\b", r"\1", text.lower()).replace("'", "")
    words = re.findall(r"[^\W\d_]+|\d", text)
    tokens = []
    while words:
        word, *words = words
        following = words[0] if words else ""
        if number := _digits(word, following):
            tokens += number
        elif word + following in vocabulary and following:  # rub out, rubout
            tokens.append(word + words.pop(0))
        elif word in vocabulary:
            tokens.append(word)
        else:
            tokens += word
    return " ".join(tokens)


def _digits(word: str, following: str) -> str:
    """Return a number's digits, "" for other words; fifty is 5 before a digit."""
    if word == "oh":
        return "0"
    if word.isdigit():
        return word
    if word in ORDINALS:
        return ORDINALS[word]
    stem = word[:-2] if word.endswith("th") else word
    if word.endswith("ieth"):
        stem = word[:-4] + "y"
    for first, names in ((0, ONES), (10, TEENS)):
        if stem in names:
            return str(first + names.index(stem))
    if stem in TENS:
        tens = str(2 + TENS.index(stem))
        one = following in ONES[1:] or following in list(ORDINALS)[:6]
        one = one or following.removesuffix("th") in ONES[1:]
        return tens if one else tens + "0"
    return ""

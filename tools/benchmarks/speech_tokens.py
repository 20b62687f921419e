#!/usr/bin/env python3
"""Speed of speech tokenizers on one CPU core: audio seconds per second of CPU time.

The centres are random, which takes the same time. Example:
    tools/benchmarks/speech_tokens.py --tokenizers logmel whisper_tiny_en
"""

import argparse
import time

import numpy as np

from espnet_dus.data.speech_tokens.encoder_factory import TOKENIZERS, make_encoder
from espnet_dus.data.speech_tokens.info import TokenizerInfo
from espnet_dus.data.speech_tokens.tokenizer import SpeechTokenizer

CLUSTERS = 500


def main():
    """Print a line for each tokenizer and duration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizers", nargs="+", default=["logmel"])
    parser.add_argument("--durations", nargs="+", type=float, default=[3.0, 12.0])
    parser.add_argument("--utterances", type=int, default=5, help="of each duration")
    args = parser.parse_args()
    generator = np.random.default_rng(0)
    for name in args.tokenizers:
        encoder = make_encoder(TOKENIZERS[name])
        second = encoder([generator.normal(0, 0.1, encoder.sampling_rate)])[0]
        centres = generator.normal(size=(CLUSTERS, second.shape[1])).astype(np.float32)
        info = TokenizerInfo(name, {}, 50.0, encoder.sampling_rate, (CLUSTERS,))
        tokenizer = SpeechTokenizer(info, encoder, centres)
        for duration in args.durations:
            size = (args.utterances, round(duration * encoder.sampling_rate))
            waveforms = list(generator.normal(0, 0.1, size).astype(np.float32))
            started = time.process_time()
            tokenizer(waveforms)
            seconds = time.process_time() - started
            print(
                f"{name}: utterances of {duration:g} s: "
                f"{args.utterances * duration / seconds:.0f} s of audio per CPU second"
            )


if __name__ == "__main__":
    main()

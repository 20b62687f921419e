"""Search: from a trained model to transcripts.

speech2text   one object: waveforms in, hypotheses out
encoding      speech -> what the LLM is given, CTC log-probabilities
greedy        the LLM's best token at each step, or the check of a draft:
              draft (of the CTC head), cached_lm (the LLM's passes)
beam          Hugging Face's beam search, with CTC: joint (at each token) or
              rescoring (of complete hypotheses)
guards        limits of length, loops, audio without speech
result        tokens and scores -> a hypothesis with a confidence for each word
config        the options; precision: float32, bfloat16, int8
timing        word times; segmentation, long_audio: recordings of any length
decode        stage 12: a data set -> result files; records: what is done so far
"""

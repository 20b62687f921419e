"""Search: from a trained model to transcripts.

speech2text   one object: waveforms in, hypotheses out
encoding      speech -> what the LLM reads, CTC log-probabilities
greedy        the LLM's best token at each step, or the verification of a draft:
              draft (of the CTC head), cached_lm (the LLM's passes)
beam          Hugging Face's beam search, with CTC: joint (at each token) or
              rescoring (of complete hypotheses)
guards        limits of length, loops, audio without speech
result        tokens and scores -> a hypothesis with a confidence for each word
config        the options
vad           Silero's voice activity detection, for guards and segmentation
timing        word times; subtitles: CTM and SRT
segmentation  recordings of any length -> segments; long_audio: -> one transcript
decode        stage 12: a data set -> result_files; records: what is decoded so far
"""

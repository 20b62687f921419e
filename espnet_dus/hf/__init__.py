"""Exported models in Hugging Face's Auto classes: `import espnet_dus.hf` is enough.

import espnet_dus.hf
model = AutoModelForCausalLM.from_pretrained(directory)     # no trust_remote_code
processor = AutoProcessor.from_pretrained(directory)
ids = model.generate(**processor(audio, sampling_rate=16000))
processor.batch_decode(ids, skip_special_tokens=True)

pipeline("automatic-speech-recognition", model=directory)("speech.wav")["text"]
pipeline("text-generation", model=directory)("The cat")
"""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCausalLM,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)

from espnet_dus.hf.model import DUSConfig, DUSForCausalLM
from espnet_dus.hf.processor import DUSFeatureExtractor, DUSProcessor

AutoConfig.register(DUSConfig.model_type, DUSConfig, exist_ok=True)
AutoFeatureExtractor.register(DUSConfig, DUSFeatureExtractor, exist_ok=True)
AutoProcessor.register(DUSConfig, DUSProcessor, exist_ok=True)
for auto_class in (AutoModelForCausalLM, AutoModelForSpeechSeq2Seq):
    auto_class.register(DUSConfig, DUSForCausalLM, exist_ok=True)
# The pipeline for speech recognition looks for the class by name here, in order to call
# `generate`; otherwise it takes every model for a CTC model.
MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES[DUSConfig.model_type] = DUSForCausalLM.__name__

__all__ = ["DUSConfig", "DUSFeatureExtractor", "DUSForCausalLM", "DUSProcessor"]

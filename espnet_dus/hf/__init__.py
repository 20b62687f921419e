"""Exported models in Hugging Face's Auto classes: `import espnet_dus.hf` is enough.

import espnet_dus.hf
model = AutoModelForCausalLM.from_pretrained(directory)     # no trust_remote_code
processor = AutoProcessor.from_pretrained(directory)
ids = model.generate(**processor(speech))
processor.batch_decode(ids, skip_special_tokens=True)
"""

from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

from espnet_dus.hf.model import DUSConfig, DUSForCausalLM
from espnet_dus.hf.processor import DUSProcessor

AutoConfig.register(DUSConfig.model_type, DUSConfig, exist_ok=True)
AutoModelForCausalLM.register(DUSConfig, DUSForCausalLM, exist_ok=True)
AutoProcessor.register(DUSConfig, DUSProcessor, exist_ok=True)

__all__ = ["DUSConfig", "DUSForCausalLM", "DUSProcessor"]

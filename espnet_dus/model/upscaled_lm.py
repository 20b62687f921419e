"""What Hugging Face's classes of a causal LM lack when layers have been added.

Three mixins add it, without changing a parameter's name:

    UpscaledLM        declares `speech_mask` and `added_layers` to `generate`
    UpscaledDecoder   checks them and passes them to the layers
    AddedLayer        computes in float32, and on some or none of the rows
"""

import functools
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, FrozenSet, Iterable, Iterator, Optional, Union

import torch
from transformers.cache_utils import Cache

from espnet_dus.model.layers.speech_only import Speech, find_speech

MODES = ("kept", "dropped", "auto")
# Modules (by id) that `dropped` has switched off in this thread or task
_dropped: ContextVar[FrozenSet[int]] = ContextVar("dropped", default=frozenset())


class UpscaledLM:
    """Declares its arguments to `generate`, which refuses what it does not know."""

    def save_pretrained(self, save_directory, **kwargs):
        """Save plain added layers, as a deeper model of the base LM's type.

        Raises:
            ValueError: `from_pretrained` would lose the added layers of another kind or
                scope.
        """
        added = self.config.depth_up_scaling
        if (added["kind"], added["scope"]) != ("transformer", "all"):
            raise ValueError(
                f"a plain {self.config.model_type} model cannot hold added layers of "
                f"kind {added['kind']}, scope {added['scope']}: espnet-dus export and "
                "espnet_dus.hf.DUSForCausalLM save them"
            )
        super().save_pretrained(save_directory, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids,
        inputs_embeds=None,
        speech_mask=None,
        added_layers="kept",
        **kwargs,
    ):
        """As the model's own; the decoder extends `speech_mask` by the new text."""
        return super().prepare_inputs_for_generation(
            input_ids,
            inputs_embeds=inputs_embeds,
            speech_mask=speech_mask,
            added_layers=added_layers,
            **kwargs,
        )


class UpscaledDecoder:
    """Passes to each layer what Hugging Face's own loop does not.

    `speech`: where the speech is in the new input. `rows`: for `AddedLayer`.
    """

    def forward(
        self,
        input_ids: Optional[torch.Tensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        position_ids: Optional[torch.Tensor] = None,
        past_key_values: Optional[Cache] = None,
        inputs_embeds: Optional[torch.Tensor] = None,
        use_cache: Optional[bool] = None,
        speech_mask: Optional[torch.Tensor] = None,
        added_layers: str = "kept",
        **kwargs: Any,
    ):
        """As the model's own, with `speech_mask` and `added_layers` (see `upscale`).

        With a packed row (see `packing`), `speech_mask` is the padded batch's.

        Raises:
            ValueError: `speech_mask` does not fit the input, `added_layers` is unknown,
                or is `auto` in a cached step without the `speech_mask` of the prefill.
        """
        new = input_ids if inputs_embeds is None else inputs_embeds
        is_cached = past_key_values is not None and past_key_values.get_seq_length() > 0
        row = kwargs.get("row")
        if speech_mask is not None and row is None:
            _check_speech_mask(speech_mask, new, is_cached)
        rows = self._rows(added_layers, speech_mask, past_key_values)
        if is_cached:  # the new input is text
            speech_mask = None
        shape = new.shape[:2] if row is None else speech_mask.shape
        speech = None if rows is False else self._speech(speech_mask, shape)
        if row is not None and speech is not None:
            speech = replace(speech, index_M=row.places(speech.index_M))
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            speech=speech,
            rows=rows,
            **kwargs,
        )

    def _speech(
        self, speech_mask: Optional[torch.Tensor], shape: torch.Size
    ) -> Optional[Speech]:
        """Find the speech, for all layers, if any of them asks for it."""
        if not any(getattr(layer, "takes_speech", False) for layer in self.layers):
            return None
        if speech_mask is None:
            if not self.training:
                return None
            device = next(self.parameters()).device
            speech_mask = torch.zeros(shape, dtype=torch.bool, device=device)
        # `generate` without a cache repeats the prefill's
        num_added = shape[1] - speech_mask.shape[1]
        padded = torch.nn.functional.pad(speech_mask, (0, num_added))
        return find_speech(padded, self.training)

    def _rows(
        self,
        added_layers: str,
        speech_mask: Optional[torch.Tensor],
        past_key_values: Optional[Cache],
    ) -> Union[bool, torch.Tensor]:
        """Return the rows that added layers transform: all, none, or bool (B,)."""
        if added_layers not in MODES:
            raise ValueError(
                f"added_layers: {added_layers!r} is not one of {', '.join(MODES)}"
            )
        if added_layers != "auto":
            return added_layers == "kept"
        if speech_mask is not None:
            rows_B = speech_mask.any(1)
            return bool(rows_B.any()) and (bool(rows_B.all()) or rows_B)
        num_base = sum(not isinstance(layer, AddedLayer) for layer in self.layers)
        cached = [] if past_key_values is None else past_key_values.layers[num_base:]
        if any(layer.is_initialized for layer in cached):
            raise ValueError(
                "added_layers: 'auto' needs the speech_mask of the prefill in each "
                "cached step, to know the rows that have speech"
            )
        return False


class AddedLayer:
    """An added layer, trained in float32 beside a base LM of another precision.

    What enters is cast to float32 and what leaves is cast back, so that the residual
    stream keeps the base LM's precision. The cast is exact for the identity: a bf16
    base LM starts with bit-equal logits too.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        rows: Union[bool, torch.Tensor] = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """As the layer's own, on the given rows; other rows are unchanged."""
        if rows is False or is_dropped(self):
            return hidden_states
        dtype = next(self.parameters()).dtype
        kwargs = {name: _cast(value, dtype) for name, value in kwargs.items()}
        output = super().forward(hidden_states.to(dtype), **kwargs)
        output = output.to(hidden_states.dtype)
        if rows is True:
            return output
        return torch.where(rows[:, None, None], output, hidden_states)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(dtype)
    if isinstance(value, tuple):  # the rotary cosines and sines
        return tuple(_cast(v, dtype) for v in value)
    return value


def _check_speech_mask(
    speech_mask: torch.Tensor, new: torch.Tensor, is_cached: bool
) -> None:
    batch, length = new.shape[:2]
    if speech_mask.dtype != torch.bool or speech_mask.shape[0] != batch:
        raise ValueError(
            f"speech_mask: expected bool ({batch}, time), got {speech_mask.dtype} "
            f"{tuple(speech_mask.shape)}"
        )
    if not is_cached and speech_mask.shape[1] > length:
        raise ValueError(
            f"speech_mask: {speech_mask.shape[1]} positions for an input of {length}"
        )


@functools.cache
def _mixed(mixin: type, cls: type) -> type:
    # Hugging Face finds what belongs to a class by its module and name, so they stay.
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls)(cls.__name__, (mixin, cls), names)


def mix_in(mixin: type, module: torch.nn.Module) -> None:
    """Put a mixin in front of a module's class, under the same name."""
    module.__class__ = _mixed(mixin, type(module))


@contextmanager
def dropped(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Switch added layers or low-rank updates off, in this thread or task alone."""
    token = _dropped.set(_dropped.get() | {id(module) for module in modules})
    try:
        yield
    finally:
        _dropped.reset(token)


def is_dropped(module: torch.nn.Module) -> bool:
    """Return whether a module is switched off in this thread or task."""
    return id(module) in _dropped.get()

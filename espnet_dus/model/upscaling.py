"""Depth up-scaling: added layers between the layers of a loaded Hugging Face causal LM.

        embed -> [0] -> [1] -> (added) -> [2] -> [3] -> (added) -> norm -> lm_head
                 frozen base layers     trained layers

The loaded model is converted, not rewritten: added layers live in the model's own
`ModuleList`, take the same call and have their own place in the KV cache, so that
Hugging Face's forward, `generate`, cache and attention back-ends keep working. Three
mixins carry what these do not know, without changing a parameter's name:

    UpscaledLM        declares `speech_mask` and `added_layers` to `generate`
    UpscaledDecoder   checks them and passes them to the layers
    AddedLayer        computes in float32, and on some or none of the rows

A part of the stack is a view (`stack`) that shares its modules with the LM. No pass
changes the LM, its configuration or a layer.
"""

import copy
import functools
import operator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import (
    Any,
    Dict,
    FrozenSet,
    Iterable,
    Iterator,
    List,
    Optional,
    Sequence,
    Union,
)

import torch
from espnet2.utils.get_default_kwargs import get_default_kwargs
from transformers.cache_utils import Cache

from espnet_dus.io import check_names
from espnet_dus.model.layers import BUILDERS, KINDS, SCOPES
from espnet_dus.model.layers.hybrid import FORMER_LAYER
from espnet_dus.model.layers.speech_only import Speech, find_speech

Positions = Union[str, Sequence[int]]
MODES = ("kept", "dropped", "auto")
# Modules (by id) that `drop_added_layers` has switched off in this thread or task
_dropped: ContextVar[FrozenSet[int]] = ContextVar("dropped", default=frozenset())


def upscale(
    lm: torch.nn.Module,
    kind: str = "e_branchformer",
    scope: str = "all",
    positions: Positions = "interleaved",
    **layer_conf: Any,
) -> torch.nn.Module:
    """Insert trainable layers into a causal LM and freeze all else.

    The new layers start as the identity, so logits equal the base LM's. With scope
    `speech`, text-only logits stay equal throughout training.

    Args:
        lm: A loaded HF causal LM of the Llama type. It is changed in place.
        kind: `transformer` (copies of the base layers) or `e_branchformer`.
        scope: `all`: the new layers transform text and speech. `speech`: they transform
            the positions that `speech_mask` marks, and see them in both directions.
        positions: Base layers to insert after: `interleaved`, `bottom`, `middle`,
            `top` or `sandwich`, with a number of layers (`top:4`; default 25 % of the
            base layers) or without, or a list of indices; see `parse_positions`.
        layer_conf: Options of the kind, see `espnet_dus.model.layers`.

    Returns:
        `lm`. Its forward and `generate` now take two more arguments. `speech_mask`:
        bool (batch, time), True where a position is speech; positions that `generate`
        adds are text. `added_layers`: `kept` (the default), `dropped` (the pass is
        the base LM's), or `auto` (rows without speech bypass the added layers, so that
        they get the base LM's logits, bit for bit).

    Raises:
        ValueError: An option is unknown or does not fit, or `lm` is of no known type.

    Examples:
        >>> lm = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-360M")
        >>> lm = upscale(lm, "e_branchformer", "all", positions="interleaved")
    """
    for name, value, allowed in (("kind", kind, KINDS), ("scope", scope, SCOPES)):
        if value not in allowed:
            raise ValueError(f"{name}: {value!r} is not one of {', '.join(allowed)}")
    options = get_default_kwargs(BUILDERS[kind, scope])
    what = f"kind {kind}, scope {scope}"
    if "merge_init" in options and "linear_units" in layer_conf:
        what = f"{FORMER_LAYER}; {what}"
    check_names(what, layer_conf, options)
    check_convertible(lm)

    base_layers = list(lm.model.layers)
    after = parse_positions(positions, len(base_layers), scope)
    lm.requires_grad_(False)
    layers, layer_idx = [], len(base_layers)
    for index in range(-1, len(base_layers)):
        if index >= 0:
            layers.append(base_layers[index])
        for _ in range(after.count(index)):
            neighbour = base_layers[max(index, 0)]
            with torch.device(next(neighbour.parameters()).device):
                layer = BUILDERS[kind, scope](lm, neighbour, layer_idx, **layer_conf)
            mix_in(AddedLayer, layer.float().requires_grad_(True))
            layers.append(layer)
            layer_idx += 1
    del lm.model.layers[:]
    lm.model.layers.extend(layers)
    set_num_layers(lm.config, len(layers))
    lm.config.depth_up_scaling = dict(
        kind=kind, scope=scope, positions=after, layer_conf=layer_conf
    )
    mix_in(UpscaledLM, lm)
    mix_in(UpscaledDecoder, lm.model)
    return lm


def inserted_layers(lm: torch.nn.Module) -> Dict[int, torch.nn.Module]:
    """Return the added layers of an LM by their index in its `ModuleList`."""
    layers = enumerate(lm.model.layers)
    return {i: layer for i, layer in layers if isinstance(layer, AddedLayer)}


def is_encoder(lm: torch.nn.Module) -> bool:
    """Return whether all added layers work on speech below the first base layer."""
    inserted = getattr(lm.config, "depth_up_scaling", None)
    return (
        inserted is not None
        and inserted["scope"] == "speech"
        and set(inserted["positions"]) == {-1}
    )


def stack(
    lm: torch.nn.Module, first: int = 0, last: Optional[int] = None, norm: bool = True
) -> torch.nn.Module:
    """Return a decoder over some of an LM's layers, a view that shares its modules.

    Its `inputs_embeds` are what the layer `first` is given; its `last_hidden_state` is
    what the layer before `last` returns. Views may run at the same time as the LM and
    as each other. A view caches nothing unless it is given a cache.

    Args:
        lm: A causal LM.
        first: Index of the first layer.
        last: Index after the last layer; None: the end of the stack.
        norm: Whether the LM's final norm follows the last layer.
    """
    decoder = copy.copy(lm.model)
    layers = torch.nn.ModuleList(lm.model.layers[first:last])
    decoder._modules = {**lm.model._modules, "layers": layers}
    if not norm:
        decoder._modules["norm"] = torch.nn.Identity()
    decoder.config = copy.copy(lm.model.config)
    set_num_layers(decoder.config, len(layers))
    decoder.config.update({"use_cache": False})
    return decoder


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


def parse_positions(
    positions: Positions, num_layers: int, scope: str = "all"
) -> List[int]:
    """Turn a `positions` option into indices of base layers.

    An added layer directly follows the base layer of its index and copies it. A
    placement divides a range of the L base layers into one run for each added layer,
    as equal as possible, and puts the layer after the last base layer of its run:

        interleaved    the range of all L base layers
        bottom         the lower half: the first ceil(L / 2)
        middle         the half from floor(L / 4) on
        top            the upper half: the last ceil(L / 2)
        sandwich       the first ceil(L / 4) for half of the added layers (the larger
                       half of an odd number), the last ceil(L / 4) for the others

    In scope `speech` the last base layer is left out of these ranges, since nothing but
    a CTC head could read the speech positions after it: a placement adds no dead
    layer. A list of indices is taken as it is.

    Args:
        positions: A placement, a placement and a number of layers (`top:4`; by default
            25 % of the base layers, rounded, at least 1), or a list of indices from -1
            (before the first layer) to L - 1; an index given k times adds k layers.
        num_layers: Number of layers of the base LM (L).
        scope: `all` or `speech`.

    Returns:
        Sorted indices from -1 to L - 1.

    Raises:
        ValueError: `positions` is unknown, empty or out of range, or there are more
            added layers than base layers in the range.
    """
    if isinstance(positions, str):
        return _place(positions, num_layers, scope)
    wrong = [p for p in positions if not isinstance(p, int) or isinstance(p, bool)]
    if wrong or not len(positions):
        raise ValueError(f"positions: {positions!r} is not a list of integers")
    outside = [p for p in positions if not -1 <= p < num_layers]
    if outside:
        raise ValueError(
            f"positions: {outside} out of range; the base LM has {num_layers} layers, "
            f"so indices go from -1 (before the first) to {num_layers - 1}"
        )
    return sorted(positions)


def _place(positions: str, num_layers: int, scope: str) -> List[int]:
    placement, colon, number = positions.partition(":")
    last = num_layers - (scope == "speech")
    half, quarter = -(-last // 2), -(-last // 4)
    ranges = {
        "interleaved": [range(last)],
        "bottom": [range(half)],
        "middle": [range(last // 4, last // 4 + half)],
        "top": [range(last - half, last)],
        "sandwich": [range(quarter), range(max(quarter, last - quarter), last)],
    }
    if placement in ("every", "spread"):
        raise ValueError(
            f"positions: {positions!r} is no longer a placement; write "
            "'interleaved:N' for N layers spread evenly over the base layers"
        )
    if placement not in ranges or (colon and not number.isdigit()) or number == "0":
        raise ValueError(
            f"positions: {positions!r} is not understood; expected one of "
            f"{', '.join(ranges)}, with a number of layers or without (interleaved:8), "
            "or a list of base-layer indices ([3, 7])"
        )
    num_added = int(number) if colon else max(1, (num_layers + 2) // 4)
    limit = sum(map(len, ranges[placement]))
    if num_added > limit:
        raise ValueError(
            f"positions: {positions!r} adds {num_added} layers, but this base LM of "
            f"{num_layers} layers has {limit} of them in the range of {placement!r} "
            f"(scope {scope!r}), each followed by one added layer at most; use a "
            "smaller number, another placement, or a list of indices, which may repeat"
        )
    half = num_added // 2
    shares = [num_added - half, half] if placement == "sandwich" else [num_added]
    return [
        run[(i + 1) * len(run) // share - 1]
        for run, share in zip(ranges[placement], shares)
        for i in range(share)
    ]


def ctc_layer_index(lm: torch.nn.Module, ctc_layer: str) -> int:
    """Find the layer that the CTC head reads.

    Args:
        lm: The adapted LM.
        ctc_layer: `inserted:K` (the K-th added layer from 0; -1: the last) or `base:K`
            (base layer K), for arms that add none.

    Returns:
        Its index in `lm.model.layers`.

    Raises:
        ValueError: There is no such layer.
    """
    inserted = list(inserted_layers(lm))
    base = [i for i in range(len(lm.model.layers)) if i not in inserted]
    family, _, number = ctc_layer.partition(":")
    indices = {"inserted": inserted, "base": base}.get(family)
    try:
        return indices[int(number)]
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"ctc_layer: {ctc_layer!r} names no layer; expected inserted:K with K "
            f"below {len(inserted)}, or base:K with K below {len(base)} (-1: the last)"
        ) from error


def is_above_base_layer(lm: torch.nn.Module, ctc_layer: str) -> bool:
    """Return whether `ctc_layer` (see `ctc_layer_index`) has a base layer below it.

    A base layer counts as being above itself.
    """
    index = ctc_layer_index(lm, ctc_layer)
    return not set(range(index + 1)) <= set(inserted_layers(lm))


# -- what Hugging Face's classes do not do ---------------------------------------------


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
        if is_cached:  # what is new is text
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
        """As the layer's own, on the given rows; other rows leave as they came."""
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
    # Module and name stay: by them Hugging Face finds what belongs to a class.
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls)(cls.__name__, (mixin, cls), names)


def mix_in(mixin: type, module: torch.nn.Module) -> None:
    """Put a mixin in front of a module's class, under the same name."""
    module.__class__ = _mixed(mixin, type(module))


def set_num_layers(config: Any, num_layers: int) -> None:
    """Tell a configuration how many layers of full attention its model has."""
    config.update({"num_hidden_layers": num_layers})
    if getattr(config, "layer_types", None):  # read by index, for the masks
        config.update({"layer_types": ["full_attention"] * num_layers})


def check_convertible(lm: torch.nn.Module) -> None:
    """Check that layers can be added to a model; its weights are not read.

    Raises:
        ValueError: It has been up-scaled before, or is not of the Llama type.
    """
    if hasattr(lm.config, "depth_up_scaling"):
        raise ValueError(
            "this model has been up-scaled before: convert a freshly loaded base LM"
        )
    names = ("self_attn.o_proj", "mlp.down_proj", "self_attn.layer_idx")
    try:
        operator.attrgetter(*names)(lm.model.layers[0])
    except (AttributeError, IndexError) as error:
        raise ValueError(
            f"{type(lm).__name__} is not a causal LM of the Llama type: expected "
            f"model.layers[i] with {', '.join(names)}"
        ) from error
    layer_types = set(getattr(lm.config, "layer_types", None) or ["full_attention"])
    if layer_types != {"full_attention"}:
        raise ValueError(
            f"{type(lm).__name__} has layers of the types {sorted(layer_types)}; only "
            "models of full attention throughout can be up-scaled"
        )

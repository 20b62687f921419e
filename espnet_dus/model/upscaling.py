"""Depth up-scaling: new layers between the layers of a loaded Hugging Face causal LM.

        embed -> [0] -> [1] -> (new) -> [2] -> [3] -> (new) -> norm -> lm_head
                 frozen base layers     trained layers

A conversion of the loaded model, not a rewrite: the new layers stand in the model's own
`ModuleList`, take the same call and keep their own place in the KV cache, so that
Hugging Face's forward, `generate`, cache and attention back-ends go on working.
"""

from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch

from espnet_dus.model.layers import BUILDERS, KINDS, SCOPES, layer_options
from espnet_dus.model.layers.hybrid import FORMER_LAYER

Positions = Union[str, Sequence[int]]


def upscale(
    lm: torch.nn.Module,
    kind: str = "e_branchformer",
    scope: str = "all",
    positions: Positions = "interleaved",
    **layer_conf: Any,
) -> torch.nn.Module:
    """Insert trainable layers into a causal LM and freeze all else.

    Until they are trained the new layers are the identity: the logits are those of the
    base LM. With scope `speech`, those of a text-only input remain so for ever.

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
        `lm`. Its forward and `generate` now take `speech_mask`, bool (batch, time),
        True where a position is speech; positions that `generate` adds are text.

    Raises:
        ValueError: An option is unknown or does not fit, or `lm` is of no known type.

    Examples:
        >>> lm = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-360M")
        >>> lm = upscale(lm, "e_branchformer", "all", positions="interleaved")
    """
    for name, value, allowed in (("kind", kind, KINDS), ("scope", scope, SCOPES)):
        if value not in allowed:
            raise ValueError(f"{name}: {value!r} is not one of {', '.join(allowed)}")
    options = layer_options(kind, scope)
    if unknown := sorted(set(layer_conf) - set(options)):
        former = "merge_init" in options and "linear_units" in unknown
        raise ValueError(
            f"unknown option(s) of kind {kind!r} in scope {scope!r}: "
            f"{', '.join(unknown)}; it takes {', '.join(options) or 'none'}"
            + (f" ({FORMER_LAYER})" if former else "")
        )
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
            layers.append(_trainable(layer))
            layer_idx += 1
    _set_layers(lm, layers)
    lm.config.depth_up_scaling = dict(
        kind=kind, scope=scope, positions=after, layer_conf=layer_conf
    )
    lm.model.register_forward_pre_hook(_pass_masks_on, with_kwargs=True)
    # Same name: to Hugging Face the model is what it was, but for the new argument.
    cls = type(lm)
    lm.__class__ = type(cls)(cls.__name__, (SpeechMaskMixin, cls), {})
    return lm


def inserted_layers(lm: torch.nn.Module) -> Dict[int, torch.nn.Module]:
    """Give the inserted layers of an up-scaled LM, by place in its `ModuleList`."""
    after = getattr(lm.config, "depth_up_scaling", {"positions": []})["positions"]
    # the n-th inserted layer (from 0) stands after its base layer and n inserted ones
    return {
        index + 1 + n: lm.model.layers[index + 1 + n] for n, index in enumerate(after)
    }


def is_encoder(lm: torch.nn.Module) -> bool:
    """Tell whether all inserted layers work on speech before the first base layer."""
    inserted = getattr(lm.config, "depth_up_scaling", None)
    return (
        inserted is not None
        and inserted["scope"] == "speech"
        and set(inserted["positions"]) == {-1}
    )


@contextmanager
def only_base_layers(lm: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Take the inserted layers out of an LM for as long as the block lasts."""
    layers = list(lm.model.layers)
    inserted = inserted_layers(lm)
    _set_layers(lm, [layer for i, layer in enumerate(layers) if i not in inserted])
    try:
        yield lm
    finally:
        _set_layers(lm, layers)


@contextmanager
def layer_output(
    lm: torch.nn.Module, index: int, end: bool = False
) -> Iterator[Dict[str, torch.Tensor]]:
    """Keep what a layer gives in the forward passes of the block.

    Args:
        lm: A causal LM.
        index: The layer's place in its `ModuleList`.
        end: End the pass there: the layers above cost nothing, and what the pass gives
            is not to be used.

    Yields:
        A dictionary that has the output (batch, time, hidden) as `hidden` after a pass.
    """
    kept: Dict[str, torch.Tensor] = {}
    handle = lm.model.layers[index].register_forward_hook(
        lambda module, args, output: kept.update(hidden=output)
    )
    config = lm.model.config
    num_layers = config.num_hidden_layers
    if end:
        config.num_hidden_layers = index + 1  # HF's loop goes so far
    try:
        yield kept
    finally:
        handle.remove()
        config.num_hidden_layers = num_layers


def parse_positions(
    positions: Positions, num_layers: int, scope: str = "all"
) -> List[int]:
    """Turn a `positions` option into indices of base layers.

    An added layer stands directly behind the base layer of its index and copies it. A
    placement divides a range of the L base layers into one run for each added layer,
    as equal as possible, and puts the layer behind the last base layer of its run:

        interleaved    the range of all L base layers
        bottom         the lower half: the first ceil(L / 2)
        middle         the half from floor(L / 4) on
        top            the upper half: the last ceil(L / 2)
        sandwich       the first ceil(L / 4) for half of the added layers (the larger
                       half of an odd number), the last ceil(L / 4) for the others

    In scope `speech` the last base layer is left out of these ranges, since nothing but
    a CTC head could read the speech positions behind it: a placement adds no dead
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
        "middle": [range((last - half) // 2, (last - half) // 2 + half)],
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
    shares = (
        [num_added]
        if len(ranges[placement]) == 1
        else [-(-num_added // 2), num_added // 2]
    )
    return [
        run[(i + 1) * len(run) // share - 1]
        for run, share in zip(ranges[placement], shares)
        for i in range(share)
    ]


def ctc_layer_index(lm: torch.nn.Module, ctc_layer: str) -> int:
    """Find the layer that the CTC head reads.

    Args:
        lm: The adapted LM.
        ctc_layer: `inserted:K` (the K-th inserted layer from 0; -1: the last) or
            `base:K` (base layer K), for arms that insert none.

    Returns:
        Its place in `lm.model.layers`.

    Raises:
        ValueError: There is no such layer.
    """
    inserted = list(inserted_layers(lm))
    base = [i for i in range(len(lm.model.layers)) if i not in inserted]
    family, _, number = ctc_layer.partition(":")
    places = {"inserted": inserted, "base": base}.get(family)
    try:
        return places[int(number)]
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"ctc_layer: {ctc_layer!r} names no layer; expected inserted:K with K "
            f"below {len(inserted)}, or base:K with K below {len(base)} (-1: the last)"
        ) from error


def is_above_base_layer(lm: torch.nn.Module, ctc_layer: str) -> bool:
    """Tell whether `ctc_layer` (see `ctc_layer_index`) stands on a base layer."""
    place = ctc_layer_index(lm, ctc_layer)
    return not set(range(place + 1)) <= set(inserted_layers(lm))


class SpeechMaskMixin:
    """Declares `speech_mask` to `generate`, which refuses what it does not know."""

    def prepare_inputs_for_generation(
        self, input_ids, inputs_embeds=None, speech_mask=None, **kwargs
    ):
        """As the model's own; the forward hook brings `speech_mask` to length."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        if speech_mask is not None:
            inputs["speech_mask"] = speech_mask
        return inputs


def _set_layers(lm: torch.nn.Module, layers: List[torch.nn.Module]) -> None:
    lm.model.layers = torch.nn.ModuleList(layers)
    lm.config.num_hidden_layers = len(layers)
    if getattr(lm.config, "layer_types", None):  # read by place, for the masks
        lm.config.layer_types = ["full_attention"] * len(layers)


def check_convertible(lm: torch.nn.Module) -> None:
    """Check that layers can be added to a model; its weights are not read.

    Raises:
        ValueError: It has been up-scaled before, or is not of the Llama type.
    """
    if hasattr(lm.config, "depth_up_scaling"):
        raise ValueError(
            "this model has been up-scaled before: convert a freshly loaded base LM"
        )
    layers = getattr(getattr(lm, "model", None), "layers", None)
    names = ("self_attn.o_proj", "mlp.down_proj", "self_attn.layer_idx")
    if not layers or any(_missing(layers[0], name) for name in names):
        raise ValueError(
            f"{type(lm).__name__} is not a causal LM of the Llama type: expected "
            f"model.layers[i] with {', '.join(names)}"
        )
    layer_types = set(getattr(lm.config, "layer_types", None) or ["full_attention"])
    if layer_types != {"full_attention"}:
        raise ValueError(
            f"{type(lm).__name__} has layers of the types {sorted(layer_types)}; only "
            "models of full attention throughout can be up-scaled"
        )


def _missing(module: Any, name: str) -> bool:
    for part in name.split("."):
        if not hasattr(module, part):
            return True
        module = getattr(module, part)
    return False


def _trainable(layer: torch.nn.Module) -> torch.nn.Module:
    """Prepare an inserted layer for training beside a base LM of another precision.

    Its parameters are float32; what enters is cast to that and what leaves is cast
    back, so that the residual stream keeps the base LM's precision. The cast is exact
    for the identity, so a bf16 base LM starts with bit-equal logits too.
    """
    layer.float().requires_grad_(True)

    def cast_in(module, args: Tuple, kwargs: Dict[str, Any]):
        dtype = next(module.parameters()).dtype
        module.stream_dtype = args[0].dtype

        def cast(value):
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                return value.to(dtype)
            if isinstance(value, tuple):
                return tuple(cast(v) for v in value)
            return value

        return cast(args), {name: cast(value) for name, value in kwargs.items()}

    def cast_out(module, args: Tuple, output: torch.Tensor) -> torch.Tensor:
        return output.to(module.stream_dtype)

    layer.register_forward_pre_hook(cast_in, with_kwargs=True)
    layer.register_forward_hook(cast_out)
    return layer


def _pass_masks_on(model: torch.nn.Module, args: Tuple, kwargs: Dict[str, Any]):
    """Hand each layer the two masks that Hugging Face's own loop does not.

    `padding_mask`: `attention_mask` as it came in, before the model turns it into the
    4-D causal mask of its attention back-end. `speech_mask`: as long as the new input,
    which it is not when `generate` repeats the prefill's.
    """
    padding_mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    if padding_mask is not None and padding_mask.dim() == 2:
        kwargs["padding_mask"] = padding_mask
    speech_mask: Optional[torch.Tensor] = kwargs.pop("speech_mask", None)
    if speech_mask is None:
        return args, kwargs
    inputs = kwargs.get("inputs_embeds")
    if inputs is None:
        inputs = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
    batch, length = inputs.shape[:2]
    if speech_mask.dtype != torch.bool or speech_mask.shape[0] != batch:
        raise ValueError(
            f"speech_mask: expected bool ({batch}, time), got {speech_mask.dtype} "
            f"{tuple(speech_mask.shape)}"
        )
    past = kwargs.get("past_key_values")
    if past is not None and past.get_seq_length() > 0:
        return args, kwargs  # a cached step: what is new is text
    if speech_mask.shape[1] > length:
        raise ValueError(
            f"speech_mask: {speech_mask.shape[1]} positions for an input of {length}"
        )
    new = length - speech_mask.shape[1]
    kwargs["speech_mask"] = torch.nn.functional.pad(speech_mask, (0, new), value=False)
    return args, kwargs

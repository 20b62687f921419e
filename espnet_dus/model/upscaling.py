"""Depth up-scaling: added layers between the layers of a loaded Hugging Face causal LM.

        embed -> [0] -> [1] -> (added) -> [2] -> [3] -> (added) -> norm -> lm_head
                 frozen base layers     trained layers

The loaded model is converted, not rewritten: added layers live in the model's own
`ModuleList`, take the same call and have their own place in the KV cache, so that
Hugging Face's forward, `generate`, cache and attention back-ends keep working. Three
mixins carry what these do not know: see `upscaled_lm`.

A part of the stack is a view (`stack`) that shares its modules with the LM. No pass
changes the LM, its configuration or a layer.
"""

import copy
import operator
from typing import Any, Dict, Optional

import torch
from espnet2.utils.get_default_kwargs import get_default_kwargs

from espnet_dus.io import check_names
from espnet_dus.model.layers import BUILDERS, KINDS, SCOPES
from espnet_dus.model.layers.hybrid import FORMER_LAYER
from espnet_dus.model.placement import Positions, parse_positions
from espnet_dus.model.upscaled_lm import (
    AddedLayer,
    UpscaledDecoder,
    UpscaledLM,
    mix_in,
)


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

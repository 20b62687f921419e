"""Placements: which base layers of a causal LM the added layers follow."""

from typing import List, Sequence, Union

Positions = Union[str, Sequence[int]]


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

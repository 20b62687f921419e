"""Placements become the base layers that added layers follow."""

import pytest

from espnet_dus.model.placement import parse_positions


@pytest.mark.parametrize(
    "positions, num_layers, expected",
    [
        # SmolLM2-360M and -1.7B, as the paper places its layers
        ("interleaved", 32, [3, 7, 11, 15, 19, 23, 27, 31]),
        ("bottom", 32, [1, 3, 5, 7, 9, 11, 13, 15]),
        ("middle", 32, [9, 11, 13, 15, 17, 19, 21, 23]),
        ("top", 32, [17, 19, 21, 23, 25, 27, 29, 31]),
        ("sandwich", 32, [1, 3, 5, 7, 25, 27, 29, 31]),
        ("interleaved", 24, [3, 7, 11, 15, 19, 23]),
        ("top", 24, [13, 15, 17, 19, 21, 23]),
        # SmolLM2-135M: 25 % of 30 are rounded to 8
        ("interleaved", 30, [2, 6, 10, 14, 17, 21, 25, 29]),
        ("sandwich:3", 30, [3, 7, 29]),
        ("interleaved:30", 30, list(range(30))),
        ("interleaved", 1, [0]),
        ("middle", 3, [1]),
        ("sandwich:2", 3, [0, 2]),
        ([-1, 2, -1, 0], 3, [-1, -1, 0, 2]),
        ((1, 1, 1), 3, [1, 1, 1]),
    ],
)
def test_positions_become_sorted_base_layer_indices(positions, num_layers, expected):
    assert parse_positions(positions, num_layers) == expected


@pytest.mark.parametrize("num_layers", [2, 3, 7, 16, 30, 61])
@pytest.mark.parametrize("scope", ["all", "speech"])
def test_no_placement_repeats_a_layer_or_adds_one_that_nothing_reads(num_layers, scope):
    last = num_layers - 1 if scope == "all" else num_layers - 2
    half = (last + 2) // 2
    for placement, most in {
        "interleaved": last + 1,
        "bottom": half,
        "middle": half,
        "top": half,
    }.items():
        for number in range(1, most + 1):
            found = parse_positions(f"{placement}:{number}", num_layers, scope)
            assert found == sorted(set(found)) and len(found) == number
            assert 0 <= found[0] and found[-1] <= last
            assert placement not in ("interleaved", "top") or found[-1] == last


@pytest.mark.parametrize(
    "positions, message",
    [
        ([0, 3, -2], r"\[3, -2\] out of range.*3 layers.*-1 .*to 2"),
        ("interleaved:4", "'interleaved:4' adds 4 layers.* 3 layers has 3 of them"),
        ("bottom:3", "'bottom:3' adds 3 layers.*has 2 of them.*a smaller number"),
        ("top:0", "'top:0' is not understood"),
        ("top:", "'top:' is not understood"),
        ("first:2", "'first:2' is not understood; expected one of interleaved, bottom"),
        ([], r"\[\] is not a list of integers"),
        ([0, 1.5], r"\[0, 1.5\] is not a list of integers"),
        ([True], r"\[True\] is not a list of integers"),
    ],
)
def test_wrong_positions_are_an_error_that_names_them(positions, message):
    with pytest.raises(ValueError, match=f"positions: {message}"):
        parse_positions(positions, 3)

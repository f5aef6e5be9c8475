"""Seams as data, against a stream followed by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunecomp.errors import OptionError
from prunecomp.model.stack import LayerStack


@given(st.data())
def test_seams_multiply_where_removals_meet(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 9))
    order = data.draw(st.permutations(range(n)))[: data.draw(st.integers(1, n - 1))]
    scales = {layer: data.draw(st.floats(0.25, 4.0)) for layer in order}
    stack = LayerStack.dense(n)
    for layer in order:
        stack = stack.remove(layer, scales[layer])
    assert stack.removed == tuple(sorted(order))
    # The stream entering a survivor passed the scales of all removed layers between it and the survivor below.
    below = -1
    for layer, seam in zip(stack.alive, stack.seams, strict=True):
        assert math.isclose(seam, math.prod(scales[r] for r in range(below + 1, layer)), rel_tol=1e-12)
        below = layer
    total = stack.seam_product()
    for up, down in zip(stack.seam_product_below(), stack.seam_product_above(), strict=True):
        assert math.isclose(up * down, total, rel_tol=1e-12)


def test_a_layer_is_removed_once() -> None:
    stack = LayerStack.dense(3).remove(1, 2.0)
    with pytest.raises(OptionError, match=r"layer 1 is not among the surviving layers \[0, 2\]"):
        stack.remove(1)


def test_a_seam_above_the_last_survivor_is_dropped() -> None:
    assert LayerStack.dense(2).remove(1, 3.0).seams == (1.0,)

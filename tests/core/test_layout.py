"""Names <-> slices of the packed vector."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from gradwatch.core import detectors, policies
from gradwatch.core.guard import Guard
from gradwatch.core.layout import Layout
from gradwatch.core.xp import NUMPY

TREE = {"a": np.float32(1).reshape(()), "b": {"x": np.arange(3, dtype=np.float32), "none": {}},
        "c": np.float32(2).reshape(()), "d": np.arange(4, dtype=np.float32).reshape(2, 2)}  # fmt: skip


def test_what_was_packed_comes_back_bit_for_bit():
    layout = Layout(TREE)
    vector = layout.pack(NUMPY, TREE)
    assert vector.shape == (layout.size,) == (9,)
    assert vector.dtype == np.float32
    tree = layout.unpack(NUMPY, vector)
    assert list(tree) == list(TREE)
    assert tree["b"]["none"] == {}
    for path in (("a",), ("b", "x"), ("c",), ("d",)):
        was, now = TREE, tree
        for name in path:
            was, now = was[name], now[name]
        assert np.array_equal(was, now)
        assert np.shape(was) == np.shape(now)


def test_what_is_to_lie_last_does_whatever_its_size():
    layout = Layout(TREE, last=lambda path, shape: path == ("b", "x"))
    assert [field.path[-1] for field in layout.fields] == ["a", "c", "d", "x"]
    assert np.array_equal(layout.unpack(NUMPY, layout.pack(NUMPY, TREE))["b"]["x"], TREE["b"]["x"])


@pytest.mark.parametrize("policy", policies.POLICIES)
def test_a_group_of_small_fields_fits_into_a_buffer_that_xla_keeps_on_one_thread(policy):
    guard = Guard(policies.POLICIES[policy](), detectors.default())
    layout = Layout(guard.init(5), last=lambda path, shape: math.prod(shape) > 1000)
    small = [sum(field.size for field in group) for group in layout.groups if group[0].size < 1000]
    assert max(small) <= 128, "512 bytes"
    assert sum(len(group) for group in layout.groups) == len(layout.fields)


def test_fields_do_not_overlap_and_leave_no_gap():
    layout = Layout(Guard(policies.percentile(), detectors.default()).init(5))
    taken = sorted((field.offset, field.offset + field.size) for field in layout.fields)
    assert taken[0][0] == 0
    assert taken[-1][1] == layout.size
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(taken))


def test_size_does_not_depend_on_the_number_of_steps_and_little_on_the_variables():
    guard = Guard(policies.percentile(), detectors.default())
    small, large = Layout(guard.init(1)).size, Layout(guard.init(101)).size
    assert small < 19_000, "about 75 kB"
    assert large - small == 100 * 7, "last norm, level, and shares of five kinds"


def test_fingerprints_differ_where_structure_or_shapes_do():
    made = {
        name: Layout(guard.init(variables)).fingerprint()
        for name, guard, variables in (
            ("default", Guard(policies.percentile(), detectors.default()), 3),
            ("again", Guard(policies.percentile(80), detectors.default()), 3),
            ("more variables", Guard(policies.percentile(), detectors.default()), 4),
            ("another policy", Guard(policies.zscore(), detectors.default()), 3),
            ("fewer detectors", Guard(policies.percentile(), detectors.spike()), 3),
        )
    }
    assert made.pop("again") == made["default"]
    assert len(set(made.values())) == 4

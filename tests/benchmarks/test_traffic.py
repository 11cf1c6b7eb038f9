"""Bytes that a step moves, counted in XLA's program of it; and that gradwatch moves no more than the bare clip."""

from __future__ import annotations

import pytest
import traffic

PROGRAM = """HloModule step

%fused (p: f32[4,8]) -> f32[4] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %r = f32[4]{0} reduce(%p), dimensions={1}
}

%yes (a: f32[4]) -> (f32[4]) {
  %a = (f32[4]{0}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%a), index=0
  %c = f32[4]{0} copy(%x)
  ROOT %t = (f32[4]{0}) tuple(%c)
}

%no (a: f32[4]) -> (f32[4]) {
  %a = (f32[4]{0}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%a), index=0
  ROOT %t = (f32[4]{0}) tuple(%x)
}

ENTRY %main (w: f32[4,8], q: pred[]) -> (f32[4]) {
  %w = f32[4,8]{1,0} parameter(0)
  %q = pred[] parameter(1)
  %f = f32[4]{0} fusion(%w), kind=kLoop, calls=%fused
  %d = f64[4]{0} convert(%f)
  %b = (f32[4]{0}) tuple(%f)
  ROOT %i = (f32[4]{0}) conditional(%q, %b, %b), true_computation=%yes, false_computation=%no
}
"""


def test_operands_and_results_are_counted_once_and_a_conditional_by_one_branch():
    least = (4 * 8 + 4) * 4 + 4 * (4 + 8)
    assert traffic.moved(PROGRAM, most=False) == least
    assert traffic.moved(PROGRAM, most=True) == least + 2 * 16


@pytest.mark.parametrize(("shape", "size"), [("f32[]", 4), ("f64[3,2]{1,0}", 48), ("(pred[5], s32[2]{0})", 13)])
def test_the_size_of_a_shape_is_in_bytes(shape, size):
    assert traffic.size(shape) == size


def test_a_watched_step_reads_the_gradients_once_more_and_copies_no_weights():
    passes = {}
    copies = {}
    for way in ("none", "clip", "gradwatch", 'on_nonfinite="skip"'):
        text, gradients = traffic.program("mlp-2m", way)
        passes[way] = traffic.moved(text, most=False) / gradients
        entry = traffic.computations(text)["ENTRY"]
        copies[way] = [line for line in entry if "f32[1024,1024]{1,0} copy(" in line]
    assert copies["gradwatch"] == copies['on_nonfinite="skip"'] == []
    assert passes["gradwatch"] - passes["none"] < 1.2
    assert passes["gradwatch"] < passes["clip"]
    assert passes['on_nonfinite="skip"'] - passes["gradwatch"] < 0.1

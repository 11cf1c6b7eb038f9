"""How many bytes does a step read and write? For an accelerator, whose speed is that of its memory, that is its time.

    python benchmarks/traffic.py                   MLP of 2 M and of 17 M weights under XLA, two minutes

Counted from the program that XLA made of the step for a CPU: the bytes of the operands and the result of each
instruction of the main computation, a conditional by its smallest or its largest branch. An operand of which a fusion
reads only a slice counts as a whole. Reported in passes: bytes over those of all gradients. gradwatch looks at the
weights in every fiftieth step, which is its largest branch; clipped or not, the step is the same.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import setting

BYTES = {"pred": 1, "s8": 1, "u8": 1, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
#: Contenders of overhead.py.
WAYS = ("none", "clip", "gradwatch", 'on_nonfinite="skip"')

#: Instructions that move nothing.
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all")

_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_LINE = re.compile(r"^\s+(?:ROOT )?(%[\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
_BRANCHES = re.compile(r"(?:true|false)_computation=(%[\w.-]+)|branch_computations=\{([^}]*)\}")


def size(shape: str) -> int:
    """Bytes of a shape as HLO writes it, a tuple of shapes included."""
    total = 0
    for kind, dims in _ARRAY.findall(shape):
        count = 1
        for dim in filter(None, dims.split(",")):
            count *= int(dim)
        total += BYTES.get(kind, 0) * count
    return total


def computations(text: str) -> dict[str, list[str]]:
    """Name -> lines of each computation of an HLO module; the main one is called "ENTRY"."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):
            name = "ENTRY" if line.startswith("ENTRY") else line.split(" ", 1)[0]
            lines = found.setdefault(name, [])
        elif line.startswith("  "):
            lines.append(line)
    return found


def moved(text: str, *, most: bool) -> int:
    """Bytes that a step of this optimized HLO module reads and writes.

    Args:
      most: of the branches of a conditional the one that moves most; else the one that moves least.
    """
    parts = computations(text)

    def of(name: str) -> int:
        sizes, total = {}, 0
        for line in parts[name]:
            match = _LINE.match(line)
            if match is None:
                continue
            own, shape, opcode, rest = match.groups()
            sizes[own] = size(shape)
            if opcode in FREE:
                continue
            if opcode == "conditional":
                names = [n for one, several in _BRANCHES.findall(rest) for n in re.findall(r"%[\w.-]+", one + several)]
                total += (max if most else min)(of(n) for n in names)
                continue
            if opcode in ("call", "while"):
                inner = re.findall(r"(?:to_apply|body)=(%[\w.-]+)", rest)
                total += sum(of(n) for n in inner)
                continue
            operands = re.findall(r"%[\w.-]+", rest.split(")", 1)[0])
            total += sizes[own] + sum(sizes.get(n, 0) for n in operands)
        return total

    return of("ENTRY")


def program(model: str, way: str) -> tuple[str, int]:
    """(optimized HLO of a jitted train step of overhead.py, bytes of its gradients)."""
    import overhead

    call: Any = overhead.make_step(overhead.MODELS[model][0], way, "jit")
    call()
    ir = call.step.experimental_get_compiler_ir(*call.arguments)
    return ir(stage="optimized_hlo"), 4 * call.parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mlp-2m,wide-17m")
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": setting.machine(), "models": {}}
    for model in options.models.split(","):
        ways = found["models"][model] = {}
        for way in WAYS:
            text, gradients = program(model, way)
            passes = [moved(text, most=most) / gradients for most in (False, True)]
            ways[way] = {"usual": round(passes[0], 3), "with a look": round(passes[1], 3)}
    print(report(found))
    setting.results_file("traffic", False).write_text(json.dumps(found, indent=1) + "\n")


def report(found: dict[str, Any]) -> str:
    """The table, in Markdown."""
    rows = []
    for model, ways in found["models"].items():
        none = ways["none"]["usual"]
        for way, passes in ways.items():
            beyond = "" if way == "none" else f"{passes['usual'] - none:+.2f}"
            rows.append([model, way, f"{passes['usual']:.2f}", beyond, f"{passes['with a look']:.2f}"])
    return setting.table(["model", "step", "passes", "beyond no clipping", "each 50th step"], rows)


if __name__ == "__main__":
    main()

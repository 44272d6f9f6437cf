"""Makes a program cheaper: `simplify` without changing a bit of what it computes, `fold` by no more than rounding.

What only looks at a tensor differently is skipped, and an operation element by element whose operand nobody else reads
works in that operand's place. Folded, batch norm goes into the convolution before it, and rows lie `channels_last`,
for which convolutions have faster kernels that round otherwise.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.network.graph import Node, Ref
from pipeline.network.program import Program
from pipeline.network.steps import Change, Step
from pipeline.network.windows import Convolution, TransposedConvolution

NOTHING = {"alias", "detach", "lift_fresh", "contiguous", "resolve_conj", "resolve_neg"}
BATCH_NORM = {"native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "_batch_norm_no_update"}


def simplify(program: Program) -> Program:
    """The program with fewer steps, which computes the same bits."""
    return _work_in_place(_skip_nothing(program))


def fold(program: Program) -> Program:
    """The program with fewer and faster steps, which may round otherwise."""
    return simplify(_channels_last(_fold_batch_norm(_skip_nothing(program))))


def _readers(program: Program) -> Counter[int]:
    """How many steps read each flow; the output is read once more."""
    readers = Counter(number for step in program.steps for number in step.inputs)
    readers[program.output] += 1
    return readers


def _skip_nothing(program: Program) -> Program:
    """Without steps that hand on what they are given."""
    same: dict[int, int] = {}
    kept = []
    for step in program.steps:
        step = renumbered(step, same)
        if step.node.name in NOTHING:
            same[step.output] = step.inputs[0]
        else:
            kept.append(step)
    return replace(program, steps=tuple(kept), output=same.get(program.output, program.output))


def renumbered(step: Step, same: dict[int, int]) -> Step:
    """The step with other numbers for its inputs."""
    if not any(number in same for number in step.inputs):
        return step
    return replace(step, inputs=tuple(same.get(number, number) for number in step.inputs))


def _fold_batch_norm(program: Program) -> Program:
    """Batch norm in eval mode is one factor and one summand a channel, as the convolution before it has them."""
    readers = _readers(program)
    made = {step.output: step for step in program.steps if type(step) is Convolution}
    folded: dict[int, Step] = {}
    gone: set[int] = set()
    for step in program.steps:
        before = made.get(step.inputs[0]) if step.node.name in BATCH_NORM else None
        if before is None or readers[before.output] > 1:
            continue
        gone.add(id(step))
        folded[id(before)] = replace(before, node=_with_batch_norm(before.node, step.node), outputs=step.outputs[:1])
    steps = tuple(folded.get(id(step), step) for step in program.steps if id(step) not in gone)
    return replace(program, steps=steps)


def _with_batch_norm(convolution: Node, norm: Node) -> Node:
    """The convolution's weights times weight / sqrt(var + eps), its bias moved alike (torch.nn.BatchNorm2d)."""
    of = norm.bound()
    mean, variance = of["running_mean"].double(), of["running_var"].double()
    factor = (variance + of["eps"]).rsqrt()
    if of["weight"] is not None:
        factor = factor * of["weight"].double()
    weight, bias = convolution.args[1], convolution.args[2]
    shift = -mean * factor if bias is None else (bias.double() - mean) * factor
    if of["bias"] is not None:
        shift = shift + of["bias"].double()
    scaled = (weight.double() * factor.view(-1, *[1] * (weight.ndim - 1))).to(weight.dtype)
    args = (convolution.args[0], scaled, shift.to(weight.dtype), *convolution.args[3:])
    return replace(convolution, args=args)


def _channels_last(program: Program) -> Program:
    """Bands and kernels in the order in which the channels of a pixel lie together."""
    steps = []
    for step in program.steps:
        kernel = step.node.args[1] if isinstance(step, Convolution | TransposedConvolution) else None
        if isinstance(kernel, Tensor) and kernel.ndim == 4:
            kernel = kernel.contiguous(memory_format=torch.channels_last)
            step = replace(step, node=replace(step.node, args=(step.node.args[0], kernel, *step.node.args[2:])))
        steps.append(step)
    return replace(program, steps=tuple(steps), channels_last=True)


def _work_in_place(program: Program) -> Program:
    """An operation element by element becomes part of the step before it, where that made its operand anew."""
    readers = _readers(program)
    steps: dict[int, Step] = {}
    """By their output."""
    for step in program.steps:
        before = steps.get(step.inputs[0])
        change = _in_place(step.node) if type(step) is Step and len(step.inputs) == 1 else None
        operand = step.inputs[0]
        alone = readers[operand] == 1 and program.flows[operand].dtype is program.flows[step.output].dtype
        if before is not None and change is not None and alone and len(before.outputs) == 1 and before.makes_anew:
            del steps[operand]
            step = replace(before, outputs=step.outputs, then=(*before.then, change))
        steps[step.output] = step
    return replace(program, steps=tuple(steps.values()))


def _in_place(node: Node) -> Change | None:
    """The operation in the place of its operand; None where there is no such form."""
    if torch.Tag.pointwise not in node.op.tags or not node.args or not isinstance(node.args[0], Ref):
        return None
    rest = node.args[1:]
    if any(isinstance(leaf, Tensor | Ref | list | tuple) for leaf in (*rest, *node.kwargs.values())):
        return None
    packet = getattr(torch.ops.aten, f"{node.name}_", None)
    overload = getattr(packet, node.op._overloadname, None)
    return None if overload is None else Change(node, overload)

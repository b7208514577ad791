"""From a node to a program: the reads and kernels, in order, that make one tile of a tensor.

Tiles flow through a whole chain of artifacts: a node that nothing has stored is computed from its inputs, tile by tile,
into a slot. Slots are reused as soon as their last reader is done, so a long chain needs few.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from modelbuild.cache.nouns import Located
from modelbuild.engine.block import BLOCK
from modelbuild.methods.operations import operation
from modelbuild.plan.node import ITEMSIZE, Node

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelbuild.methods.base import Kernel, Pass, Survey


@dataclass(frozen=True, slots=True)
class Read:
    """Reads a stretch of a stored tensor into a slot: a source's, or a cached one whose checksum is then compared."""

    node: Node
    slot: int
    located: Located | None
    index: int


@dataclass(frozen=True, slots=True)
class Run:
    """Runs the kernel of a node on the slots of its streamed inputs. `index` finds the kernel prepared for it.

    `gathered` are, of a node that reads rows of its inputs, where those lie that are stored in the cache, by key.
    """

    node: Node
    inputs: tuple[int, ...]
    slot: int
    index: int
    gathered: Mapping[str, Located] | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """How to make a tile of `node`: the steps in order, the slot that holds the result, and what it takes.

    `slots` is the number of buffers of four bytes an element, `scratch` the float32 values an element besides.
    `memory` are the bytes that whole inputs need for the tensor. Stretches have to hold `room` elements. Where an
    operation `surveys` its inputs, one thread makes the whole tensor. `cached` is where whole inputs, and what they are
    made of, may be read from.
    """

    node: Node
    steps: tuple[Read | Run, ...]
    slots: int
    scratch: int
    memory: int
    room: int = 1
    surveys: bool = False
    cached: Mapping[str, Located] = field(default_factory=dict)

    @property
    def result(self) -> int:
        """The slot that holds the tile when all steps are done."""
        return self.steps[-1].slot

    @property
    def runs(self) -> tuple[Run, ...]:
        """The steps that compute."""
        return tuple(step for step in self.steps if isinstance(step, Run))

    def before(self, run: Run, slots: Collection[int]) -> tuple[Read | Run, ...]:
        """The steps that make those inputs of `run` that are in `slots`, in order."""
        wanted = set(slots)
        found: list[Read | Run] = []
        for step in reversed(self.steps[: run.index]):
            if step.slot in wanted:
                # An earlier step that used this slot made something else.
                wanted.discard(step.slot)
                wanted.update(step.inputs if isinstance(step, Run) else ())
                found.append(step)
        return tuple(reversed(found))

    @property
    def part(self) -> int:
        """Elements of a part: the least stretch that is whole checksum blocks of every tensor that is read or made."""
        if self.surveys:
            return max(1, self.node.count)
        return BLOCK // min(ITEMSIZE[step.node.dtype] for step in self.steps)


def compile_program(node: Node, cached: Mapping[str, Located], fresh: bool = False) -> Program:
    """The program of a node, reading `cached` tensors where it can; with `fresh` the node itself is computed anew."""
    order = _order(node, cached, fresh)
    last_use = {used.key: position for position, (_, inputs) in enumerate(order) for used in inputs}
    free: list[int] = []
    slot_of: dict[str, int] = {}
    steps: list[Read | Run] = []
    slots = scratch = memory = 0
    room, surveys = 1, False
    for position, (step_node, inputs) in enumerate(order):
        if not free:
            free.append(slots)
            slots += 1
        slot = slot_of[step_node.key] = free.pop()
        if not inputs and _stored(step_node, cached, fresh and step_node is node):
            steps.append(Read(step_node, slot, cached.get(step_node.key), len(steps)))
            continue
        found = operation(step_node.operation)
        slots_read = tuple(slot_of[used.key] for used in inputs)
        steps.append(Run(step_node, slots_read, slot, len(steps), _gathered(step_node, cached)))
        scratch = max(scratch, found.scratch(step_node))
        room = max(room, found.room(step_node))
        surveys |= found.surveys(step_node)
        memory += found.memory(step_node) + _held(steps[-1])
        for key in {used.key for used in inputs}:
            if last_use[key] == position:
                free.append(slot_of[key])
    return Program(node, tuple(steps), slots, scratch, memory, room, surveys, cached)


def _gathered(node: Node, cached: Mapping[str, Located]) -> Mapping[str, Located] | None:
    """Where the inputs lie of which rows are read; None for another node."""
    if node.rows is None:
        return None
    return {used.key: cached[used.key] for used in node.inputs if used.key in cached}


def _held(step: Read | Run) -> int:
    """The bytes of inputs that are made whole in memory, since rows of them are read and nothing has stored them."""
    kept = None if isinstance(step, Read) else step.gathered
    if kept is None:
        return 0
    made = [used for used in step.node.inputs if used.operation != "source" and used.key not in kept]
    return sum(used.nbytes for used in made)


def _stored(node: Node, cached: Mapping[str, Located], fresh: bool) -> bool:
    return node.operation == "source" or (not fresh and node.key in cached)


def _order(node: Node, cached: Mapping[str, Located], fresh: bool) -> list[tuple[Node, tuple[Node, ...]]]:
    """Each node that is made or read, inputs first and once, with its streamed inputs."""
    done: set[str] = set()
    order: list[tuple[Node, tuple[Node, ...]]] = []
    pending: list[tuple[Node, bool]] = [(node, False)]
    while pending:
        current, expanded = pending.pop()
        if current.key in done:
            continue
        if _stored(current, cached, fresh and current is node):
            inputs: tuple[Node, ...] = ()
        else:
            whole = set(operation(current.operation).whole(current))
            inputs = tuple(used for index, used in enumerate(current.inputs) if index not in whole)
        if expanded or not inputs:
            done.add(current.key)
            order.append((current, inputs))
            continue
        pending.append((current, True))
        pending += [(used, False) for used in reversed(inputs)]
    return order


Streaming: TypeAlias = "Callable[[Run, Mapping[int, Kernel], Pass], None]"
"""Streams the inputs of a step, which the kernels of the steps before it make, for a pass."""


def prepare(
    program: Program,
    whole: Callable[[Node], NDArray[Any]],
    stream: Streaming,
    warn: Callable[[str], None],
    gather: Callable[[Run], Sequence[Any]],
) -> dict[int, Kernel]:
    """The kernels of a program, by `Run.index`; `whole` gives an input whole, as raw elements in its shape, `gather`
    the inputs of a step as kernels/rows.py reads rows of them."""
    kernels: dict[int, Kernel] = {}
    for run in program.runs:
        found = operation(run.node.operation)
        if run.gathered is not None:
            arrays = gather(run)
        elif found.asks(run.node):
            arrays = _Asked([run.node.inputs[index] for index in found.whole(run.node)], whole)
        else:
            arrays = [whole(run.node.inputs[index]) for index in found.whole(run.node)]
        made = found.prepare(run.node, arrays)
        if found.surveys(run.node):
            show = partial(stream, run, dict(kernels))
            made = finished(cast("Survey", made), show, warn)
        kernels[run.index] = cast("Kernel", made)
    return kernels


class _Asked(Sequence[Any]):
    """Whole inputs that are read each time they are taken, so that only those in use are in memory."""

    def __init__(self, nodes: Sequence[Node], whole: Callable[[Node], NDArray[Any]]) -> None:
        self._nodes = nodes
        self._whole = whole

    def __getitem__(self, index: Any) -> Any:
        return self._whole(self._nodes[index])

    def __len__(self) -> int:
        return len(self._nodes)


def finished(survey: Survey, stream: Callable[[Pass], None], warn: Callable[[str], None]) -> Kernel:
    """The kernel that a survey ends in, after `stream` has streamed the inputs for each of its passes."""
    while True:
        try:
            wanted = next(survey)
        except StopIteration as end:
            return cast("Kernel", end.value)
        if isinstance(wanted, str):
            warn(wanted)
        else:
            stream(wanted)

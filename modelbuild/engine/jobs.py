"""The nouns of a run: what is to be made and where it goes, and what came of it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modelbuild.engine.block import Blocks
from modelbuild.engine.program import Program, Read

if TYPE_CHECKING:
    from modelbuild.methods.base import Kernel


@dataclass(frozen=True, slots=True)
class Job:
    """A tensor to be made: its names in the artifact, its program, and where each copy goes (descriptor, offset)."""

    names: tuple[str, ...]
    program: Program
    places: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Made:
    """A finished tensor: its checksum, and how many of its elements are NaN or infinite."""

    job: Job
    checksum: str
    nonfinite: int


@dataclass(slots=True)
class Tally:
    """What a run did: bytes read and written, the greatest number of bytes held at once, seconds in kernels by key.

    `warnings` are what operations found amiss with their inputs, with the tensors concerned.
    """

    read: int = 0
    written: int = 0
    peak: int = 0
    spent: dict[str, float] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)


class Damaged(Exception):
    """A cached tensor was not what its checksum says; `keys` are those found so."""

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__("damaged cached tensors")
        self.keys = tuple(keys)


@dataclass(slots=True)
class Progress:
    """A job under way: parts left, checksums so far, and the kernels once somebody has prepared them."""

    job: Job
    left: int
    blocks: Blocks
    reads: Mapping[int, Blocks]
    nonfinite: int = 0
    kernels: Mapping[int, Kernel] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


def start(job: Job, parts: int) -> Progress:
    """A job of which nothing is done yet."""
    reads = {
        index: Blocks(step.node.nbytes)
        for index, step in enumerate(job.program.steps)
        if isinstance(step, Read) and step.located is not None
    }
    return Progress(job, parts, Blocks(job.program.node.nbytes), reads)

"""What a format's file declares: types and options, which tensors it packs and how, and where its library is called.

Adding a format is adding one file to this folder with a `FORMAT` in it. The file is imported to plan, so it imports
neither numpy nor the library at the top; `Format.packer` names the class that calls it, made when tensors are packed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from modelbuild.plan.node import Node, Params

LATE = 64 * 1024
"""Bytes that an output whose length is known only once it is made may have at most."""

Emit: TypeAlias = "Callable[[str, bytes], None]"
"""Takes the next bytes of the output of that name."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a format: its type, and the least value of an integer or all that it may be.

    `types` are the types of the format that it has a meaning for; empty for all.
    """

    name: str
    type: Literal["string", "integer", "boolean"]
    help: str
    low: int | None = None
    choices: tuple[int, ...] = ()
    types: tuple[str, ...] = ()
    default: str | int | bool | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """One of the tensors that packing a weight makes.

    `name` is its name beside the weight's module: `weight.absmax` of `layers.0.up_proj`. The shape of a `late` one is
    the greatest it may have, its length being known only once it is made; it is one of bytes, and none of them is 0.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    late: bool = False


@dataclass(frozen=True, slots=True)
class Pack:
    """A tensor is packed, with these parameters, into these outputs; all others are taken as they are."""

    params: Params
    outputs: tuple[Output, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """What a format is asked to pack: dtype and shape of each tensor, config.json as data, type, options.

    `skipped` says of a tensor's name whether the Modelfile leaves it alone.
    """

    name: str
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    config: Mapping[str, Any] | None
    type: str
    options: Mapping[str, Any]
    skipped: Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Packing:
    """What a format makes of a model: the tensors that it packs, those it would but for `skip`, keys of config.json."""

    packed: Mapping[str, Pack]
    skipped: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Unfit(Exception):
    """A model that the format cannot take; `message` completes the sentence "`x` …", with facts and a hint."""

    def __init__(self, message: str, facts: Sequence[str] = (), hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.facts = tuple(facts)
        self.hint = hint


class Packer(Protocol):
    """Calls a format's library. Stateless; used by several threads at once, each within `running`."""

    def memory(self, node: Node) -> int:
        """Bytes held while a tensor is packed, besides the tensor itself."""

    def running(self) -> AbstractContextManager[None]:
        """Prepares the library for what this format promises; entered once around all packing."""

    def pack(self, node: Node, raw: NDArray[Any], emit: Emit) -> None:
        """Packs one tensor, given whole as raw elements in its shape, handing each output's bytes over in order."""


@dataclass(frozen=True, slots=True)
class Format:
    """A quantised format: the types that `type` may name and the options that its table takes.

    `libraries` are the packages that compute what it makes, first the one it is named for, and `extra` what installs
    them: their versions are part of every key. `plan` decides a model, raising Unfit; None for a format that is known
    but not built yet.
    """

    name: str
    summary: str
    types: tuple[str, ...]
    options: tuple[Option, ...]
    version: int = 0
    libraries: tuple[str, ...] = ()
    extra: str = ""
    plan: Callable[[Model], Packing] | None = None
    packer: Callable[[], Packer] | None = None

    @property
    def built(self) -> bool:
        """Whether this version builds it."""
        return self.plan is not None

    def option(self, name: str) -> Option | None:
        """The declaration of the option `name`, if the format has it."""
        return next((option for option in self.options if option.name == name), None)

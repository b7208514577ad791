"""What a method file declares: its name, its parameters, its identity rules, and where its kernel is.

Adding a method is adding one file to this folder with a `METHOD` in it. The file is imported to plan, so it imports
neither numpy nor numba at the top; `Method.operation` names the module's own class, made when tiles are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, get_args

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelbuild.plan.node import Node, Params

Scalar: TypeAlias = "float | int | bool | str"
Type: TypeAlias = Literal["number", "integer", "boolean", "string", "strings"]

TYPES: tuple[str, ...] = get_args(Type)
"""What a parameter's values may be."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a method: whether it belongs to the merge or to each input, its type, default and range.

    strings: a string or a list of strings. `default` None means required. `low` and `high` are inclusive.
    """

    name: str
    scope: Literal["merge", "input"]
    type: Type
    default: Scalar | None
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    nullable: bool = False
    """An optional parameter without a default value: absent means the method does without."""


@dataclass(frozen=True, slots=True)
class Take:
    """The output tensor is this input as it is (`index` into the inputs; -1 the base): nothing is computed."""

    index: int


@dataclass(frozen=True, slots=True)
class Compute:
    """The output tensor is computed by the method's operation from `inputs`, of which weight-0 ones are left out.

    `bound`: by the method's `libraries`, so that the result repeats within a numerics class only.
    """

    params: Params
    inputs: tuple[Node, ...]
    bound: bool = False


@dataclass(frozen=True, slots=True)
class Refuse:
    """The parameters make no sense for this tensor; `reason` completes the sentence "tensor `x`: …"."""

    reason: str


Step: TypeAlias = "Take | Compute | Refuse"


@dataclass(frozen=True, slots=True)
class Request:
    """What a method is asked for one output tensor: nodes, all of one shape and floating, and resolved parameters.

    `tensor` is the output tensor's name, `names` what the Modelfile calls the inputs, `seed` the merge's: together they
    say which random numbers a method draws.
    """

    base: Node | None
    inputs: tuple[Node, ...]
    shared: Mapping[str, Scalar | None]
    per_input: Sequence[Mapping[str, Scalar | None]]
    tensor: str = ""
    names: tuple[str, ...] = ()
    seed: int = 0


class Kernel(Protocol):
    """Computes elements [start, stop) of the flat output, in C order, from the same stretch of the streamed inputs.

    Arrays are the raw elements: uint16 for BF16 and F16, float32 for F32. `scratch` is float32, at least
    `Operation.scratch` times the stretch, the thread's own. Called from many threads at once.
    """

    def __call__(
        self, start: int, stop: int, inputs: Sequence[NDArray[Any]], out: NDArray[Any], scratch: NDArray[Any]
    ) -> None:
        """Fills `out` with elements [start, stop)."""


class Look(Protocol):
    """Looks at elements [start, stop) of the streamed inputs before anything is computed; see `Kernel`.

    Called from one thread, for one stretch after the other, from the first element to the last.
    """

    def __call__(self, start: int, stop: int, inputs: Sequence[NDArray[Any]], scratch: NDArray[Any]) -> None:
        """Takes in elements [start, stop)."""


@dataclass(frozen=True, slots=True)
class Pass:
    """The streamed inputs are to be shown to `look`, from the first element to the last.

    With `stretches` only their elements [start, stop). The pieces that are shown begin at multiples of 2048 from the
    start of each on, or with `unit` at multiples of that: elements of a row, say. `inputs` are the indexes, among the
    streamed inputs, of those that are shown, where not all are.
    """

    look: Look
    stretches: tuple[tuple[int, int], ...] | None = None
    unit: int = 1
    inputs: tuple[int, ...] | None = None


Survey: TypeAlias = "Generator[Pass | str, None, Kernel]"
"""How an operation that has to know its inputs before it computes gets to know them: they are streamed for each `Pass`
that it yields, and it returns the kernel. It reads like the method's definition, pass by pass. A text that it yields is
a warning, which completes the sentence "the inputs of `x` are …"."""


class Operation(Protocol):
    """How the engine computes a node. Stateless; `prepare` is called once for each output tensor."""

    def scratch(self, node: Node) -> int:
        """float32 values of scratch for each element of a tile."""

    def room(self, node: Node) -> int:
        """Elements that a stretch has to hold at least, whatever the memory budget: the greatest unit of its passes."""

    def surveys(self, node: Node) -> bool:
        """Whether the inputs are looked at before anything is computed: `prepare` then gives a survey."""

    def whole(self, node: Node) -> tuple[int, ...]:
        """Which inputs are needed whole in memory (factors of an adapter); the others are streamed."""

    def asks(self, node: Node) -> bool:
        """Whether a whole input is read each time that `prepare` takes it from `whole`, and not kept for it."""

    def shared(self, node: Node) -> bool:
        """Whether several tensors are made of the value, which a run then keeps in memory once it is made."""

    def memory(self, node: Node) -> int:
        """Bytes held while the tensor is computed, besides tiles: the whole inputs and what is made of them."""

    def prepare(self, node: Node, whole: Sequence[NDArray[Any]]) -> Kernel | Survey:
        """The kernel for one tensor, or the survey that ends in it, given its whole inputs as raw arrays in shape."""


@dataclass(frozen=True, slots=True)
class Method:
    """A merge method, as its file declares it.

    `inputs` is the least and greatest number of entries of `models` (or of `adapters`), None for no limit.
    `base`: "required", "optional" (used where given) or "none" (a base is the donor of config and tokenizer only).
    `step` decides one tensor; None for a method that is known but not built yet.
    """

    name: str
    summary: str
    paper: str
    version: int
    base: Literal["required", "optional", "none"]
    inputs: tuple[int, int | None]
    parameters: tuple[Parameter, ...]
    takes: Literal["models", "adapters"] = "models"
    step: Callable[[Request], Step] | None = None
    operation: Callable[[], Operation] | None = None
    random: bool = False
    """Whether the method draws random numbers: then the seed is among the reasons of a build."""
    libraries: Callable[[Mapping[str, Any]], tuple[str, ...]] = lambda parameters: ()
    """Packages that compute a part of a merge with these parameters, or read what it is made of: their versions are
    part of the keys of what is bound to them, and of the lock."""
    extra: str = ""
    """The extra that installs those of its libraries that modelbuild does without."""
    mixture: bool = False
    """Whether it makes a mixture of experts, which has other tensors than its inputs: plan/mixture.py plans it."""
    distribution: str = ""
    """The distribution that a method from outside came with, and its `release`; empty for modelbuild's own."""
    release: str = ""
    places: tuple[str, ...] = ()
    """Files and folders of a method from outside that another release of it would replace."""

    @property
    def operation_name(self) -> str:
        """What nodes call the operation: the method's name, after that of the distribution that it came from."""
        return f"{self.distribution}:{self.name}" if self.distribution else self.name

    @property
    def numerics(self) -> str | None:
        """The class that what is computed is bound to: the release of a method from outside; None for our own."""
        return f"{self.distribution} {self.release}" if self.distribution else None

    @property
    def locked(self) -> int | str:
        """What the lock says of the method: its version, for one from outside after the release it came with."""
        return f"{self.numerics}, version {self.version}" if self.distribution else self.version

    def parameter(self, name: str) -> Parameter | None:
        """The declaration of the parameter `name`, if the method has it."""
        return next((p for p in self.parameters if p.name == name), None)

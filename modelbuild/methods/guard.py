"""Code from outside at arm's length: whatever it raises is told as one of our errors, with who is to blame."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from modelbuild.digest import identity
from modelbuild.errors import BuildFailed, Fault, ModelbuildError, Where
from modelbuild.methods.base import Compute, Kernel, Look, Method, Pass, Refuse, Request, Step, Survey, Take

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from modelbuild.methods.base import Operation
    from modelbuild.plan.node import Node

Result = TypeVar("Result")

DEBUG = "`--debug` shows where; report it to those who made it"


def failed(method: str, title: str, what: str, error: BaseException, where: Where | None = None) -> Fault:
    """That a method from outside went wrong, at `what`; `title` names its distribution."""
    told = " ".join(str(error).split())
    fact = f"{type(error).__name__}: {told}" if told else type(error).__name__
    return Fault(f"method `{method}` of {title} {what}", where, (fact,), DEBUG)


def guarded(method: Method) -> Method:
    """The method with errors of its step, operation and libraries made ours, and what they give looked at."""
    step, operation = method.step, method.operation
    assert step is not None
    assert operation is not None

    def guarded_step(request: Request) -> Step:
        return _Guard(method).call(f"failed at `{request.tensor}`", lambda: _checked(step(request), request))

    def guarded_operation() -> Operation:
        guard = _Guard(method)
        return _Operation(guard, guard.call("cannot compute", operation))

    def guarded_libraries(parameters: Mapping[str, Any]) -> tuple[str, ...]:
        return _Guard(method).call("cannot say its libraries", lambda: _names(method.libraries(parameters)))

    return replace(method, step=guarded_step, operation=guarded_operation, libraries=guarded_libraries)


class _Guard:
    """Calls what belongs to one method."""

    def __init__(self, method: Method) -> None:
        self.name = method.name
        self.title = f"`{method.distribution}` {method.release}"

    def call(self, what: str, work: Callable[[], Result]) -> Result:
        """What `work` gives; raises BuildFailed for what it raises, unless that is ours already."""
        try:
            return work()
        except ModelbuildError:
            raise
        except (Exception, SystemExit) as error:
            raise BuildFailed([failed(self.name, self.title, what, error)]) from error


def _checked(step: Step, request: Request) -> Step:
    """The step, if the plan can go on with it; TypeError or ValueError if not."""
    if isinstance(step, Refuse) and isinstance(step.reason, str):
        return step
    if isinstance(step, Take):
        if not (step.index == -1 and request.base is not None) and step.index not in range(len(request.inputs)):
            raise ValueError(f"step takes input {step.index} of {len(request.inputs)}")
        return step
    if not isinstance(step, Compute):
        raise TypeError(f"step gives {type(step).__name__}, not Take, Compute or Refuse")
    known = {id(node) for node in (request.base, *request.inputs)}
    if not step.inputs or not all(id(node) in known for node in step.inputs):
        raise ValueError("step computes from tensors that it was not given")
    identity("outside/1", step.params)
    return step


def _names(libraries: tuple[str, ...]) -> tuple[str, ...]:
    """The libraries, if they are names of packages; TypeError if not."""
    if not isinstance(libraries, tuple) or not all(isinstance(name, str) for name in libraries):
        raise TypeError("libraries gives no tuple of names")
    return libraries


class _Operation:
    """An operation from outside; see methods/base.py."""

    def __init__(self, guard: _Guard, made: Operation) -> None:
        self._guard = guard
        self._made = made

    def scratch(self, node: Node) -> int:
        """What the method says."""
        return self._guard.call("cannot compute", lambda: int(self._made.scratch(node)))

    def room(self, node: Node) -> int:
        """What the method says."""
        return self._guard.call("cannot compute", lambda: int(self._made.room(node)))

    def surveys(self, node: Node) -> bool:
        """What the method says."""
        return self._guard.call("cannot compute", lambda: bool(self._made.surveys(node)))

    def whole(self, node: Node) -> tuple[int, ...]:
        """What the method says."""
        return self._guard.call("cannot compute", lambda: tuple(self._made.whole(node)))

    def asks(self, node: Node) -> bool:
        """What the method says."""
        return self._guard.call("cannot compute", lambda: bool(self._made.asks(node)))

    def shared(self, node: Node) -> bool:
        """What the method says."""
        return self._guard.call("cannot compute", lambda: bool(self._made.shared(node)))

    def memory(self, node: Node) -> int:
        """What the method says."""
        return self._guard.call("cannot compute", lambda: int(self._made.memory(node)))

    def prepare(self, node: Node, whole: Sequence[NDArray[Any]]) -> Kernel | Survey:
        """What the method says, each call of it guarded."""
        made = self._guard.call("failed while computing", lambda: self._made.prepare(node, whole))
        return self._survey(cast("Survey", made)) if self.surveys(node) else self._kernel(cast("Kernel", made))

    def _survey(self, survey: Survey) -> Survey:
        while True:
            wanted, kernel = self._guard.call("failed while computing", lambda: _next(survey))
            if wanted is None:
                return self._kernel(cast("Kernel", kernel))
            yield wanted if isinstance(wanted, str) else replace(wanted, look=self._called(wanted.look))

    def _kernel(self, kernel: Kernel) -> Kernel:
        if not callable(kernel):
            error = TypeError(f"prepare gives {type(kernel).__name__}, not a kernel")
            self._guard.call("failed while computing", lambda: _throw(error))
        return cast("Kernel", self._called(kernel))

    def _called(self, function: Kernel | Look) -> Any:
        def call(*arguments: Any) -> None:
            self._guard.call("failed while computing", lambda: function(*arguments))

        return call


def _next(survey: Survey) -> tuple[Pass | str | None, Kernel | None]:
    """What a survey asks for next, or None and the kernel that it ends in."""
    try:
        wanted = next(survey)
    except StopIteration as end:
        return None, end.value
    if not isinstance(wanted, (str, Pass)):
        raise TypeError(f"a survey yields {type(wanted).__name__}, not Pass")
    return wanted, None


def _throw(error: Exception) -> None:
    raise error

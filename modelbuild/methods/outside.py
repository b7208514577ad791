"""Methods from outside: what installed distributions declare under the entry point group `modelbuild.methods`.

    [project.entry-points."modelbuild.methods"]
    fox = "modelbuild_fox:METHOD"

A Modelfile alone never makes such code run: a method is imported only where the user named its distribution
(`--plugins`, `MODELBUILD_PLUGINS`) and a merge names the method. What is installed is read from its metadata, which
runs nothing, and only where a distribution was named or a method is not known.

What such a method computes is bound to the release of its distribution: that is the numerics class of its nodes, and
stands in the lock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import import_module
from typing import TYPE_CHECKING

from modelbuild.errors import BuildFailed, Fault, UsageError, Where
from modelbuild.methods.base import TYPES, Method, Parameter
from modelbuild.methods.guard import failed, guarded
from modelbuild.methods.registry import methods

if TYPE_CHECKING:
    from importlib.metadata import Distribution

    from modelbuild.methods.base import Operation

GROUP = "modelbuild.methods"
"""The entry point group."""

LOCKED = re.compile(r"(?P<distribution>[\w.-]+) (?P<release>[^\s,]+), version (?P<version>[0-9]+)")
"""What the lock says of a method from outside."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_loaded: dict[str, Method] = {}


@dataclass(frozen=True, slots=True)
class Offer:
    """A method that an installed distribution declares, by its metadata: nothing of it was imported.

    `value` is `module:attribute`; `places` are the folders or files that another release would replace.
    """

    method: str
    distribution: str
    release: str
    value: str
    places: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The distribution as messages name it."""
        return f"`{self.distribution}` {self.release}"


@dataclass(frozen=True)
class Outside:
    """The methods that may come from outside: those of the distributions called `trusted`, in their normal spelling.

    Nothing is looked for before something is asked.
    """

    trusted: tuple[str, ...] = ()

    @cached_property
    def offers(self) -> dict[str, Offer]:
        """What the trusted distributions offer, by method.

        Raises UsageError where one offers a method that is modelbuild's own, or two offer the same.
        """
        found: dict[str, Offer] = {}
        for offer in offers_of(self.trusted):
            other = found.setdefault(offer.method, offer)
            if offer.method in methods():
                facts = (f"{offer.title} declares it", "modelbuild has a method of this name")
                hint = f"leave `{offer.distribution}` out of `--plugins`; its method needs another name"
                raise UsageError(f"`{offer.method}` cannot come from outside", facts=facts, hint=hint)
            if other is not offer:
                facts = (f"{other.title} declares it", f"{offer.title} declares it")
                hint = "leave one of them out of `--plugins`"
                raise UsageError(f"two distributions offer the method `{offer.method}`", facts=facts, hint=hint)
        return found

    def method(self, name: str, where: Where | None = None) -> Method | None:
        """The method called `name` of a trusted distribution, imported; None if none offers it.

        Raises BuildFailed where it cannot be imported or is no method.
        """
        offer = self.offers.get(name) if self.trusted else None
        return load(offer, where) if offer is not None else None

    @cached_property
    def missing(self) -> list[str]:
        """The trusted distributions that are not installed."""
        return [name for name in self.trusted if _distribution(name) is None]

    def others(self, name: str) -> list[Offer]:
        """Who offers the method `name` of all that is installed."""
        return [offer for offer in self.untrusted if offer.method == name]

    @cached_property
    def untrusted(self) -> list[Offer]:
        """What is offered by all that is installed and not trusted."""
        return [offer for offer in installed() if normal(offer.distribution) not in self.trusted]

    def all(self) -> dict[str, Method]:
        """Every method of the trusted distributions by name, all imported. Raises BuildFailed as `method` does."""
        return {name: load(self.offers[name]) for name in sorted(self.offers)}


TRUSTS_NOBODY = Outside()
"""What a Modelfile may use unless its user says more."""


def normal(name: str) -> str:
    """The one spelling of a distribution's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def offers_of(names: Iterable[str]) -> Iterator[Offer]:
    """What these distributions offer; those that are not installed offer nothing."""
    for name in names:
        found = _distribution(name)
        if found is not None:
            yield from _offers(found)


def installed() -> list[Offer]:
    """What all installed distributions offer, sorted; those whose metadata cannot be read are left out."""
    from importlib.metadata import distributions

    found: dict[str, list[Offer]] = {}
    for distribution in distributions():
        try:
            name = distribution.metadata["Name"]
            # As in Python itself, the first of two on the path is the one that counts.
            if name and normal(name) not in found:
                found[normal(name)] = list(_offers(distribution))
        except Exception:
            continue
    return sorted((offer for name in found for offer in found[name]), key=lambda o: (o.method, o.distribution))


def release_of(name: str) -> str | None:
    """The installed release of a distribution; None where it is not installed."""
    found = _distribution(name)
    return found.version if found is not None else None


def _distribution(name: str) -> Distribution | None:
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _offers(distribution: Distribution) -> Iterator[Offer]:
    path = str(getattr(distribution, "_path", "") or "")
    for entry in distribution.entry_points:
        if entry.group == GROUP:
            places = (path,) if path else ()
            yield Offer(entry.name, distribution.metadata["Name"], distribution.version, entry.value, places)


@cache
def _imported(offer: Offer) -> Method:
    """The method as its distribution declares it; raises what importing it raises, and TypeError for what is none."""
    module, _, attributes = offer.value.partition(":")
    found = import_module(module.strip())
    place = getattr(found, "__file__", None)
    for attribute in attributes.split("[")[0].strip().split("."):
        found = getattr(found, attribute)
    if not isinstance(found, Method):
        raise TypeError(f"{offer.value} is {type(found).__name__}, not a modelbuild.methods.base.Method")
    if found.name != offer.method or not _NAME.fullmatch(found.name):
        raise TypeError(f"its name is {found.name!r}, and the entry point's is {offer.method!r}")
    if found.step is None or found.operation is None or found.takes != "models" or found.mixture:
        raise TypeError("a method from outside needs a step and an operation, takes models, and makes no mixture")
    if type(found.version) is not int or not all(map(_is_declared, found.parameters)):
        raise TypeError("its version is a whole number, and its parameters are those of modelbuild.methods.base")
    places = tuple(dict.fromkeys([*offer.places, *([place] if place else [])]))
    return guarded(replace(found, distribution=offer.distribution, release=offer.release, places=places))


def _is_declared(found: Parameter) -> bool:
    """Whether a parameter is one that a Modelfile can be read by."""
    return type(found.name) is str and found.scope in ("merge", "input") and found.type in TYPES


def load(offer: Offer, where: Where | None = None) -> Method:
    """The method that is offered, imported, with errors in it made ours. Raises BuildFailed."""
    try:
        method = _imported(offer)
    except (Exception, SystemExit) as error:
        raise BuildFailed([failed(offer.method, offer.title, "cannot be used", error, where)]) from error
    _loaded[method.operation_name] = method
    return method


def loaded_operation(name: str) -> Operation:
    """The operation of a method from outside that was loaded, by the name that nodes have; KeyError for others."""
    method = _loaded[name]
    assert method.operation is not None
    return method.operation()


def unknown(name: str, outside: Outside) -> tuple[Sequence[str], str | None]:
    """Facts about a method that nobody who is trusted offers, and how to trust who does, if anybody."""
    offers = outside.others(name)
    facts = [f"{offer.title}, which is installed, offers it" for offer in offers]
    facts += [f"`--plugins` names `{missing}`, which is not installed" for missing in outside.missing]
    if not offers:
        return facts, None
    names = ",".join([*outside.trusted, offers[0].distribution])
    return facts, f"its code runs only if you trust it: `--plugins {names}`, or MODELBUILD_PLUGINS={names}"


def not_installed(locked: str, method: str, where: Where | None) -> Fault | None:
    """A fault if what the lock says of a method is of a distribution that is not installed."""
    found = LOCKED.fullmatch(locked)
    if found is None or release_of(found["distribution"]) is not None:
        return None
    message = f"the lock has method `{method}` of `{found['distribution']}` {found['release']}, which is not installed"
    wanted = f"{found['distribution']}=={found['release']}"
    return Fault(message, where, hint=f"install {wanted}, and trust it: `--plugins {found['distribution']}`")

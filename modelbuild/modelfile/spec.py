"""What a Modelfile says, as immutable nouns. Nothing here knows files, sources or tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from modelbuild.errors import Where

if TYPE_CHECKING:
    from modelbuild.methods.base import Method

Scalar: TypeAlias = "float | int | bool | str"
Path: TypeAlias = "tuple[str | int, ...]"
"""Where a key stands in the file: ("merge", "x", "models", 0, "weight")."""


@dataclass(frozen=True, slots=True)
class Constant:
    """The same value for every tensor."""

    value: Scalar


@dataclass(frozen=True, slots=True)
class Texts:
    """Several strings, the same for every tensor."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Gradient:
    """Values spaced evenly over the layers of the slice, linear in between."""

    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Points:
    """Values at explicit layers; `rest` for tensors outside the layers. shape: linear | cosine | step."""

    points: tuple[tuple[int, float], ...]
    rest: float = 0.0
    shape: str = "linear"


@dataclass(frozen=True, slots=True)
class Choice:
    """One entry of a list of choices; `match` None fits everything."""

    match: str | None
    value: Value


@dataclass(frozen=True, slots=True)
class Choices:
    """Entries tried in order, first match wins; if none fits, the next level up decides."""

    entries: tuple[Choice, ...]


Value: TypeAlias = "Constant | Texts | Gradient | Points | Choices"


@dataclass(frozen=True, slots=True)
class Input:
    """One entry of `models` or `adapters`: the artifact it names, its own parameters and, in a slice, its layers."""

    name: str
    path: Path
    layers: tuple[int, int] | None = None
    parameters: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Slice:
    """A stretch of output layers made from equally long ranges of the inputs' layers."""

    path: Path
    models: tuple[Input, ...]
    layers: tuple[int, int] | None = None
    parameters: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Base:
    """`[base.NAME]`: full weights that exist already."""

    name: str
    source: str
    revision: str | None = None
    sha256: str | None = None
    kind = "base"


@dataclass(frozen=True, slots=True)
class Extract:
    """The low-rank difference of two models."""

    model: str
    base: str
    rank: int


@dataclass(frozen=True, slots=True)
class Adapter:
    """`[adapter.NAME]`: fetched (`source`), extracted from two models, or combined from other adapters."""

    name: str
    source: str | None = None
    revision: str | None = None
    sha256: str | None = None
    subfolder: str | None = None
    extract: Extract | None = None
    combine: tuple[tuple[str, float], ...] | None = None
    rank: int | None = None
    description: str | None = None
    keep: bool | None = None
    kind = "adapter"


@dataclass(frozen=True, slots=True)
class Merge:
    """`[merge.NAME]`: a model made from models, or from a model and adapters.

    `ends` are the models of what lies before and after the layers of slices.
    """

    name: str
    method: str
    base: str | None = None
    router: str | None = None
    models: tuple[Input, ...] = ()
    adapters: tuple[Input, ...] = ()
    slices: tuple[Slice, ...] = ()
    ends: tuple[str, str] | None = None
    parameters: Mapping[str, Value] = field(default_factory=dict)
    dtype: str | None = None
    seed: int | None = None
    base_precision: str | None = None
    tokenizer: str | None = None
    tokens: Mapping[str, Any] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None
    chat_template: str | None = None
    only: tuple[str, ...] = ()
    copy: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    description: str | None = None
    keep: bool | None = None
    kind = "merge"


@dataclass(frozen=True, slots=True)
class Quantize:
    """`[quantize.NAME]`: a model in a smaller format; `options` are what the format documents."""

    name: str
    model: str
    format: str
    type: str
    skip: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    description: str | None = None
    keep: bool | None = None
    kind = "quantize"


Artifact: TypeAlias = "Base | Adapter | Merge | Quantize"


@dataclass(frozen=True, slots=True)
class Publish:
    """`[publish.NAME]`: what `modelbuild push NAME` offers."""

    name: str
    repo: str
    private: bool | None = None
    license: str | None = None
    language: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    notes: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """`[settings]`: defaults of the whole file. `shard_size` in bytes; without `shards` the weights' size decides."""

    dtype: str | None = None
    seed: int = 0
    shard_size: int = 5_000_000_000
    shards: Literal["modules", "order"] | None = None
    default: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Spec:
    """A whole Modelfile: artifacts by name in the order of the file, and where every key stands.

    `digest` is the SHA-256 of the text that was read, empty where it came from no file. `notes` is what the user should
    know of a file that was translated. `outside` are the methods from outside that it names, imported.
    """

    file: str
    settings: Settings
    artifacts: Mapping[str, Artifact]
    publish: Mapping[str, Publish]
    positions: Mapping[Path, Where]
    digest: str = ""
    notes: tuple[str, ...] = ()
    outside: Mapping[str, Method] = field(default_factory=dict)

    def method(self, name: str) -> Method | None:
        """The method called `name`, modelbuild's own or one from outside; None if there is none."""
        from modelbuild.methods.registry import method

        return self.outside.get(name) or method(name)

    def where(self, *path: str | int) -> Where:
        """Where the key at `path` stands, or the nearest table around it that is in the file."""
        for end in range(len(path), 0, -1):
            if (found := self.positions.get(path[:end])) is not None:
                return found
        return Where(self.file)

    def where_artifact(self, name: str) -> Where:
        """Where the table of the artifact `name` starts."""
        return self.where(self.artifacts[name].kind, name)

    def references(self, name: str) -> tuple[str, ...]:
        """The names that the artifact `name` refers to, in order, each once."""
        artifact = self.artifacts[name]
        found: list[str] = []
        if isinstance(artifact, Adapter):
            if artifact.extract is not None:
                found += [artifact.extract.model, artifact.extract.base]
            found += [name for name, _ in artifact.combine or ()]
        elif isinstance(artifact, Quantize):
            found.append(artifact.model)
        elif isinstance(artifact, Merge):
            found += [artifact.base] if artifact.base else []
            found += [artifact.router] if artifact.router else []
            found += [entry.name for entry in (*artifact.models, *artifact.adapters)]
            found += [entry.name for part in artifact.slices for entry in part.models]
            found += artifact.ends or ()
        return tuple(dict.fromkeys(found))

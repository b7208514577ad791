"""NF4: of one model against transformers, and as the end of a chain against PEFT, mergekit and transformers in turn.

usage: python bench/quantize.py [--runs N] [--double-quant] [--peers-python PATH] [--mergekit PATH] [--modelbuild PATH]
                                [--layers 22] [--only alone|chain]

    alone    a model → nf4
    chain    a model + a LoRA of rank 16 → lerp with another → nf4, one build against three tools and their files
"""

import filecmp
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lora_lerp import PEFT
from models import make
from peers import Project, mergekit_linear, options, required
from timing import DATA, NOTE, Entry, Run, Runs, machine, remove, rounds, table

ALONE = """[quantize.small]
model = "one"
format = "bnb"
type = "nf4"
double_quant = {doubled}
"""

CHAIN = """[merge.adapted]
method = "lora"
base = "one"
adapters = [ {{ adapter = "lora", weight = 1.0 }} ]

[merge.blend]
method = "lerp"
base = "adapted"
models = [ {{ model = "two", t = 0.5 }} ]

[quantize.small]
model = "blend"
format = "bnb"
type = "nf4"
double_quant = {doubled}
"""

TRANSFORMERS = """
import sys, torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
source, out, doubled = sys.argv[1:]
settings = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=doubled == "true"
)
model = AutoModelForCausalLM.from_pretrained(source, quantization_config=settings, dtype=torch.bfloat16)
model.save_pretrained(out)
"""


def on_disk(*folders: Path) -> int:
    """The bytes that all files of these folders take on the disk, a file with several names once."""
    facts = (path.lstat() for folder in folders for path in folder.rglob("*") if path.is_file())
    return sum({(found.st_dev, found.st_ino): found.st_blocks * 512 for found in facts}.values())


class Disk:
    """What runs left on the disk, by the name of the run."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}

    def noting(self, name: str, folders: Sequence[Path], then: Callable[[], object]) -> Callable[[], None]:
        """Notes the size of the folders after a run, then does `then`."""

        def after() -> None:
            self.bytes[name] = max(self.bytes.get(name, 0), on_disk(*folders))
            then()

        return after

    def told(self) -> str:
        """A line for each run."""
        return "\n".join(f"{name}: {size / 1e6:.0f} MB on disk" for name, size in self.bytes.items())


def in_sequence(parts: Sequence[Runs]) -> Runs:
    """Processes one after the other, as one row."""
    runs = zip(*(part.runs for part in parts), strict=True)
    rows = (Run(sum(run.seconds for run in row), max(run.peak for run in row)) for row in runs)
    return Runs(", then ".join(part.name for part in parts), tuple(rows))


def ours(project: Project, disk: Disk) -> list[Entry]:
    """A first build, and one that knows its sources."""
    made = [project.folder / "build", project.folder / "cache"]
    command = project.command("build", "small", "--no-cache")
    return [
        Entry(name, command, before, disk.noting(name, made, project.forget), project.folder)
        for name, before in (("first build", project.forget), ("known sources", project.only_sources))
    ]


def theirs(name: str, python: str, source: Path, out: Path, doubled: str, disk: Disk) -> Entry:
    """transformers: loads, quantises on the way, saves."""
    command = [python, "-c", TRANSFORMERS, str(source), str(out), doubled]
    return Entry(name, command, lambda: remove(out), disk.noting(name, [out], lambda: None))


def check_same(one: Path, other: Path) -> None:
    """Both must have written the same weights."""
    same = filecmp.cmp(one, other, shallow=False)
    print(f"the same {one.name}: {'yes' if same else 'NO'}", file=sys.stderr)


def alone(modelbuild: str, python: str, layers: int, runs: int, doubled: str) -> None:
    """Prints the table of one model."""
    folders, disk = make(layers, "one"), Disk()
    project = Project("quantize", modelbuild, folders, ALONE.format(doubled=doubled))
    out = DATA / "projects" / "quantize-transformers"
    project.run("build")  # compiles kernels, once for each machine
    project.learn_sources()
    rows = rounds(
        [*ours(project, disk), theirs("transformers", python, folders["one"], out, doubled, disk)],
        runs,
        list(folders.values()),
    )
    if doubled == "false":  # with it, transformers takes a mean that depends on the number of threads
        project.run("build")
        check_same(project.folder / "build" / "small" / "model.safetensors", out / "model.safetensors")
    project.forget()
    remove(out)
    print(f"nf4 of one model, double_quant = {doubled}; {layers} layers; {machine()}. {NOTE}\n")
    print(f"{table(rows, 'transformers')}\n\n{disk.told()}\n")


def chain(modelbuild: str, mergekit: str, python: str, layers: int, runs: int, doubled: str) -> None:
    """Prints the table of a chain."""
    folders, disk = make(layers, "one", "two", "lora"), Disk()
    project = Project("quantize-chain", modelbuild, folders, CHAIN.format(doubled=doubled))
    adapted, out = DATA / "projects" / "quantize-peft", DATA / "projects" / "quantize-transformers"
    config, merged = mergekit_linear({adapted: 0.5, folders["two"]: 0.5}, "quantize-mergekit")
    project.run("build")
    project.learn_sources()
    drop = partial(remove, adapted)
    fold = [python, "-c", PEFT, str(folders["one"]), str(folders["lora"]), str(adapted)]
    merge = [mergekit, str(config), str(merged), "--no-copy-tokenizer"]
    last = theirs("transformers", python, merged, out, doubled, disk)
    rows = rounds(
        [
            *ours(project, disk),
            Entry("PEFT", fold, lambda: remove(adapted), disk.noting("PEFT", [adapted], lambda: None)),
            Entry("mergekit", merge, lambda: remove(merged), disk.noting("mergekit", [merged], drop)),
            Entry(last.name, last.command, last.before, lambda: (last.after(), remove(merged, out))),
        ],
        runs,
        list(folders.values()),
    )
    both = in_sequence(rows[2:])
    print(f"LoRA, lerp, nf4, double_quant = {doubled}; {layers} layers; {machine()}. {NOTE}\n")
    print(f"{table([*rows, both], both.name)}\n\n{disk.told()}\n")


def main() -> None:
    """Prints the tables."""
    parser = options(__doc__)
    parser.add_argument("--double-quant", action="store_true", help="quantise the scales too")
    parser.add_argument("--only", choices=("alone", "chain"), help="one of the two tables")
    parser.add_argument(
        "--peers-python", metavar="PATH", default=sys.executable, help="a Python that has transformers and PEFT"
    )
    given = parser.parse_args()
    modelbuild, doubled = required("modelbuild", given.modelbuild), str(given.double_quant).lower()
    python = os.path.abspath(given.peers_python)
    if given.only != "chain":
        alone(modelbuild, python, given.layers, given.runs, doubled)
    if given.only != "alone":
        mergekit = required("mergekit-yaml", given.mergekit)
        chain(modelbuild, mergekit, python, given.layers, given.runs, doubled)


if __name__ == "__main__":
    main()

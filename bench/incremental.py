"""Changing only the attention weights of a merge: what is computed and how long it takes, beside the whole merge.

Weights of this size are cut by modules; "in one file" is what it takes where they are not.

usage: python bench/incremental.py [--runs N] [--modelbuild PATH] [--layers 22]
"""

import json

from models import make, shapes
from peers import Project, options, required
from timing import NOTE, Run, Runs, machine, table, warm

IN_ONE_FILE = '[settings]\nshards = "order"\n'


def blend(attention: float, settings: str = "") -> str:
    """A linear merge of two models with a weight of its own for the attention."""
    choices = f'[ {{ match = "self_attn", value = {attention} }}, {{ value = 0.5 }} ]'
    models = f'[ {{ model = "one", weight = 1.0 }}, {{ model = "two", weight = {choices} }} ]'
    return f'{settings}[merge.blend]\nmethod = "linear"\nmodels = {models}\n'


def computed(run: Run) -> dict[str, int]:
    """The counts of the merge in what `build --json` printed."""
    return next(entry["tensors"] for entry in json.loads(run.output)["artifacts"] if entry["name"] == "blend")


def main() -> None:
    """Prints the table."""
    given = options(__doc__).parse_args()
    folders = make(given.layers, "one", "two")
    project = Project("incremental", required("modelbuild", given.modelbuild), folders, blend(0.1))
    warm(*folders.values())
    project.run("build")
    project.learn_sources()
    cases: dict[str, tuple[float, str, tuple[str, ...]]] = {
        "attention only": (0.2, "", ()),
        "attention only, in one file": (0.2, IN_ONE_FILE, ()),
        "whole merge": (0.5, "", ("--no-cache",)),
    }
    found: dict[str, list[Run]] = {name: [] for name in cases}
    for number in range(given.runs):
        # All build something new beside an older artifact, so that memory is as full for one as for another.
        for name, (weight, settings, words) in cases.items():
            project.only_sources()
            project.write(blend(0.1, settings))
            project.run("build")
            project.write(blend(weight + number / 100, settings))
            warm(*folders.values())
            found[name].append(project.run("build", "--json", *words))
    sizes = {name: rows * (columns[0] if columns else 1) for name, (rows, *columns) in shapes(given.layers)}
    share = sum(size for name, size in sizes.items() if "self_attn" in name) / sum(sizes.values())
    print(f"Attention is {share:.1%} of the weights; {given.layers} layers; {machine()}. {NOTE}\n")
    print(table([Runs(name, tuple(runs)) for name, runs in found.items()], "whole merge"))
    print()
    for name, runs in found.items():
        print(f"{name}: {computed(runs[-1])}")
    project.forget()


if __name__ == "__main__":
    main()

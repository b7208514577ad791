"""Changing only the attention weights of a merge: what is computed and how long it takes, beside the whole merge.

usage: python bench/incremental.py [--runs N] [--modelbuild PATH] [--layers 22]
"""

import json

from models import make, shapes
from peers import Project, options, required
from timing import NOTE, Run, Runs, machine, table, warm


def blend(attention: float) -> str:
    """A linear merge of two models with a weight of its own for the attention."""
    choices = f'[ {{ match = "self_attn", value = {attention} }}, {{ value = 0.5 }} ]'
    models = f'[ {{ model = "one", weight = 1.0 }}, {{ model = "two", weight = {choices} }} ]'
    return f'[merge.blend]\nmethod = "linear"\nmodels = {models}\n'


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
    whole, part = [], []
    for number in range(given.runs):
        # Both build something new beside an older artifact, so that memory is as full for the one as for the other.
        for weight, options_of_build, runs in ((0.2, (), part), (0.5, ("--no-cache",), whole)):
            project.only_sources()
            project.write(blend(0.1))
            project.run("build")
            project.write(blend(weight + number / 100))
            warm(*folders.values())
            runs.append(project.run("build", "--json", *options_of_build))
    sizes = {name: rows * (columns[0] if columns else 1) for name, (rows, *columns) in shapes(given.layers)}
    share = sum(size for name, size in sizes.items() if "self_attn" in name) / sum(sizes.values())
    print(f"Attention is {share:.1%} of the weights; {given.layers} layers; {machine()}. {NOTE}\n")
    print(table([Runs("attention only", tuple(part)), Runs("whole merge", tuple(whole))], "whole merge"))
    print()
    for name, found in (("attention only", part[-1]), ("whole merge", whole[-1])):
        print(f"{name}: {computed(found)}")
    project.forget()


if __name__ == "__main__":
    main()

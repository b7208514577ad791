"""A linear merge of three models: modelbuild, mergekit and `cp` of one model, as whole processes.

usage: python bench/merge.py [--runs N] [--mergekit PATH] [--modelbuild PATH] [--layers 22]
"""

from models import make
from peers import Project, mergekit_linear, options, required
from timing import NOTE, Entry, machine, remove, rounds, table

WEIGHTS = (0.5, 0.3, 0.2)


def merge_of(names: tuple[str, ...]) -> str:
    """The Modelfile's text of a linear merge."""
    entries = [f'{{ model = "{name}", weight = {weight} }}' for name, weight in zip(names, WEIGHTS, strict=False)]
    return f'[merge.blend]\nmethod = "linear"\nmodels = [ {", ".join(entries)} ]\n'


def main() -> None:
    """Prints the table."""
    given = options(__doc__).parse_args()
    modelbuild, mergekit = required("modelbuild", given.modelbuild), required("mergekit-yaml", given.mergekit)
    names = ("one", "two", "three")
    folders = make(given.layers, *names, "double", "double-two")
    three = {name: folders[name] for name in names}
    project = Project("merge", modelbuild, three, merge_of(names))
    double = {"double": folders["double"], "double-two": folders["double-two"]}
    larger = Project("merge-double", modelbuild, double, merge_of(tuple(double)))
    config, out = mergekit_linear(dict(zip(three.values(), WEIGHTS, strict=True)), "merge-mergekit")
    copy = out.parent / "copy"

    project.run("build")  # compiles kernels, once for each machine
    project.learn_sources()
    again = project.command("build", "--no-cache")
    first = Entry("first build", project.command("build"), project.forget, project.forget, project.folder)
    known = Entry("known sources", again, project.only_sources, project.forget, project.folder)
    peer = [mergekit, str(config), str(out), "--no-copy-tokenizer"]
    copying = ["sh", "-c", f'cp -r "{folders["one"]}" "{copy}" && sync']
    entries = [
        first,
        known,
        Entry("mergekit", peer, lambda: remove(out), lambda: remove(out)),
        Entry("cp + sync", copying, lambda: remove(copy), lambda: remove(copy)),
    ]
    rows = rounds(entries, given.runs, list(three.values()))
    larger.learn_sources()
    again = larger.command("build", "--no-cache")
    twice = Entry("two models twice as large", again, larger.only_sources, larger.forget, larger.folder)
    rows += rounds([twice], given.runs, list(double.values()))
    print(f"Linear merge of three bf16 models of {given.layers} layers; {machine()}. {NOTE}\n")
    print(table(rows, "mergekit"))
    print()
    print(table(rows, "cp + sync"))


if __name__ == "__main__":
    main()

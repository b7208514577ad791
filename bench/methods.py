"""Every merge method: modelbuild and mergekit on the same three models, as whole processes.

usage: python bench/methods.py [--runs N] [--peer-runs N] [--mergekit PATH] [METHOD...]

Sources are known and nothing is cached. Beside passthrough: `cp` of one model. After the table: how the time of five
models compares with that of two.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from models import make
from peers import Project, options, required
from timing import DATA, NOTE, Entry, Runs, machine, remove, rounds

Scalars = Mapping[str, float | bool | str]


@dataclass(frozen=True)
class Case:
    """A method as both tools are asked for it: over the base `one` where `base`, the models `two` and `three`.

    `each` are the parameters of every model, `merge` those of the merge.
    """

    base: bool = True
    models: tuple[str, ...] = ("two", "three")
    each: Scalars = field(default_factory=dict)
    merge: Scalars = field(default_factory=dict)
    peer: str | None = ""
    """What mergekit calls the method: the same by default, None if it has no such method."""
    costly: bool = False
    """Whether it takes minutes, and is only measured by name."""


WEIGHT = {"weight": 0.5}
SPARSE = {"weight": 0.5, "density": 0.5}

CASES: Mapping[str, Case] = {
    "linear": Case(False, ("one", "two", "three"), WEIGHT),
    "lerp": Case(True, ("two",), {}, {"t": 0.3}, None),
    "task_arithmetic": Case(each=WEIGHT),
    "passthrough": Case(False, ("two",)),
    "slerp": Case(True, ("two",), {}, {"t": 0.3}),
    "nuslerp": Case(each=WEIGHT),
    "multislerp": Case(each=WEIGHT),
    "karcher": Case(False, ("one", "two", "three")),
    "model_stock": Case(),
    "ties": Case(each=SPARSE),
    "dare_linear": Case(each=SPARSE),
    "dare_ties": Case(each=SPARSE),
    "della": Case(each=SPARSE | {"epsilon": 0.1}),
    "della_linear": Case(each=SPARSE | {"epsilon": 0.1}),
    "breadcrumbs": Case(each=SPARSE | {"gamma": 0.01}),
    "breadcrumbs_ties": Case(each=SPARSE | {"gamma": 0.01}),
    "sce": Case(merge={"select_topk": 0.3}),
    "ram": Case(),
    "ramplus_tl": Case(),
    "nearswap": Case(True, ("two",), {}, {"t": 0.001}),
    "arcee_fusion": Case(True, ("two",)),
    "iso_c": Case(peer=None, costly=True),
    "tsv": Case(peer=None, costly=True),
}


def modelfile(method: str, case: Case) -> str:
    """The Modelfile's text of the merge."""
    entries = [{"model": name, **case.each} for name in case.models]
    lines = [f'method = "{method}"']
    lines += ['base = "one"'] if case.base else []
    lines += [f"models = [ {', '.join(inline(entry) for entry in entries)} ]"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in case.merge.items()]
    return "[merge.blend]\n" + "\n".join(lines) + "\n"


def inline(entry: Mapping[str, object]) -> str:
    """A TOML inline table."""
    return "{ " + ", ".join(f"{name} = {json.dumps(value)}" for name, value in entry.items()) + " }"


def mergekit_yaml(method: str, case: Case, folders: Mapping[str, Path]) -> str:
    """mergekit's configuration of the same merge; JSON is YAML."""
    # Its slerp, nearswap and fusion want the base among the models.
    models = case.models if len(case.models) > 1 or not case.base else ("one", *case.models)
    entries = [{"model": str(folders[name]), **({"parameters": case.each} if case.each else {})} for name in models]
    config: dict[str, object] = {"merge_method": case.peer or method, "models": entries, "dtype": "bfloat16"}
    if case.base:
        config["base_model"] = str(folders["one"])
    if case.merge:
        config["parameters"] = case.merge
    return json.dumps(config, indent=2)


def entries_of(
    method: str, case: Case, modelbuild: str, mergekit: str | None, folders: Mapping[str, Path]
) -> list[Entry]:
    """modelbuild's run of a method and, where it has it, mergekit's."""
    used = {name: folders[name] for name in dict.fromkeys((*(["one"] if case.base else []), *case.models))}
    project = Project(f"methods-{method}", modelbuild, used, modelfile(method, case))
    project.run("build")  # compiles kernels, once for each machine
    project.learn_sources()
    again = project.command("build", "--no-cache")
    found = [Entry("modelbuild", again, project.only_sources, project.forget, project.folder)]
    if mergekit is not None and case.peer is not None:
        config, out = project.folder / "mergekit.yaml", project.folder / "mergekit-out"
        config.write_text(mergekit_yaml(method, case, folders))
        peer = [mergekit, str(config), str(out), "--no-copy-tokenizer"]
        found.append(Entry("mergekit", peer, lambda: remove(out), lambda: remove(out)))
    return found


def line(method: str, found: Mapping[str, Runs]) -> str:
    """A row of the table."""
    ours, peer = found["modelbuild"], found.get("mergekit")
    each = " ".join(f"{run.seconds:.2f}" for run in ours.runs)
    theirs = f"{peer.seconds:.1f} | {peer.peak / 1e6:.0f} | {peer.seconds / ours.seconds:.1f}" if peer else "| |"
    return f"| {method} | {ours.seconds:.2f} | {each} | {ours.peak / 1e6:.0f} | {theirs} |"


def measured(entries: Sequence[Entry], runs: int, peer_runs: int, folders: Sequence[Path]) -> dict[str, Runs]:
    """The runs of each entry; the peer, which takes minutes, may be run less often."""
    ours = rounds(entries[:1], runs, folders)
    return {row.name: row for row in (*ours, *rounds(entries[1:], peer_runs, folders))}


def copied(passthrough: Entry, model: Path, runs: int) -> str:
    """Rows of what copying one model takes, which a passthrough comes down to: on the disk, as a build is by default,
    or left to the system in both."""
    target = DATA / "projects" / "copy"
    entries = [
        Entry(name, ["sh", "-c", f'cp -r "{model}" "{target}"{then}'], lambda: remove(target), lambda: remove(target))
        for name, then in (("cp and sync", " && sync"), ("cp", ""))
    ]
    command = [*passthrough.command, "--durability", "none"]
    entries.append(replace(passthrough, name="passthrough, --durability none", command=command))
    rows = rounds(entries, runs, [model])
    each = {row.name: " ".join(f"{one.seconds:.2f}" for one in row.runs) for row in rows}
    return "\n".join(f"| {row.name} | {row.seconds:.2f} | {each[row.name]} | | | | |" for row in rows)


MANY = ("two", "three", "four", "five", "six")
SCALED = ("linear", "karcher", "ties", "dare_ties")


def scaling(modelbuild: str, layers: int, runs: int) -> None:
    """Prints how the time of merging five models compares with that of two."""
    folders = make(layers, "one", *MANY)
    print("\n| | two models, s | five models, s | time × | sources read × | peak MB |\n|---|---|---|---|---|---|")
    for method in SCALED:
        found = []
        for models in (MANY[:2], MANY):
            case = replace(CASES[method], models=models)
            used = {name: folders[name] for name in ("one", *models)}
            found.append(measured(entries_of(method, case, modelbuild, None, used), runs, 0, list(used.values())))
            remove(DATA / "projects" / f"methods-{method}")
        two, five = (each["modelbuild"] for each in found)
        based = CASES[method].base
        sources = (len(MANY) + based) / (2 + based)
        seconds = f"{two.seconds:.2f} | {five.seconds:.2f} | {five.seconds / two.seconds:.2f}"
        print(f"| {method} | {seconds} | {sources:.2f} | {five.peak / 1e6:.0f} |", flush=True)


def main() -> None:
    """Prints the tables."""
    parser = options(__doc__)
    parser.add_argument("--peer-runs", type=int, default=1, help="how often mergekit is run; 0: not at all")
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="which methods; all but iso_c and tsv by default")
    given = parser.parse_args()
    modelbuild = required("modelbuild", given.modelbuild)
    mergekit = required("mergekit-yaml", given.mergekit) if given.peer_runs else None
    folders = make(given.layers, "one", "two", "three")
    print(f"Merges of bf16 models of {given.layers} layers; {machine()}. {NOTE}\n")
    print("| | s | all runs, s | peak MB | mergekit s | its peak MB | × as fast |\n|---|---|---|---|---|---|---|")
    for method in given.methods or [name for name, case in CASES.items() if not case.costly]:
        case = CASES[method]
        entries = entries_of(method, case, modelbuild, mergekit, folders)
        found = measured(entries, given.runs, given.peer_runs, list(folders.values()))
        print(line(method, found), flush=True)
        if method == "passthrough":
            print(copied(entries[0], folders["two"], given.runs), flush=True)
        remove(DATA / "projects" / f"methods-{method}")
    if not given.methods:
        scaling(modelbuild, given.layers, given.runs)


if __name__ == "__main__":
    main()

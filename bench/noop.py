"""Starting: a build with nothing to do against `dvc repro` with nothing to do, and `--help` against mergekit's.

usage: python bench/noop.py [--runs N] [--dvc PATH] [--mergekit PATH] [--modelbuild PATH] [--layers 2]
"""

import os

from merge import merge_of
from models import make
from peers import Project, options, required
from timing import DATA, NOTE, machine, measure, remove, run, table, tool


def dvc_project(dvc: str, sources: list[str]) -> list[str]:
    """A DVC project with one stage over the same files, already run; gives the command that has nothing to do."""
    folder = DATA / "projects" / "noop-dvc"
    remove(folder)
    folder.mkdir(parents=True)
    files = [os.path.relpath(f"{source}/model.safetensors", folder) for source in sources]
    deps = "".join(f"    - {file}\n" for file in files)
    (folder / "dvc.yaml").write_text(
        f"stages:\n  blend:\n    cmd: cp {files[0]} out\n    deps:\n{deps}    outs:\n    - out\n"
    )
    run([dvc, "init", "--no-scm", "-q"], cwd=folder)
    run([dvc, "repro", "-q"], cwd=folder)
    return [dvc, "repro"]


def main() -> None:
    """Prints the tables."""
    parser = options(__doc__, runs=10)
    parser.set_defaults(layers=2)
    parser.add_argument("--dvc", metavar="PATH", help="the dvc command; installed by nobody here")
    given = parser.parse_args()
    modelbuild = required("modelbuild", given.modelbuild)
    names = ("one", "two", "three")
    folders = make(given.layers, *names)
    project = Project("noop", modelbuild, folders, merge_of(names))
    project.run("build")
    rows = [measure("build, nothing to do", project.command("build"), given.runs, cwd=project.folder)]
    rows.append(measure("plan", project.command("plan"), given.runs, cwd=project.folder))
    if (dvc := tool("dvc", given.dvc)) is not None:
        command = dvc_project(dvc, [str(folder) for folder in folders.values()])
        rows.append(measure("dvc repro, nothing to do", command, given.runs, cwd=DATA / "projects" / "noop-dvc"))
    else:
        print("dvc was not found; give its path with --dvc to compare\n")
    print(f"A merge of three models; {machine()}. {NOTE}\n")
    print(table(rows, rows[-1].name))
    helps = [measure("modelbuild --help", [modelbuild, "--help"], given.runs)]
    if (mergekit := tool("mergekit-yaml", given.mergekit)) is not None:
        helps.append(measure("mergekit-yaml --help", [mergekit, "--help"], given.runs))
    print()
    print(table(helps, helps[-1].name))


if __name__ == "__main__":
    main()

"""A LoRA folded into a model, then a merge with another: one modelbuild build against PEFT, then mergekit.

usage: python bench/lora_lerp.py [--runs N] [--peft-python PATH] [--mergekit PATH] [--modelbuild PATH] [--layers 22]
"""

import sys

from models import make
from peers import Project, mergekit_linear, options, required
from timing import DATA, NOTE, Entry, Run, Runs, machine, remove, rounds, table

TEXT = """[merge.adapted]
method = "lora"
base = "one"
adapters = [ { adapter = "lora", weight = 1.0 } ]

[merge.blend]
method = "lerp"
base = "adapted"
models = [ { model = "two", t = 0.5 } ]
"""

PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""


def in_sequence(first: Runs, second: Runs) -> Runs:
    """Two processes, one after the other, as one row."""
    pairs = zip(first.runs, second.runs, strict=True)
    name = f"{first.name}, then {second.name}"
    return Runs(name, tuple(Run(a.seconds + b.seconds, max(a.peak, b.peak)) for a, b in pairs))


def main() -> None:
    """Prints the table."""
    parser = options(__doc__)
    parser.add_argument("--peft-python", metavar="PATH", default=sys.executable, help="a Python that has PEFT")
    given = parser.parse_args()
    modelbuild, mergekit = required("modelbuild", given.modelbuild), required("mergekit-yaml", given.mergekit)
    folders = make(given.layers, "one", "two", "lora")
    project = Project("lora-lerp", modelbuild, folders, TEXT)
    adapted = DATA / "projects" / "lora-lerp-peft"
    config, out = mergekit_linear({adapted: 0.5, folders["two"]: 0.5}, "lora-lerp-mergekit")

    project.run("build")  # compiles kernels, once for each machine
    project.learn_sources()
    fold = [given.peft_python, "-c", PEFT, str(folders["one"]), str(folders["lora"]), str(adapted)]
    merge = [mergekit, str(config), str(out), "--no-copy-tokenizer"]
    again = project.command("build", "blend", "--no-cache")
    entries = [
        Entry("first build", project.command("build", "blend"), project.forget, project.forget, project.folder),
        Entry("known sources", again, project.only_sources, project.forget, project.folder),
        Entry("PEFT", fold, lambda: remove(adapted)),
        Entry("mergekit", merge, lambda: remove(out), lambda: remove(adapted, out)),
    ]
    first, known, peft, merged = rounds(entries, given.runs, list(folders.values()))
    both = in_sequence(peft, merged)
    print(f"LoRA of rank 16 over all linear layers, then a merge; {given.layers} layers; {machine()}. {NOTE}\n")
    print(table([first, known, peft, merged, both], both.name))


if __name__ == "__main__":
    main()

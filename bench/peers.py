"""What every benchmark shares: the options, a Modelfile over the models, and mergekit's side of the same merge."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from timing import DATA, Run, remove, run, tool


def options(description: str | None, runs: int = 3) -> argparse.ArgumentParser:
    """The options that the benchmarks have in common."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=22, help="layers of a model; 22 make 1.1 B parameters")
    parser.add_argument("--runs", type=int, default=runs, help="how often each process is run")
    parser.add_argument("--modelbuild", metavar="PATH", help="the modelbuild command")
    parser.add_argument("--mergekit", metavar="PATH", help="the mergekit-yaml command; installed by nobody here")
    return parser


def required(name: str, given: str | None) -> str:
    """The path of a command that the benchmark cannot do without."""
    found = tool(name, given)
    if found is None:
        sys.exit(f"{name} was not found; give its path")
    return found


def hardlinks(source: Path, target: Path) -> None:
    """A folder with the same files, not copied."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        os.link(path, target / path.name)


class Project:
    """A folder with a Modelfile over the models, as one user would have it."""

    def __init__(self, name: str, modelbuild: str, sources: Mapping[str, Path], text: str) -> None:
        self.folder = DATA / "projects" / name
        self.modelbuild = modelbuild
        remove(self.folder)
        tables = []
        for source, path in sources.items():
            kind = "adapter" if (path / "adapter_config.json").exists() else "base"
            tables.append(f"[{kind}.{source}]\nsource = {json.dumps(source)}\n")
            hardlinks(path, self.folder / source)
        self.sources = "\n".join(tables)
        self.write(text)

    def write(self, text: str) -> None:
        """Puts `text` after the sources in the Modelfile."""
        (self.folder / "Modelfile").write_text(f"{self.sources}\n{text}")

    def command(self, *words: str) -> list[str]:
        """A modelbuild command line."""
        return [self.modelbuild, *words]

    def run(self, *words: str) -> Run:
        """Runs a modelbuild command in the folder."""
        return run(self.command(*words), cwd=self.folder)

    def forget(self) -> None:
        """Removes everything that builds made and remember."""
        remove(self.folder / "build", self.folder / "cache", self.folder / "Modelfile.lock")

    def learn_sources(self) -> None:
        """Leaves only what `lock` finds out: the digests of the sources."""
        self.forget()
        self.run("lock")
        remove(self.folder / "learned")
        shutil.copytree(self.folder / "cache", self.folder / "learned")

    def only_sources(self) -> None:
        """Back to the state after `learn_sources`."""
        remove(self.folder / "build", self.folder / "cache")
        shutil.copytree(self.folder / "learned", self.folder / "cache")


def mergekit_linear(weights: Mapping[Path, float], name: str) -> tuple[Path, Path]:
    """mergekit's configuration of a linear merge and the folder it is to write."""
    models = [{"model": str(path), "parameters": {"weight": weight}} for path, weight in weights.items()]
    folder = DATA / "projects" / name
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "mergekit.yaml"
    # JSON is YAML.
    config.write_text(json.dumps({"merge_method": "linear", "models": models, "dtype": "bfloat16"}, indent=2))
    return config, folder / "mergekit-out"

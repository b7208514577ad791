"""Measures whole processes: seconds on the wall and peak resident memory, medians, and tables to print."""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Run:
    """One finished process: seconds, and the peak resident bytes of it or the largest of its children."""

    seconds: float
    peak: int
    output: str = ""


@dataclass(frozen=True)
class Runs:
    """The same process several times."""

    name: str
    runs: tuple[Run, ...]

    @property
    def seconds(self) -> float:
        """The median."""
        return statistics.median(run.seconds for run in self.runs)

    @property
    def peak(self) -> int:
        """The greatest peak, in bytes."""
        return max(run.peak for run in self.runs)


def run(command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Run:
    """Runs a process to its end; exits with its messages if it fails. Dirty pages of earlier runs are synced before."""
    os.sync()
    # Sources are compiled once for each machine, as pip does it when it installs.
    known = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = {**known, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", **(env or {})}
    log = DATA / "log"
    log.mkdir(parents=True, exist_ok=True)
    with (log / "stdout").open("w+b") as out, (log / "stderr").open("w+b") as err:
        start = time.perf_counter()
        child = subprocess.Popen(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        output = out.read().decode(errors="replace")
        if child.returncode:
            message = err.read().decode(errors="replace")[-3000:]
            sys.exit(f"{' '.join(command)}\nfailed with {child.returncode}:\n{output[-1000:]}{message}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(seconds, usage.ru_maxrss * unit, output)


def measure(
    name: str,
    command: Sequence[str],
    times: int,
    *,
    before: Callable[[], None] | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Runs:
    """Runs a process `times` times, each after an untimed `before`, and prints every result on stderr as it comes."""
    found = []
    for number in range(times):
        if before is not None:
            before()
        found.append(run(command, cwd=cwd, env=env))
        seconds, peak = found[-1].seconds, found[-1].peak / 1e6
        print(f"{name} {number + 1}/{times}: {seconds:.3f} s, {peak:.0f} MB", file=sys.stderr, flush=True)
    return Runs(name, tuple(found))


@dataclass(frozen=True)
class Entry:
    """A process to be measured, and what is done, untimed, before and after each run of it."""

    name: str
    command: Sequence[str]
    before: Callable[[], object] = lambda: None
    after: Callable[[], object] = lambda: None
    cwd: Path | None = None


def rounds(entries: Sequence[Entry], times: int, folders: Sequence[Path]) -> list[Runs]:
    """Runs all entries in turn, `times` times over: what the machine does meanwhile befalls them all.

    The files of `folders` are read before each run, so that all find them in the page cache.
    """
    found: dict[str, list[Run]] = {entry.name: [] for entry in entries}
    for number in range(times):
        for entry in entries:
            entry.before()
            warm(*folders)
            done = run(entry.command, cwd=entry.cwd)
            entry.after()
            found[entry.name].append(done)
            told = f"{entry.name} {number + 1}/{times}: {done.seconds:.3f} s, {done.peak / 1e6:.0f} MB"
            print(told, file=sys.stderr, flush=True)
    return [Runs(name, tuple(runs)) for name, runs in found.items()]


def tool(name: str, given: str | None) -> str | None:
    """The path of a command: as given, beside this Python, or on PATH; None if it is nowhere."""
    beside = Path(sys.executable).parent / name
    return given or (str(beside) if beside.exists() else shutil.which(name))


def warm(*folders: Path) -> None:
    """Reads every file of the folders, so that all runs find them in the page cache."""
    buffer = bytearray(16 * 2**20)
    for path in (path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def remove(*paths: Path) -> None:
    """Removes folders and files, if there."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def table(rows: Sequence[Runs], reference: str) -> str:
    """A markdown table; the last column is how often the reference's median fits into each row's."""
    by_name = {row.name: row for row in rows}
    lines = ["| | median s | all runs, s | peak MB | × " + reference + " |", "|---|---|---|---|---|"]
    for row in rows:
        each = " ".join(f"{one.seconds:.2f}" for one in row.runs)
        ratio = row.seconds / by_name[reference].seconds
        lines.append(f"| {row.name} | {row.seconds:.2f} | {each} | {row.peak / 1e6:.0f} | {ratio:.2f} |")
    return "\n".join(lines)


def machine() -> str:
    """The processors and the memory this ran on, in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    model = ""
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = f" ({names[0]})" if names else ""
    return f"{os.cpu_count()} processors{model}, {memory:.0f} GiB of memory"


NOTE = (
    "Whole processes, warm files. Peak is the resident memory of the process, which counts the pages of files that it"
    " maps; the page cache is not counted."
)

"""Promises about the code itself: the order of rooms, what is imported when, sizes, docstrings, types, words."""

import ast
import os
import re
import stat
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "modelbuild"
FILES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(path.relative_to(PACKAGE)) for path in FILES]

GROUND = ("errors", "digest", "checksum", "dtypes", "units", "options", "result", "rooms")
"""Modules that every room may use and that use no room."""
ROOMS = (
    "methods",
    "formats",
    "modelfile",
    "importing",
    "sources",
    "adapters",
    "tokenizer",
    "plan",
    "kernels",
    "cache",
    "engine",
    "artifact",
    "publish",
    "report",
)
"""In the order of imports. Methods and formats come first: what they declare is what a Modelfile may say."""
ABOVE = ("cli",)
HEAVY = ("torch", "transformers", "peft", "huggingface_hub")
LATE = ("numba", "llvmlite", "pydantic")
NUMPY_ROOMS = ("kernels", "engine")

every_file = pytest.mark.parametrize("path", FILES, ids=IDS)


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports(body, *, eager):
    """The modules that statements import: at import time only, or anywhere but for type checkers."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif is_type_checking(node) or (eager and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))):
            continue
        else:
            for _, value in ast.iter_fields(node):
                inner = value if isinstance(value, list) else [value]
                yield from imports([child for child in inner if isinstance(child, ast.AST)], eager=eager)


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def uses(path):
    """The modules of the package that a file imports when it is imported."""
    named = {name for name in imports(tree(path).body, eager=True) if name in MODULES}
    packages = {name for name in named if any(other.startswith(f"{name}.") for other in named)}
    return named - packages - {module_of(path)}


def room_of(module):
    """The number of the room a module is in: 0 for the ground, None for those that stand above all rooms."""
    name = module.split(".")[1] if "." in module else ""
    if name in GROUND:
        return 0
    return ROOMS.index(name) + 1 if name in ROOMS else None


def test_every_folder_of_the_package_is_a_room_with_a_place():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= {*ROOMS, *ABOVE}


def test_the_ground_stands_on_nothing():
    for name in GROUND:
        path = PACKAGE / f"{name}.py"
        assert not [used for used in imports(tree(path).body, eager=False) if room_of(used)], name


@every_file
def test_imports_follow_the_order_of_rooms_and_never_turn_back(path):
    here = room_of(module_of(path))
    # What a function imports is used when it runs: a method hands over its kernel, which only the engine calls.
    for used in imports(tree(path).body, eager=True):
        if used not in MODULES:
            continue
        there = room_of(used)
        if here is None or used == "modelbuild":
            continue
        assert there is not None, f"{used} stands above all rooms"
        assert there <= here, f"{used} is a later room"


def test_the_package_has_no_import_cycle():
    graph = {module_of(path): uses(path) for path in FILES}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@every_file
def test_no_module_loads_a_heavy_library_when_it_is_imported(path):
    assert not {name.split(".")[0] for name in imports(tree(path).body, eager=True)} & {*HEAVY}


@every_file
def test_compilers_and_schemas_are_imported_where_they_are_used(path):
    relative = path.relative_to(PACKAGE)
    late = [*LATE, "numpy"] if relative.parts[0] not in NUMPY_ROOMS else [*LATE]
    if relative.parts[0] == "kernels":
        late = ["pydantic"]
    eager = {name.split(".")[0] for name in imports(tree(path).body, eager=True)}
    assert not eager & {*late}


def functions(path):
    return [node for node in ast.walk(tree(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


@every_file
def test_every_function_is_typed(path):
    for node in functions(path):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
        assert not untyped, f"{node.name}: {untyped}"
        assert node.returns is not None, node.name


@every_file
def test_every_module_and_public_name_is_documented(path):
    whole = tree(path)
    if path.read_text(encoding="utf-8").strip():
        assert ast.get_docstring(whole), "the module"
    for node in whole.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
            if isinstance(node, ast.ClassDef):
                methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
                bare = [item.name for item in methods if not item.name.startswith("_") and not ast.get_docstring(item)]
                assert not bare, f"{node.name}: {bare}"


def code_lines(text):
    return sum(1 for line in text.splitlines() if line.strip() and not line.strip().startswith("#"))


@every_file
def test_no_file_is_longer_than_300_lines_and_no_function_than_60(path):
    assert code_lines(path.read_text(encoding="utf-8")) <= 300
    long = {node.name: node.end_lineno - node.lineno + 1 for node in functions(path)}
    assert not {name: lines for name, lines in long.items() if lines > 60}


def test_there_is_as_much_test_as_source():
    source = sum(code_lines(path.read_text(encoding="utf-8")) for path in FILES)
    # Golden texts are tests as much as code is: each is a file and what is said of it.
    written = [path for path in (ROOT / "tests").rglob("*") if path.suffix in (".py", ".txt")]
    tests = sum(code_lines(path.read_text(encoding="utf-8")) for path in written)
    assert tests >= source


MADE = {"demo", "build", "dist", "cache", "bench/data", "LICENSE"}
MADE_BY_EXAMPLES = {"models", "adapters", "build", "cache"}


def is_made(path):
    """Whether a file of the checkout was made by running something, or is not ours."""
    parts = path.relative_to(ROOT).parts
    return bool(
        {parts[0], "/".join(parts[:2])} & MADE
        or (parts[0] == "examples" and MADE_BY_EXAMPLES & {*parts[2:3]})
        or any(part.startswith(".") and part != ".ci" for part in parts)
    )


TEXTS = sorted(
    path
    for path in ROOT.rglob("*")
    if path.is_file()
    and path.relative_to(ROOT).parts[0] != "tests"
    and (path.suffix in {".py", ".md", ".toml", ".txt", ".example", ".yml", ""} or path.name == "run")
    and not is_made(path)
)
PLACES = re.compile(r"/(?:home|root|Users|mnt)/|file:/{3}|https?://[^\s)\"']*/simple\b|[a-z]\.org/simple\b")
"""Folders of a machine, files by address, and indexes of package registries."""


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_speaks_of_the_machine_it_was_written_on(path):
    text = path.read_text(encoding="utf-8", errors="replace")
    assert PLACES.findall(text) == []


def test_scripts_that_the_readme_names_can_be_run():
    for name in (
        "tests/run",
        "tests/venv",
        "tests/real/run",
        "examples/demo/run",
        "examples/sentence-embeddings/run",
        ".ci/run",
    ):
        path = ROOT / name
        assert path.stat().st_mode & stat.S_IXUSR, name
        assert path.read_text(encoding="utf-8").startswith("#!"), name


def test_every_command_of_the_readme_stands_in_the_checkout():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in ("examples/demo/run", "tests/run"):
        assert re.search(rf"^(?:\S+=\S+ )*{re.escape(command)}$", readme, re.MULTILINE), command


def commands():
    """The names of the commands, as their module declares them."""
    import typer.main

    from modelbuild.cli import app

    return sorted(typer.main.get_command(app).commands)


def test_every_command_is_documented():
    text = "\n".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    missing = [name for name in commands() if f"`{name}" not in text and f"modelbuild {name}" not in text]
    assert not missing


def test_a_hub_download_is_never_needed_by_the_tests():
    assert "HF_HUB_OFFLINE=1" in (ROOT / "tests" / "run").read_text(encoding="utf-8")
    assert os.environ.get("HF_HUB_OFFLINE", "1") == "1"

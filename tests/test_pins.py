"""Which entries of a lock count, what the lock becomes, and what it says of versions; Hub sources are made up."""

import sys
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modelbuild.formats
from modelbuild import __version__
from modelbuild.errors import LockOutOfDate, VerificationFailed
from modelbuild.formats.numerics import MissingLibrary, numerics_class
from modelbuild.formats.registry import formats
from modelbuild.modelfile.parse import load, parse_text
from modelbuild.modelfile.spec import Adapter, Base
from modelbuild.options import Options
from modelbuild.pins import Held, check_before, check_found, hold, next_lock, pinned
from modelbuild.plan.graph import closure
from modelbuild.sources.content import SourceAdapter, SourceFile, SourceModel, Stamp
from modelbuild.sources.lock import Lock, LockedFile, LockedOutput, LockedSource, differences, write
from modelbuild.sources.origin import is_hub, origin_of
from modelbuild.versions import next_versions, versions_of

A, B, C = "a" * 64, "b" * 64, "c" * 64
COMMIT, LATER = "1" * 40, "2" * 40
WEIGHTS = LockedFile("model.safetensors", 12, A)
CONFIG = LockedFile("config.json", 3, B)
TEXT = """
    [base.far]
    source = "hf:org/far"

    [base.branch]
    source = "hf:org/far"
    revision = "dev"

    [base.near]
    source = "models/near"

    [adapter.style]
    source = "hf:org/style@v1"
    subfolder = "last"

    [merge.mix]
    method = "linear"
    models = [{ model = "far", weight = 0.5 }, { model = "near", weight = 0.5 }]

    [merge.styled]
    method = "lora"
    base = "branch"
    adapters = [{ adapter = "style", weight = 1 }]

    [quantize.small]
    model = "mix"
    format = "gguf"
    type = "Q4_K_M"
"""
STYLE = (LockedFile("last/adapter_config.json", 2, B), LockedFile("last/adapter_model.safetensors", 9, C))
SOURCES = {
    "far": LockedSource("hf:org/far", (CONFIG, WEIGHTS), COMMIT),
    "branch": LockedSource("hf:org/far@dev", (CONFIG, WEIGHTS), COMMIT),
    "near": LockedSource("local:models/near", (CONFIG, WEIGHTS)),
    "style": LockedSource("hf:org/style@v1", STYLE, COMMIT),
}
METHODS = {"modelbuild": __version__, "linear": 1, "lora": 1, "cast": 1, "adapter lora": 1}
LOCK = Lock(SOURCES, METHODS)


@pytest.fixture
def spec(tmp_path):
    return read_spec(tmp_path, TEXT)


def read_spec(folder, text):
    (folder / "Modelfile").write_text(textwrap.dedent(text))
    return load(str(folder / "Modelfile"))


def held(spec, lock=LOCK, names=None, **flags):
    """The lock held for some artifacts, all by default."""
    return Held("Modelfile.lock", lock, spec, tuple(spec.artifacts if names is None else names), **flags)


def having(name, **changes):
    """LOCK with another entry for a source."""
    fields = {"origin": SOURCES[name].origin, "files": SOURCES[name].files, "commit": SOURCES[name].commit}
    return Lock(SOURCES | {name: LockedSource(**(fields | changes))}, METHODS)


def model(name, origin=None, commit=COMMIT, files=(CONFIG, WEIGHTS)):
    """A source as it was found."""
    found = tuple(SourceFile(f.name, f"/x/{f.name}", f.size, f.sha256, Stamp(1, 2, 3, 4, 5)) for f in files)
    return SourceModel(name, origin or SOURCES[name].origin, commit, {}, found)


def adapter(name, kind="LORA", files=STYLE):
    found = tuple(SourceFile(f.name, f"/x/{f.name}", f.size, f.sha256, Stamp(1, 2, 3, 4, 5)) for f in files)
    return SourceAdapter(name, SOURCES[name].origin, COMMIT, {}, found, {"peft_type": kind})


def as_locked():
    """Every source found as LOCK has it."""
    return {
        "far": model("far"), "branch": model("branch"), "near": model("near", commit=None), "style": adapter("style"),
    }  # fmt: skip


# --- origins ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("artifact", "origin"),
    [
        (Base("a", "models/a"), "local:models/a"),
        (Base("a", "hf:o/n"), "hf:o/n"),
        (Base("a", "hf:o/n@main"), "hf:o/n@main"),
        (Base("a", "hf:o/n", revision="main"), "hf:o/n@main"),
        (Adapter("a", "x/", subfolder="s"), "local:x/s"),
        (Adapter("a", "hf:o/n", subfolder="s"), "hf:o/n"),
        (Adapter("a", combine=(("b", 1.0),)), ""),
    ],
)
def test_the_origin_is_what_the_modelfile_says(artifact, origin):
    assert origin_of(artifact) == origin
    assert is_hub(origin) == ("hf:" in origin)


def test_the_origin_is_the_one_that_resolving_gives(violet):
    violet.root.joinpath("more").mkdir()
    violet.lora("more/deep", "red", seed=4)
    violet.modelfile(violet.text.replace('source = "style"', 'source = "more/"\nsubfolder = "deep"'))
    violet.run("lock")
    read = hold(Options(str(violet.path)), spec := load(str(violet.path)), spec.artifacts).lock
    assert {name: entry.origin for name, entry in read.sources.items()} == {
        name: origin_of(artifact) for name, artifact in spec.artifacts.items() if name in read.sources
    }
    assert read.sources["style"].origin == "local:more/deep"


# --- which entries count ----------------------------------------------------------------------------------------------


def test_sources_on_the_hub_stay_where_they_are_locked_and_local_ones_are_looked_at(spec):
    assert pinned(held(spec)) == {name: SOURCES[name] for name in ("far", "branch", "style")}


def test_only_sources_that_are_needed_are_pinned(spec):
    assert pinned(held(spec, names=closure(spec, ["mix"]))).keys() == {"far"}


def test_a_frozen_lock_pins_local_sources_as_well(spec):
    assert pinned(held(spec, frozen=True)) == SOURCES


def test_without_a_lock_nothing_is_pinned(spec):
    assert pinned(held(spec, lock=None)) == {}


def test_an_update_lets_go_of_what_it_names(spec):
    assert pinned(held(spec), renew=["far"]).keys() == {"branch", "style"}
    assert pinned(held(spec), renew=list(spec.artifacts)) == {}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("far", {"origin": "hf:org/other"}),
        ("far", {"origin": "hf:org/far@main"}),
        ("branch", {"origin": "hf:org/far"}),
        ("far", {"origin": "local:far"}),
        ("style", {"files": tuple(LockedFile(f.name[5:], f.size, f.sha256) for f in STYLE)}),
        ("style", {"files": tuple(LockedFile("first/" + f.name[5:], f.size, f.sha256) for f in STYLE)}),
    ],
)
def test_an_entry_of_another_origin_revision_or_subfolder_does_not_count(spec, name, changes):
    lock = having(name, **changes)
    assert name not in pinned(held(spec, lock))
    assert name not in pinned(held(spec, lock, frozen=True))
    with pytest.raises(LockOutOfDate) as caught:
        check_before(held(spec, lock, frozen=True))
    (fault,) = caught.value.faults
    assert fault.message == f"source `{name}` is another one in the lock"
    assert fault.where.line > 0
    assert fault.hint == "`modelbuild lock` brings it up to date"


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"commit": None}, "`commit` of `far` is not a commit"),
        ({"commit": "main"}, "`commit` of `far` is not a commit"),
        ({"commit": "1" * 39}, "`commit` of `far` is not a commit"),
        ({"commit": "../" + "1" * 37}, "`commit` of `far` is not a commit"),
        ({"files": ()}, "`far` has no files"),
        ({"files": (LockedFile("../x", 1, A),)}, "`../x` of `far` is not the name of a file"),
        ({"files": (LockedFile("/etc/passwd", 1, A),)}, "`/etc/passwd` of `far` is not the name of a file"),
        ({"files": (LockedFile("a//b", 1, A),)}, "`a//b` of `far` is not the name of a file"),
        ({"files": (LockedFile("a\\b", 1, A),)}, r"`a\b` of `far` is not the name of a file"),
    ],
)
def test_an_entry_of_the_hub_that_cannot_be_is_refused_before_anybody_is_asked(spec, changes, fact):
    with pytest.raises(LockOutOfDate) as caught:
        pinned(held(spec, having("far", **changes)))
    (fault,) = caught.value.faults
    assert fault.message == "the lock was edited or damaged"
    assert fact in fault.facts
    assert fault.hint == "`modelbuild lock --update far` looks it up anew"
    assert "far" not in pinned(held(spec, having("far", **changes)), renew=["far"])


# --- what the lock becomes --------------------------------------------------------------------------------------------


def test_with_everything_as_it_is_locked_the_lock_stays(spec):
    assert next_lock(held(spec), as_locked()) == LOCK


def test_an_update_moves_the_commit_and_says_so(spec):
    found = as_locked() | {"far": model("far", commit=LATER, files=(CONFIG,))}
    assert differences(LOCK, next_lock(held(spec), found)) == [
        f"source `far`: commit {COMMIT} → {LATER}",
        "source `far`: `model.safetensors` is gone",
    ]


def test_what_a_build_did_not_need_stays_as_it_is_locked(spec):
    part = held(spec, names=closure(spec, ["mix"]))
    found = {"far": model("far", commit=LATER), "near": model("near", commit=None)}
    new = next_lock(part, found)
    assert new.sources == SOURCES | {"far": LockedSource("hf:org/far", (CONFIG, WEIGHTS), LATER)}
    assert new.methods == METHODS


def test_what_the_modelfile_no_longer_names_goes_and_outputs_of_what_is_no_longer_built(tmp_path):
    output = LockedOutput("ff", (WEIGHTS,))
    outputs = dict.fromkeys(("mix", "far", "gone"), output)
    old = Lock({**SOURCES, "gone": SOURCES["near"]}, {**METHODS, "lerp": 1}, outputs)
    new = next_lock(held(read_spec(tmp_path, TEXT), old), as_locked())
    assert (new.sources, new.methods, new.outputs) == (SOURCES, METHODS, {"mix": output})


def test_with_overrides_nothing_goes(tmp_path):
    old = Lock({**SOURCES, "gone": SOURCES["near"]}, {**METHODS, "lerp": 1})
    new = next_lock(held(read_spec(tmp_path, TEXT), old, overridden=True), as_locked())
    assert (new.sources, new.methods) == (old.sources, old.methods)


@settings(max_examples=60, deadline=None)
@given(st.sets(st.sampled_from(["far", "branch", "near", "style"])), st.booleans())
def test_a_lock_that_a_build_has_brought_up_to_date_is_up_to_date(tmp_path_factory, stale, empty):
    spec = read_spec(tmp_path_factory.getbasetemp(), TEXT)
    others = {name: LockedSource(SOURCES[name].origin, (CONFIG,), LATER) for name in stale}
    old = None if empty else Lock(SOURCES | others, {**METHODS, "linear": 7})
    new = next_lock(held(spec, old), as_locked())
    assert new.sources == SOURCES
    assert next_lock(held(spec, new), as_locked()) == new
    check_found(held(spec, new, locked=True, frozen=True), as_locked())
    if differences(old, new):
        with pytest.raises(LockOutOfDate):
            check_found(held(spec, old or Lock(), locked=True), as_locked())


# --- whether it may ---------------------------------------------------------------------------------------------------


def test_a_locked_build_stops_with_every_difference(spec):
    found = as_locked() | {"near": model("near", commit=None, files=(CONFIG, LockedFile("model.safetensors", 12, C)))}
    old = Lock(SOURCES, {**METHODS, "linear": 2, "modelbuild": "0.0.9"})
    with pytest.raises(LockOutOfDate) as caught:
        check_found(held(spec, old, locked=True), found)
    assert caught.value.render() == (
        "error: the lock is out of date\n  --> Modelfile.lock\n"
        "   |  source `near`: `model.safetensors` changed, aaaaaaaaaaaa → cccccccccccc\n"
        "   |  `linear` 2 → 1\n"
        f"   |  `modelbuild` 0.0.9 → {__version__}\n\n"
        "hint: `modelbuild lock` brings it up to date"
    )
    check_found(held(spec, old), found)


def test_a_frozen_build_says_what_each_file_should_be_and_is(spec):
    files = (LockedFile("model.safetensors", 13, C), LockedFile("tokenizer.json", 1, A))
    with pytest.raises(VerificationFailed) as caught:
        check_found(held(spec, frozen=True), as_locked() | {"near": model("near", commit=None, files=files)})
    assert caught.value.exit_code == 5
    (fault,) = caught.value.faults
    assert fault.message == "source `near` is not what the lock says"
    assert fault.facts == (
        "`config.json` is missing",
        f"`model.safetensors`: expected 12 bytes, SHA-256 {A}",
        f"`model.safetensors`: found    13 bytes, SHA-256 {C}",
        "`tokenizer.json` is not in the lock",
    )
    assert fault.where.line == 9


def test_a_frozen_build_names_every_source_that_is_not_locked(spec):
    with pytest.raises(LockOutOfDate) as caught:
        check_before(held(spec, Lock({"far": SOURCES["far"]}, METHODS), frozen=True))
    assert [fault.message for fault in caught.value.faults] == [
        "source `branch` is not in the lock", "source `near` is not in the lock", "source `style` is not in the lock",
    ]  # fmt: skip
    assert caught.value.exit_code == 3


def test_a_frozen_build_asks_only_for_what_it_needs(spec):
    part = Lock({name: SOURCES[name] for name in ("far", "near")}, {"linear": 1, "cast": 1, "ties": 9})
    check_before(held(spec, part, names=closure(spec, ["mix"]), frozen=True))
    with pytest.raises(LockOutOfDate):
        check_before(held(spec, part, names=closure(spec, ["styled"]), frozen=True))


def test_a_frozen_build_names_the_release_that_has_a_method_version(spec):
    with pytest.raises(LockOutOfDate) as caught:
        check_before(held(spec, Lock(SOURCES, {**METHODS, "linear": 2, "modelbuild": "9.1.0"}), frozen=True))
    assert caught.value.render() == (
        "error: the lock has version 2 of `linear`, which is not here\n  --> Modelfile.lock\n"
        f"   |  built with modelbuild `9.1.0`\n   |  this is modelbuild {__version__}, with version 1\n\n"
        "hint: install modelbuild==9.1.0"
    )


def test_a_frozen_build_takes_another_release_that_has_the_same_versions(spec):
    check_before(held(spec, Lock(SOURCES, {**METHODS, "modelbuild": "9.1.0"}), frozen=True))
    check_found(held(spec, Lock(SOURCES, {**METHODS, "modelbuild": "9.1.0"}), frozen=True), as_locked())


@pytest.mark.parametrize("writer", [{"modelbuild": __version__}, {"modelbuild": 7}, {}])
def test_no_release_is_named_where_none_would_help(spec, writer):
    methods = {"linear": 2, "lora": 1, "cast": 1, **writer}
    with pytest.raises(LockOutOfDate) as caught:
        check_before(held(spec, Lock(SOURCES, methods), frozen=True))
    assert caught.value.faults[0].hint == "`modelbuild lock` writes that"


def test_the_type_of_an_adapter_is_held_to_once_it_is_read(spec):
    old = Lock(SOURCES, {**METHODS, "adapter lora": 2})
    check_before(held(spec, old, frozen=True))
    with pytest.raises(LockOutOfDate, match="version 2 of `adapter lora`"):
        check_found(held(spec, old, frozen=True), as_locked())


# --- versions ---------------------------------------------------------------------------------------------------------


def test_versions_are_those_of_what_the_artifacts_use(spec):
    assert versions_of(spec, ["far", "near", "mix"], ()) == {"modelbuild": __version__, "cast": 1, "linear": 1}
    assert versions_of(spec, ["far"], ()) == {"modelbuild": __version__}
    assert versions_of(spec, list(spec.artifacts), [adapter("style")]) == METHODS


@pytest.mark.parametrize("kind", ["IA3", "../cli", "__init__", "", "lora.lora", 5, None])
def test_a_type_of_adapter_that_nobody_reads_has_no_version(spec, kind):
    assert versions_of(spec, ["style"], [adapter("style", kind)]) == {"modelbuild": __version__}


def test_the_type_of_an_adapter_that_was_not_read_now_stays_in_the_lock(spec):
    found = {name: source for name, source in as_locked().items() if name != "style"}
    assert next_lock(held(spec), found).methods["adapter lora"] == 1
    old = Lock(SOURCES, {**METHODS, "adapter dora": 3})
    assert next_lock(held(spec, old), found).methods["adapter dora"] == 3
    assert "adapter dora" not in next_lock(held(spec, old), as_locked()).methods


ENTRIES = """
def lock_entries(artifact):
    return {"format gguf": 4, f"gguf {artifact.type}": "bitsandbytes 0.50.2, x86-64 AVX512, 1 thread", "absent": None}
"""


@pytest.fixture
def declaring(tmp_path, monkeypatch):
    """Puts a file for a format before the project's own."""

    def declare(text):
        (tmp_path / "formats").mkdir()
        (tmp_path / "formats" / "gguf.py").write_text(text)
        monkeypatch.setattr(modelbuild.formats, "__path__", [str(tmp_path / "formats")])
        monkeypatch.delitem(sys.modules, "modelbuild.formats.gguf", raising=False)

    yield declare
    sys.modules.pop("modelbuild.formats.gguf", None)
    if hasattr(modelbuild.formats, "gguf"):
        del modelbuild.formats.gguf


def test_a_format_says_what_its_outputs_depend_on(spec, declaring):
    declaring(ENTRIES)
    found = versions_of(spec, ["small"], ())
    assert found == {
        "modelbuild": __version__, "format gguf": 4, "gguf Q4_K_M": "bitsandbytes 0.50.2, x86-64 AVX512, 1 thread",
        "absent": None,
    }  # fmt: skip
    assert versions_of(spec, ["mix"], ()).keys() == {"modelbuild", "cast", "linear"}


def test_a_format_of_an_outside_library_has_its_version_and_the_numerics_class():
    text = '[base.b]\nsource = "b"\n[quantize.small]\nmodel = "b"\nformat = "bnb"\ntype = "nf4"\n'
    found = versions_of(parse_text(text, "Modelfile"), ["small"], ())
    (library, version) = found.popitem()
    assert found == {"modelbuild": __version__, "format bnb": formats()["bnb"].version}
    assert f"{library} {version}" == numerics_class(formats()["bnb"].libraries)


def test_a_library_that_is_not_installed_has_no_version(monkeypatch):
    def missing(name):
        raise MissingLibrary(name)

    monkeypatch.setattr("modelbuild.formats.numerics.library_version", missing)
    text = '[base.b]\nsource = "b"\n[quantize.small]\nmodel = "b"\nformat = "bnb"\ntype = "nf4"\n'
    assert versions_of(parse_text(text, "Modelfile"), ["small"], ())["bitsandbytes"] is None


def test_another_class_of_numerics_is_a_difference_where_it_is_needed_only(spec, declaring):
    declaring(ENTRIES)
    old = Lock(SOURCES, {**METHODS, "format gguf": 4, "gguf Q4_K_M": "bitsandbytes 0.49.0"})
    part, whole = held(spec, old, names=closure(spec, ["mix"])), held(spec, old)
    assert next_lock(part, as_locked()).methods == old.methods
    assert next_lock(whole, as_locked()).methods["gguf Q4_K_M"].startswith("bitsandbytes 0.50.2")
    check_before(held(spec, old, names=part.names, frozen=True))
    with pytest.raises(LockOutOfDate) as caught:
        check_before(held(spec, old, frozen=True))
    (fault,) = caught.value.faults
    assert fault.message == "`gguf Q4_K_M` is another one in the lock"
    assert fault.facts == (
        "the lock has `bitsandbytes 0.49.0`", "here is `bitsandbytes 0.50.2, x86-64 AVX512, 1 thread`",
    )  # fmt: skip


def test_what_is_not_installed_here_stays_as_it_was():
    old = {"modelbuild": "1", "lib": "2.0", "other": "1.0"}
    needed = {"modelbuild": "2", "lib": None, "never": None}
    assert next_versions(old, needed, needed) == {"modelbuild": "2", "lib": "2.0"}
    assert next_versions({}, needed, {**needed, "more": "7"}) == {"modelbuild": "2", "more": "7"}


# --- where there is no lock -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["locked", "frozen"])
def test_a_lock_that_is_asked_for_has_to_be_there(spec, tmp_path, flag):
    options = Options(str(tmp_path / "Modelfile"), **{flag: True})
    with pytest.raises(LockOutOfDate) as caught:
        hold(options, spec, ())
    assert caught.value.faults[0].message == "there is no lock"
    assert caught.value.faults[0].facts == (f"`--{flag}` needs one",)
    assert hold(Options(str(tmp_path / "Modelfile")), spec, ()).lock is None
    write(tmp_path / "Modelfile.lock", LOCK)
    assert hold(options, spec, ["far"]) == Held(
        str(tmp_path / "Modelfile.lock"), hold(options, spec, ()).lock, spec, ("far",), **{flag: True}
    )

"""`verify`: an output is compared with what the lock recorded, every byte of it, and nothing else passes."""

import hashlib
import json
import os
import shutil
import subprocess

import pytest
from faults import run, two_models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelbuild.artifact.output import output_key
from modelbuild.errors import BuildFailed, SourceNotFound, UsageError, VerificationFailed
from modelbuild.options import Options
from modelbuild.plan.node import operation_node
from modelbuild.publish.compare import Facts, compare, git_digest
from modelbuild.report.terminal import Listener
from modelbuild.session import open_session
from modelbuild.sources.lock import Lock, LockedOutput, write
from modelbuild.sources.lockfile import read
from modelbuild.verifying import verify_with

FAST = ("build", "--durability", "none")
BACK = "\nhint: `modelbuild build m` brings the output up to date\n"


@pytest.fixture
def recorded(world):
    """Two models and their merge `m`, built and recorded."""
    two_models(world)
    assert run(world, *FAST, "--record").code == 0
    return world


def verify(world, name="m", against=None, **options):
    return verify_with(Options(str(world.path), durability="none", **options), name, against, Listener())


def lock_of(world):
    return read(world.root / "Modelfile.lock")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest_in_lock(world, file):
    return next(f.sha256 for f in lock_of(world).outputs["m"].files if f.name == file)


def differing(world, *words):
    """What `verify m` says on stderr when it ends with exit code 5; nothing is written meanwhile."""
    before = (world.root / "Modelfile.lock").read_bytes(), sorted(world.out.rglob("*"))
    ran = run(world, "verify", "m", *words)
    assert ran.code == 5, ran
    assert ((world.root / "Modelfile.lock").read_bytes(), sorted(world.out.rglob("*"))) == before
    return ran.stderr


# --- what is the same -------------------------------------------------------------------------------------------------


def test_an_output_that_is_what_was_recorded_passes(recorded):
    ran = run(recorded, "verify", "m")
    assert (ran.code, ran.stderr, ran.stdout) == (0, "", "m: 6 files are what the lock says (build/m)\n")


def test_a_verification_as_data(recorded):
    data = json.loads(run(recorded, "verify", "m", "--json").stdout)
    entry = lock_of(recorded).outputs["m"]
    assert (data["name"], data["path"], data["against"], data["reference"]) == ("m", "build/m", "lock", entry.key)
    facts = [{"size": file.size, "digest": f"sha256:{file.sha256}"} for file in entry.files]
    assert data["files"] == [
        {"name": file.name, "status": "same", "expected": known, "found": known}
        for file, known in zip(entry.files, facts, strict=True)
    ]
    assert data.keys() == {"name", "path", "against", "reference", "files"}


def test_card_and_provenance_speak_about_the_others_and_are_not_compared(recorded):
    (recorded.out / "m" / "README.md").write_text("mine")
    (recorded.out / "m" / "modelbuild.json").unlink()
    assert verify(recorded).error is None


def test_what_is_not_there_is_built_first(recorded):
    shutil.rmtree(recorded.out)
    before = (recorded.root / "Modelfile.lock").read_bytes()
    assert run(recorded, "verify", "m").stdout == "m: 6 files are what the lock says (build/m)\n"
    shutil.rmtree(recorded.out)
    shutil.rmtree(recorded.cache)
    assert verify(recorded, frozen=True).error is None
    assert (recorded.root / "Modelfile.lock").read_bytes() == before


def test_a_stranger_with_the_sources_and_the_lock_verifies_what_was_recorded(recorded):
    copy = recorded.copy()
    shutil.copy(recorded.root / "Modelfile.lock", copy.root / "Modelfile.lock")
    assert run(copy, "verify", "m", "--locked", "--frozen", "--jobs", "1").code == 0
    assert copy.bytes("m") == recorded.bytes("m")


def test_what_is_there_is_compared_as_it_is_and_not_built_again(recorded, monkeypatch):
    shutil.rmtree(recorded.cache)
    monkeypatch.setattr("modelbuild.verifying.run", lambda *given: pytest.fail("it was built"))
    assert verify(recorded).error is None


def test_outputs_elsewhere_are_verified_there(recorded):
    assert run(recorded, "verify", "m", "--out", "there").code == 0
    (recorded.root / "there" / "m" / "config.json").write_text("{}")
    assert run(recorded, "verify", "m", "--out", "there").code == 5
    assert run(recorded, "verify", "m").code == 0
    assert run(recorded, "verify", "m", env={"MODELBUILD_OUT": "there"}).code == 5


def test_shards_are_compared_one_by_one(violet):
    violet.modelfile('[settings]\nshard_size = "20KB"\n' + violet.text)
    violet.build(record=True)
    assert len(verify(violet, "violet").files) == 9
    os.replace(violet.out / "violet/model-00002-of-00003.safetensors", violet.out / "violet/other.safetensors")
    with pytest.raises(VerificationFailed) as caught:
        verify(violet, "violet")
    assert caught.value.faults[0].facts == (
        "`model-00002-of-00003.safetensors` is missing", "`other.safetensors` is not in the lock",
    )  # fmt: skip


# --- what is not ------------------------------------------------------------------------------------------------------


def test_every_file_that_differs_is_missing_or_is_extra_has_its_line(recorded):
    out = recorded.out / "m"
    was = digest_in_lock(recorded, "config.json")
    text = (out / "config.json").read_text()
    (out / "config.json").write_text(text.replace("llama", "Llama"))
    (out / "tokenizer.json").unlink()
    (out / "more").mkdir()
    (out / "more" / "x.json").write_text("{}")
    (out / "generation_config.json").write_text("{}")
    size = (out / "config.json").stat().st_size
    assert differing(recorded) == (
        "error: `m` in build/m is not what the lock says\n"
        f"   |  `config.json`: expected {size} bytes, SHA-256 {was}\n"
        f"   |  `config.json`: found    {size} bytes, SHA-256 {sha256(out / 'config.json')}\n"
        "   |  `generation_config.json`: expected 102 bytes, SHA-256 "
        f"{digest_in_lock(recorded, 'generation_config.json')}\n"
        "   |  `generation_config.json`: found    2 bytes\n"
        "   |  `more/x.json` is not in the lock\n"
        "   |  `tokenizer.json` is missing\n" + BACK
    )


def test_what_differs_is_data_too(recorded):
    (recorded.out / "m" / "tokenizer.json").unlink()
    (recorded.out / "m" / "x").write_text("")
    ran = run(recorded, "verify", "m", "--json")
    data = json.loads(ran.stdout)
    assert ran.code == data["error"]["exit_code"] == 5
    assert data["error"]["text"] + "\n" == ran.stderr
    found = {file["name"]: file for file in data["files"]}
    assert {name: file["status"] for name, file in found.items() if file["status"] != "same"} == {
        "tokenizer.json": "missing", "x": "extra",
    }  # fmt: skip
    assert found["tokenizer.json"]["found"] is None
    assert found["x"] == {"name": "x", "status": "extra", "expected": None, "found": {"size": 0, "digest": None}}


def test_a_bit_that_no_stat_shows_is_seen(recorded):
    path = recorded.out / "m" / "model.safetensors"
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.write(data)
    os.chmod(path, 0o444)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run(recorded, "build").stdout.startswith("m: nothing to do")
    assert "`model.safetensors`: found    " in differing(recorded)


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_something_else_in_the_place_of_a_file_differs(recorded, kind):
    path = recorded.out / "m" / "config.json"
    path.rename(recorded.root / "kept")
    if kind == "link":
        path.symlink_to(recorded.root / "kept")
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    told = differing(recorded)
    # A folder that is empty holds no file: what should be there is missing.
    expected = "`config.json` is missing" if kind == "folder" else "`config.json`: found    something that is no file"
    assert expected in told


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_byte_of_any_file_counts(recorded, data):
    path = recorded.out / "m" / data.draw(st.sampled_from([f.name for f in lock_of(recorded).outputs["m"].files]))
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    kept = path.with_name("kept")
    os.replace(path, recorded.root / "kept")
    path.write_bytes(damaged)
    with pytest.raises(VerificationFailed) as caught:
        verify(recorded)
    assert [file.name for file in caught.value.result.files if file.status != "same"] == [path.name]
    os.replace(recorded.root / "kept", path)
    assert not kept.exists()
    assert verify(recorded).error is None


def test_a_file_that_may_not_be_read_is_an_error_of_its_own(recorded, monkeypatch):
    def refuse(*given, **more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("modelbuild.sources.stamps.os.open", refuse)
    with pytest.raises(SourceNotFound, match="cannot be opened"):
        compare(str(recorded.out / "m"), {"config.json": Facts(os.stat(recorded.out / "m/config.json").st_size)})


# --- where there is nothing to compare with ---------------------------------------------------------------------------


def nothing(world, *words):
    """The facts that `verify m` tells where it ends with exit code 1."""
    ran = run(world, "verify", "m", *words)
    assert ran.code == 1
    head, *rest = ran.stderr.splitlines()
    assert head == "error: there is nothing to compare `m` with"
    assert rest[0] == "  --> Modelfile.lock"
    assert rest[-1] == (
        "hint: `modelbuild build --record m` records what it is now; `--against hf:ORG/NAME` asks the Hub"
    )
    return [line.removeprefix("   |  ") for line in rest[1:-2]]


def test_without_a_lock_or_a_record_there_is_nothing_to_compare_with(world):
    two_models(world)
    assert nothing(world) == ["there is no lock"]
    assert not world.out.exists()
    assert run(world, *FAST).code == 0
    assert nothing(world) == ["the lock has no [outputs.m]"]
    assert json.loads(run(world, "verify", "m", "--json").stdout)["error"]["exit_code"] == 1


@pytest.mark.parametrize(
    "edit",
    [
        lambda world: world.edit('"a", weight = 0.5', '"a", weight = 0.25'),
        lambda world: world.edit("[merge.m]", "[merge.m]\nconfig = { x = 1 }"),
        lambda world: world.modelfile('[settings]\nshard_size = "20KB"\n' + world.text),
        lambda world: world.model("b", seed=9),
    ],
    ids=["parameter", "config", "shards", "source"],
)
def test_a_record_of_another_plan_is_ignored_with_a_note(recorded, edit):
    entry = lock_of(recorded).outputs["m"]
    edit(recorded)
    first, second = nothing(recorded)
    assert first == "[outputs.m] is of another recipe or of other sources, and is ignored"
    with open_session(Options(str(recorded.path)), ["m"], Listener()) as session:
        key = output_key(session.plan, session.plan.artifacts["m"])
    assert second == f"its key is {entry.key[:12]}, that of the present plan is {key[:12]}"
    assert lock_of(recorded).outputs["m"] == entry
    assert run(recorded, *FAST, "--record").code == 0
    assert lock_of(recorded).outputs["m"].key == key
    assert run(recorded, "verify", "m").code == 0


def test_what_changes_no_output_leaves_the_record_good(recorded):
    recorded.modelfile("# a comment\n" + recorded.text + '\n[base.more]\nsource = "b"\n')
    assert run(recorded, "verify", "m").code == 0


def test_an_output_of_an_earlier_recipe_is_told_from_the_recorded_one(recorded):
    recorded.edit('"a", weight = 0.5', '"a", weight = 0.25')
    assert run(recorded, *FAST).code == 0
    recorded.edit('"a", weight = 0.25', '"a", weight = 0.5')
    assert "`model.safetensors`: found" in differing(recorded)
    assert run(recorded, *FAST).code == 0
    assert run(recorded, "verify", "m").code == 0


def bound(world, numerics):
    """Makes the lock say that `m` was recorded in this class of numerics, under another key."""
    lock = lock_of(world)
    entry = LockedOutput("f" * 64, lock.outputs["m"].files, numerics)
    write(world.root / "Modelfile.lock", Lock(lock.sources, lock.methods, {"m": entry}))


def test_a_record_of_another_class_of_numerics_is_called_that(recorded):
    bound(recorded, ("bitsandbytes 0.49.0, x86-64 AVX2, 1 thread",))
    assert nothing(recorded) == [
        "it was recorded in another class of numerics: `bitsandbytes 0.49.0, x86-64 AVX2, 1 thread`",
        "here it is none",
        "the same recipe need not give the same bytes there and here",
    ]


def test_the_class_of_what_is_bound_is_recorded(recorded, monkeypatch):
    from modelbuild.recording import recorded_outputs

    with open_session(Options(str(recorded.path)), ["m"], Listener()) as session:
        target = session.plan.artifacts["m"]
        for kind in ("lib 2", "lib 1"):
            node = operation_node("pack", 1, (), (), "F32", (1,), numerics=kind)
            monkeypatch.setitem(target.tensors, f"x.{kind}", node)
        manifest = session.store.manifest(session.store.artifacts()[0])
        monkeypatch.setattr(type(session.store), "manifest", lambda store, key: manifest)
        assert recorded_outputs(session, Listener())["m"].numerics == ("lib 1", "lib 2")


@pytest.mark.parametrize(("name", "message"), [("a", "is a source"), ("x", "is not in "), ("mm", "is not in ")])
def test_only_what_is_built_can_be_verified(recorded, name, message):
    for against in (None, "hf:o/n"):
        with pytest.raises(UsageError, match=message):
            verify(recorded, name, against)


def test_a_source_that_is_gone_leaves_no_plan_to_compare_with(recorded):
    shutil.rmtree(recorded.root / "b")
    with pytest.raises(SourceNotFound):
        verify(recorded)


def test_what_cannot_be_built_is_that_error(recorded):
    shutil.rmtree(recorded.out)
    (recorded.root / "build").write_text("in the way")
    with pytest.raises(BuildFailed):
        verify(recorded)


# --- comparing --------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c", "d/e"])
CONTENTS = st.dictionaries(NAMES, st.sampled_from([b"", b"x", b"y", b"longer"]))


def facts_of(data, kind):
    if kind == "git":
        return Facts(len(data), "git:" + hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest())
    return Facts(len(data), "sha256:" + hashlib.sha256(data).hexdigest())


@settings(max_examples=60, deadline=None)
@given(CONTENTS, CONTENTS, st.sampled_from(["git", "sha256"]))
def test_a_comparison_says_of_every_file_what_is_so(tmp_path_factory, wanted, there, kind):
    folder = tmp_path_factory.mktemp("compared")
    for name, data in there.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    found = compare(str(folder), {name: facts_of(data, kind) for name, data in wanted.items()})
    assert [file.name for file in found] == sorted({*wanted, *there})
    for file in found:
        expected, data = wanted.get(file.name), there.get(file.name)
        if data is None:
            assert (file.status, file.found) == ("missing", None)
        elif expected is None:
            assert (file.status, file.found) == ("extra", Facts(len(data)))
        else:
            assert file.status == ("same" if expected == data else "differs")
            # What has another size is not read.
            assert file.found == (facts_of(data, kind) if len(expected) == len(data) else Facts(len(data)))


@pytest.mark.parametrize("data", [b"", b"hello\n", bytes(range(256)) * 9000])
def test_the_digest_of_a_blob_is_gits(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    if shutil.which("git") is not None:
        command = ["git", "hash-object", "--no-filters", "x"]
        assert git_digest(str(tmp_path / "x")) == subprocess.check_output(command, cwd=tmp_path, text=True).strip()
    assert git_digest(str(tmp_path / "x")) == hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()

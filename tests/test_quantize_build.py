"""Builds of quantised artifacts: the same bytes however they are made, nothing twice, damage and kills made good, and
what is said of all that."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from quantizing import Quantizing, table
from tiny_cache import flip

from modelbuild import stamps
from modelbuild.engine import pack, parts
from modelbuild.errors import BuildFailed, NotCached
from modelbuild.formats import _bnb_packer, numerics

LINEAR, TOTAL = 14, 21
HEAVY = {"torch", "bitsandbytes", "numba", "transformers", "huggingface_hub"}
CHAIN = """
[merge.adapted]
method = "lora"
base = "one"
adapters = [ { adapter = "lora", weight = 0.5 } ]

[merge.blend]
method = "lerp"
base = "adapted"
models = [ { model = "two", t = { points = [[0, 0.9], [1, 0.25]] } } ]
"""


@pytest.fixture
def world(tmp_path):
    """A model and what it becomes in four bits, with scales that are quantised too; not built yet."""
    return Quantizing(tmp_path / "world").small("base").write(table("q", "base", "nf4-dq"))


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A chain that ends in three formats, built on one thread."""
    world = Quantizing(tmp_path_factory.mktemp("chain"))
    for seed, name in enumerate(("one", "two"), 1):
        world.small(name, seed=seed, intermediate=320)
    world.lora("lora", "one", seed=3, targets=("q_proj", "up_proj"))
    world.write(CHAIN, table("a", "blend", "nf4-dq"), table("b", "blend", "fp4"), table("c", "blend", "int8"))
    world.build("a", "b", "c", jobs=1)
    return world


def counts(result, name="q"):
    found = result[name].tensors
    return found.computed, found.copied, found.reused


# --- the same bytes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    {"jobs": 2}, {"jobs": 5}, {"memory": "1MB"}, {"memory": "1KB"}, {"jobs": 3, "memory": "200KB"}, {"link": "copy"},
], ids=str)  # fmt: skip
def test_threads_and_memory_change_no_byte(chain, options):
    other = chain.copy()
    other.build("a", "b", "c", **options)
    assert [other.bytes(name) for name in "abc"] == [chain.bytes(name) for name in "abc"]


def test_whole_tensors_stay_within_the_budget_as_long_as_each_fits(chain):
    """The largest weight is 64×320 in bfloat16: 40 KB, and sixteen times that while it is packed."""
    for jobs in (1, 4):
        other = chain.copy()
        assert 640_000 < other.build("a", jobs=jobs, memory="2MB").peak_tensor_bytes <= 2_000_000
    assert other.plan("a", memory="2MB")["a"].alone == ()
    assert len(other.copy().plan("a", memory="500KB")["a"].alone) == 6


@pytest.mark.parametrize("piece", [1, 64, 5000, 10**9])
def test_how_much_is_packed_at_a_time_changes_no_byte(chain, monkeypatch, piece):
    monkeypatch.setattr(_bnb_packer, "PIECE", piece)
    other = chain.copy()
    other.build("a", "b", "c")
    assert [other.weights(name) for name in "abc"] == [chain.weights(name) for name in "abc"]


def test_the_thread_count_of_torch_changes_no_byte_and_stays_what_it_was(chain):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        other = chain.copy()
        other.build("a")
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    assert other.weights("a") == chain.weights("a")


def test_blocks_of_the_checksum_may_end_anywhere_in_an_output(chain, monkeypatch):
    from modelbuild import checksum
    from modelbuild.engine import block, program

    for module in (checksum, block, program, pack):
        monkeypatch.setattr(module, "BLOCK", 4096)
    other = chain.copy()
    other.build("a", "c")
    assert [other.weights(name) for name in "ac"] == [chain.weights(name) for name in "ac"]


def test_computing_all_anew_finds_the_same(chain):
    for name in "abc":
        assert chain.build(name, no_cache=True)[name].status == "fresh"


def test_another_result_of_the_same_inputs_is_reported(world, monkeypatch):
    world.build()
    real = _bnb_packer.BnbPacker.pack

    def other(self, node, raw, emit):
        real(self, node, raw * 1 ^ 1, emit)

    monkeypatch.setattr(_bnb_packer.BnbPacker, "pack", other)
    with pytest.raises(BuildFailed, match="is not what an earlier build made of the same inputs"):
        world.build(no_cache=True)


# --- nothing twice ----------------------------------------------------------------------------------------------------


def test_a_second_build_does_nothing_and_a_third_links(world):
    assert counts(world.build()) == (LINEAR, TOTAL - LINEAR, 0)
    assert world.build()["q"].status == "fresh"
    shutil.rmtree(world.out)
    again = world.build()["q"]
    assert (again.status, again.written, again.tensors.reused) == ("built", 0, TOTAL)


def test_neither_planning_nor_a_build_with_nothing_to_do_loads_a_library(world):
    found = {name.partition(".")[0] for name in world.imports("plan")}
    assert found & HEAVY == set()
    assert world.run("build").returncode == 0
    for words in (["plan"], ["why", "q"], ["why", "q", "model.layers.0.mlp.up_proj.weight"], ["lock"], ["build"]):
        assert {name.partition(".")[0] for name in world.imports(*words)} & HEAVY == set(), words
    (world.out / "q" / "config.json").unlink()
    assert {name.partition(".")[0] for name in world.imports("build")} & HEAVY == set()


def test_packing_loads_neither_the_compiler_of_torch_nor_the_hub(world):
    found = world.imports("build")
    assert "bitsandbytes.functional" in found
    assert found & {"torch._dynamo", "torch._inductor", "transformers", "huggingface_hub"} == set()
    assert "gemm_4bit_forward" not in world.copy().run("build").stderr


def test_a_changed_layer_of_a_merge_is_packed_again_and_no_other(chain):
    world = chain.copy()
    world.build("a")
    again = world.edit("[1, 0.25]", "[1, 0.75]").build("a")
    assert counts(again, "a") == (7, 0, 14)  # two norms are the merge's, and computed for it
    (reason,) = again["a"].reasons
    assert reason.startswith("t of `two` 0.25 → 0.75")
    assert world.bytes("a") == world.from_nothing("a").bytes("a")


def test_another_type_packs_everything_and_going_back_nothing(world):
    world.build()
    again = world.edit('type = "nf4"', 'type = "fp4"').build()
    assert counts(again) == (LINEAR, 0, TOTAL - LINEAR)
    assert again["q"].reasons == (f"type nf4 → fp4 ({LINEAR} tensors)",)
    assert counts(world.edit('type = "fp4"', 'type = "nf4"').build()) == (0, 0, TOTAL)


def test_a_tensor_that_is_there_twice_is_packed_once(world):
    import pico

    base = world.root / "base"
    tensors = pico.read_tensors(base)
    one, other = (f"model.layers.{n}.mlp.up_proj.weight" for n in (0, 1))
    pico.write_safetensors(base / "model.safetensors", tensors | {other: tensors[one]})
    passed = '[merge.m]\nmethod = "passthrough"\n[[merge.m.slices]]\nlayers = [0, 1]\nmodels = [{ model = "base" }]\n'
    again = '[[merge.m.slices]]\nlayers = [0, 1]\nmodels = [{ model = "base" }]\n'
    for mode in ("nf4-dq", "int8"):
        world.age("base").write(passed, again, table("q", "m", mode))
        world.build("q")
        made = world.tensors("q")
        twins = [name for name in made if name.startswith("model.layers.0.")]
        assert len(twins) > 20
        assert all(made[n][1].tobytes() == made[n.replace(".0.", ".1.", 1)][1].tobytes() for n in twins)


# --- what is said -----------------------------------------------------------------------------------------------------


def test_the_plan_says_what_is_written_twice_and_what_runs_alone(world):
    small = world.plan(memory="1KB")["q"]
    assert small.tensors.computed == LINEAR
    assert "`model.layers.0.mlp.down_proj.weight` needs" in "".join(small.alone)
    assert world.plan()["q"].alone == ()
    packed = sum(n for n in (world.plan()["q"].write,))
    assert packed > 86_000  # the file, and what is packed before its layout is known
    plain = world.copy().edit("double_quant = true", "double_quant = false").plan()["q"]
    result = world.build()["q"]
    assert plain.write < 73_000 < result.written <= packed


def test_why_shows_how_a_tensor_comes_about(world):
    name = "model.layers.0.mlp.up_proj.weight"
    first, last = world.why("q", name).steps
    assert first.startswith(f"read {name} of `base` from model.safetensors (BF16 128×64)")
    assert last.startswith(
        "bnb (type = 'nf4', double_quant = True, block_size = 64, transposed = False) by bitsandbytes "
    )
    assert "weight.nested_absmax F32" in last


def test_another_version_of_the_library_packs_anew_and_is_told(world, monkeypatch):
    world.build()
    real = numerics.version
    monkeypatch.setattr(numerics, "version", lambda name: "0.51.0" if name == "bitsandbytes" else real(name))
    why = world.why("q")
    assert why.state == "changed"
    assert [cause for cause, _ in why.causes] == ["numerics bitsandbytes 0.50.2 → bitsandbytes 0.51.0"]
    again = world.build()
    assert counts(again) == (LINEAR, 0, TOTAL - LINEAR)
    assert again["q"].reasons == (f"numerics bitsandbytes 0.50.2 → bitsandbytes 0.51.0 ({LINEAR} tensors)",)


def test_another_kind_of_processor_is_another_class(world, monkeypatch):
    world.build()
    monkeypatch.setattr(numerics, "processor_family", lambda: "arm64")
    (cause,) = (cause for cause, _ in world.why("q").causes)
    assert cause.endswith("→ arm64")


def test_the_lock_has_the_format_and_the_numerics_class(world):
    world.build()
    lock = (world.root / "Modelfile.lock").read_text()
    assert '\n"format bnb" = 1\n' in lock
    assert (
        f'\nbitsandbytes = "{numerics.numerics_class(("bitsandbytes", "torch")).removeprefix("bitsandbytes ")}"\n'
        in lock
    )
    assert world.run("lock").returncode == 0
    assert (world.root / "Modelfile.lock").read_text() == lock


def test_a_stamp_is_not_believed_when_a_library_is_another(world, monkeypatch):
    monkeypatch.chdir(world.root)
    world.build()
    words = ["-f", str(world.path), "build"]
    assert stamps.answer(words) is not None
    real = stamps.facts
    monkeypatch.setattr(stamps, "facts", lambda path, *more: None if "bitsandbytes" in path else real(path, *more))
    assert stamps.answer(words) is None
    monkeypatch.undo()
    monkeypatch.chdir(world.root)
    monkeypatch.setattr(sys, "prefix", "elsewhere")
    assert stamps.answer(words) is None


def test_nothing_may_be_packed_where_all_must_be_cached(world):
    with pytest.raises(NotCached, match=r"_proj\.weight` of `q` is not in the cache"):
        world.build(require_cached=True)
    world.build()
    shutil.rmtree(world.out)
    assert world.build(require_cached=True)["q"].tensors.reused == TOTAL


# --- damage -----------------------------------------------------------------------------------------------------------


def place_of(path, name):
    """Where the bytes of a tensor begin in a file."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    return start + json.loads(data[8:start])[name]["data_offsets"][0]


@pytest.mark.parametrize("part", ["", ".absmax", ".nested_absmax", ".quant_state.bitsandbytes__nf4"])
@pytest.mark.parametrize("mtime", [True, False], ids=["seen", "unseen"])
def test_a_flipped_bit_in_any_part_of_a_packed_weight_is_made_good(world, part, mtime):
    """Seen at once by the file's time, or not before its bytes are read for another artifact."""
    world.build()
    wanted = world.bytes("q")
    shutil.rmtree(world.out)
    (path,) = world.cache.glob("artifacts/*/*.safetensors")
    facts = path.stat()
    flip(path, place_of(path, f"model.layers.0.mlp.up_proj.weight{part}"))
    if not mtime:
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        world.edit("double_quant = true", 'double_quant = true\nskip = "layers.1.mlp.down_proj"')
        wanted = world.from_nothing().bytes("q")
    result = world.build()
    assert world.bytes("q") == wanted
    assert result["q"].tensors.computed == 1
    assert world.run("cache", "verify").returncode == 0


def test_damage_of_what_was_packed_beforehand_is_made_good(world, monkeypatch):
    wanted = world.from_nothing().bytes("q")
    real, done = parts.fill_parts, []

    def damaging(making, stage, names, cached):
        found = real(making, stage, names, cached)
        if not done:
            done.append(flip(stage.path(parts.PARTS), 100))
        return found

    monkeypatch.setattr("modelbuild.engine.packed.fill_parts", damaging)
    world.build()
    assert len(done) == 1
    assert world.bytes("q") == wanted


def test_nothing_is_left_of_the_stages(world):
    world.build()
    assert list(world.cache.glob("stage*/*")) == []
    assert list(world.cache.glob("trash/*")) == []


# --- kills ------------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from modelbuild.cache import stage
from modelbuild import build

left = int(sys.argv[1])
record = stage.Stage.record

def dying(self, name, key, checksum):
    global left
    record(self, name, key, checksum)
    left -= 1
    if not left:
        self._journal.flush()
        os.kill(os.getpid(), signal.SIGKILL)

stage.Stage.record = dying
build("Modelfile", jobs=1, durability="none")
"""
PARTS = 6 * LINEAR


@pytest.mark.parametrize(("records", "kept"), [
    (5, 0),  # between a weight and its late output
    (6 * 3 + 2, 3),  # within the fourth weight
    (PARTS, LINEAR),  # everything packed, nothing laid out
    (PARTS + 40, LINEAR),  # while the artifact is filled
])  # fmt: skip
def test_a_kill_costs_no_more_than_the_weight_under_way(world, records, kept):
    wanted = world.from_nothing().bytes("q")
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, str(records)], cwd=world.root, capture_output=True, text=True, check=False
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    assert not world.out.exists()
    result = world.build()["q"]
    assert world.bytes("q") == wanted
    assert result.tensors.computed == LINEAR - kept
    assert result.tensors.total == TOTAL == sum(counts_of(result))
    assert list(world.cache.glob("stage*/*")) == []


def counts_of(result):
    return result.tensors.computed, result.tensors.copied, result.tensors.reused


def test_a_full_disk_is_told_and_the_next_build_goes_on(world, monkeypatch):
    wanted = world.from_nothing().bytes("q")
    real, left = os.pwrite, [20]

    def refusing(fd, data, offset):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", refusing)
    with pytest.raises(BuildFailed, match="the disk is full"):
        world.build()
    monkeypatch.undo()
    world.build()
    assert world.bytes("q") == wanted


def test_a_source_that_changes_meanwhile_leaves_nothing_behind(world, monkeypatch):
    real = _bnb_packer.BnbPacker.pack

    def editing(self, node, raw, emit):
        real(self, node, raw, emit)
        path = world.root / "base" / "model.safetensors"
        os.utime(path, (1, 1))

    monkeypatch.setattr(_bnb_packer.BnbPacker, "pack", editing)
    with pytest.raises(BuildFailed, match="changed"):
        world.build(jobs=1)
    monkeypatch.undo()
    assert not world.out.exists()
    assert counts(world.build()) == (LINEAR, TOTAL - LINEAR, 0)


def test_a_library_that_gives_other_sizes_is_an_error_of_ours(world, monkeypatch):
    real = _bnb_packer.BnbPacker.pack

    def longer(self, node, raw, emit):
        real(self, node, raw, lambda name, data: emit(name, data + b"\0" if name.endswith("quant_map") else data))

    monkeypatch.setattr(_bnb_packer.BnbPacker, "pack", longer)
    with pytest.raises(BuildFailed, match="packs a tensor into another size than was planned"):
        world.build()


def test_two_builds_at_once_make_the_artifact_once(world):
    wanted = world.from_nothing().bytes("q")
    command = [sys.executable, "-m", "modelbuild", "build", "--json"]
    env = {**os.environ, "PYTHONPATH": str(Path(pack.__file__).parents[2])}
    both = [
        subprocess.Popen([*command, "--out", str(world.root / f"out-{n}")], cwd=world.root, env=env,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for n in range(2)
    ]  # fmt: skip
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    results = [json.loads(out)["artifacts"][0]["tensors"] for out, _ in said]
    assert sorted(found["computed"] for found in results) == [0, LINEAR]
    for n in range(2):
        assert (world.root / f"out-{n}" / "q" / "model.safetensors").read_bytes() == wanted["model.safetensors"]

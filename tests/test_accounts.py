"""What a build says of itself is what happened: bytes, counts, reasons, and errors at the right moment."""

import json
import os
import signal
import subprocess
import sys
import time

import pico
import pytest

import modelbuild
from modelbuild.build import Work
from modelbuild.errors import LockOutOfDate, UsageError
from modelbuild.sources.safetensors import read_header
from modelbuild.units import parse_size


@pytest.fixture
def chain(world):
    """A LoRA folded into `a`, and most of the way from there to `b`."""
    world.model("a", seed=1).model("b", seed=2).lora("style", "a", seed=3, targets=("q_proj",))
    return world.modelfile("""
        [base.a]
        source = "a"
        [base.b]
        source = "b"
        [adapter.style]
        source = "style"
        [merge.styled]
        method = "lora"
        base = "a"
        adapters = [ { adapter = "style", weight = 0.5 } ]
        [merge.half]
        method = "lerp"
        base = "styled"
        models = [ { model = "b" } ]
        t = 0.75
    """)


def weights(folder):
    return sum(raw.nbytes for _, raw in pico.read_tensors(folder).values())


def test_bytes_read_are_those_of_sources_and_not_of_what_streams_between(chain):
    result = chain.build()
    assert result["half"].read == weights(chain.root / "b")
    # The tensors of `a`, and the factors of the adapter.
    file = chain.root / "style" / "adapter_model.safetensors"
    factors = sum(tensor.nbytes for tensor in read_header(file, file.stat().st_size).tensors)
    assert result["styled"].read == weights(chain.root / "a") + factors


def test_the_plan_reads_what_the_build_then_reads(chain):
    planned = {artifact.name: artifact.read for artifact in chain.plan().artifacts}
    assert planned == {artifact.name: artifact.read for artifact in chain.build().artifacts}


def test_a_streamed_artifact_says_how_long_its_kernels_took(chain):
    assert chain.build()["styled"].seconds > 0


def test_of_several_processes_at_once_one_says_that_it_computed(chain):
    command = [sys.executable, "-m", "modelbuild", "-f", str(chain.path), "build", "--json"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, cwd=chain.root) for _ in range(3)]
    told = [json.loads(process.communicate()[0])["artifacts"] for process in running]
    computed = [sum(artifact["tensors"]["computed"] for artifact in artifacts) for artifacts in told]
    assert sorted(bool(count) for count in computed) == [False, False, True]
    for artifacts in told:
        half = next(artifact for artifact in artifacts if artifact["name"] == "half")
        assert sum(half["tensors"][word] for word in ("computed", "copied", "reused")) == half["tensors"]["total"]


def test_what_another_process_publishes_between_plan_and_turn_was_not_computed_here(chain, monkeypatch):
    plan_is_made = Work.announce

    def announce_late(work, session):
        plan_is_made(work, session)
        assert chain.run("build").returncode == 0

    monkeypatch.setattr(Work, "announce", announce_late)
    result = chain.build()
    counts = [(artifact.tensors.computed, artifact.read, artifact.reasons) for artifact in result.artifacts]
    assert counts == [(0, 0, ())] * 2


def test_what_failed_says_that_nothing_was_computed(chain):
    ran = chain.run("build", "--json", "--require-cached")
    assert ran.returncode == 6
    assert [a["tensors"]["computed"] for a in json.loads(ran.stdout)["artifacts"]] == [0, 0]


def test_another_method_is_the_cause_not_its_parameters(chain):
    chain.build()
    chain.edit('method = "lerp"', 'method = "task_arithmetic"').edit("t = 0.75", "weight = 0.5")
    assert {cause for cause, _ in chain.why("half").causes} == {"method lerp → task_arithmetic"}


@pytest.mark.parametrize(
    ("addition", "file"),
    [("config = { x = 2 }", "config.json"), ("generation = { top_k = 3 }", "generation_config.json")],
)
def test_a_changed_side_file_is_a_cause(chain, addition, file):
    chain.build()
    chain.edit("t = 0.75", f"t = 0.75\n{addition}")
    why = chain.why("half")
    assert why.state == "changed"
    assert f"{file} of the output changes" in [cause for cause, _ in why.causes]
    assert chain.build()["half"].status == "built"
    assert chain.why("half").state == "same"


def test_a_damaged_lock_stops_the_build_before_it_starts(chain):
    (chain.root / "Modelfile.lock").write_text("garbage")
    with pytest.raises(LockOutOfDate):
        chain.build()
    assert not (chain.out / "half").exists()
    assert not list((chain.cache / "artifacts").iterdir())


@pytest.mark.parametrize("wrong", [{"link": "zz"}, {"durability": "zz"}, {"jobs": -3}, {"memory": "x"}], ids=str)
def test_options_are_checked_from_python_too(chain, wrong):
    with pytest.raises(UsageError):
        modelbuild.build(str(chain.path), **wrong)


def test_one_target_may_be_a_string(chain):
    assert [artifact.name for artifact in modelbuild.build(str(chain.path), "styled").artifacts] == ["styled"]


def test_an_output_without_a_config_is_told(chain):
    os.unlink(chain.root / "a" / "config.json")
    os.unlink(chain.root / "b" / "config.json")
    assert "half: its donor has no config.json, so transformers will not load the output" in chain.build().notes


def test_two_modelfiles_that_share_an_output_folder_take_no_output_for_edited(chain):
    chain.build()
    other = chain.root / "Modelfile.new"
    other.write_text(chain.text.replace("t = 0.75", "t = 0.25"))
    for path in (other, chain.path, other):
        result = modelbuild.build(str(path))["half"]
        assert (result.status, result.notes) == ("built", ())
    assert not (chain.out / ".edited").exists()


def test_a_source_can_be_inspected_by_its_name(chain):
    ran = chain.run("inspect", "style", "--json")
    assert ran.returncode == 0
    assert len(json.loads(ran.stdout)["tensors"]) == 4


def test_whoever_stops_listening_gets_no_traceback(chain):
    chain.run("build")
    for words in ("build", "methods", "schema"):
        command = f'"{sys.executable}" -m modelbuild -f "{chain.path}" {words} | true'
        ran = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=chain.root)
        assert ran.stderr == ""


def test_an_early_interruption_is_told_in_a_word(chain):
    for after in (0.03, 0.08, 0.15):
        command = [sys.executable, "-c", "import modelbuild.__main__ as m; print(1, flush=True); m.main()", "build"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=chain.root)
        process.stdout.read(2)
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate()
        assert process.returncode in (0, 130)
        assert "Traceback" not in told
        assert process.returncode == 0 or "interrupted" in told


@pytest.mark.parametrize("key", ["only", "copy"])
def test_a_pattern_that_fits_nothing_is_told(chain, key):
    chain.edit("t = 0.75", f't = 0.75\n{key} = ["atention"]')
    assert f"half: `atention` in `{key}` is in no tensor's name" in chain.plan().notes


def test_clean_leaves_what_another_modelfile_built(chain):
    other = chain.root / "Modelfile.other"
    other.write_text(chain.text.replace("[merge.half]", "[merge.third]"))
    modelbuild.build(str(other))
    ran = chain.run("clean")
    assert "third is left alone" in ran.stdout
    assert (chain.out / "third" / "config.json").exists()
    other.unlink()
    assert "removed" in chain.run("clean").stdout
    assert not (chain.out / "third").exists()


@pytest.mark.parametrize("option", ["--offline"])
def test_options_of_later_versions_say_so(chain, option):
    ran = chain.run("build", option)
    assert (ran.returncode, ran.stderr) == (1, f"error: `{option}` is not built yet\n")


@pytest.mark.parametrize("memory", ["1MB", "64MB"])
def test_the_memory_budget_is_kept(chain, memory):
    assert 0 < chain.build(memory=memory, jobs=2).peak_tensor_bytes <= parse_size(memory)


def test_a_pattern_that_fits_nothing_is_told_of_adapters_too(chain):
    chain.edit("weight = 0.5 } ]", 'weight = 0.5 } ]\nonly = ["atention"]')
    assert "styled: `atention` in `only` is in no tensor's name" in chain.plan().notes


def test_lock_tells_what_changed(chain):
    chain.run("lock")
    assert chain.run("lock").stdout == "Modelfile.lock: 3 sources, nothing changed\n"
    chain.model("b", seed=9)
    told = chain.run("lock").stdout.splitlines()
    assert told[0] == "Modelfile.lock: 3 sources, written"
    assert any("b" in line and "model.safetensors" in line for line in told[1:])

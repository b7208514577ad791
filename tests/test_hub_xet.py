"""Files in Xet storage, as most on the Hub are: fetched the other way, into a store that repositories share."""

import shutil

import pytest

RED = "model.safetensors"


@pytest.fixture
def one(world, hub):
    """One model, in Xet storage."""
    world.model("red", seed=1)
    hub.put("org/red", world.root / "red")
    hub.to_xet("org/red")
    return world.modelfile("""
        [base.red]
        source = "hf:org/red"
        [merge.m]
        method = "passthrough"
        dtype = "float32"
        models = [ { model = "red" } ]
    """)


def run(world, hub, *words):
    env = {key: value for key, value in hub.env.items() if key != "HF_HUB_DISABLE_XET"}
    return world.run(*words, **env)


def pointer(hub, repo="red"):
    (path,) = hub.cache.glob(f"models--org--{repo}/snapshots/*/{RED}")
    return path


def test_a_file_in_xet_storage_is_planned_by_range_and_fetched_through_xet(one, hub):
    assert run(one, hub, "plan").returncode == 0
    assert [answer.range for answer in hub.answers if "/_storage/" in answer.path] == ["bytes=0-32767"]
    hub.fresh()
    ran = run(one, hub, "build")
    assert ran.returncode == 0, ran.stderr
    assert (hub.count("/_storage/"), hub.count("/xet-read-token/")) == (0, 1)
    near = one.copy()
    near.edit("hf:org/red", "red").build()
    assert one.bytes("m")[RED] == near.bytes("m")[RED]
    hub.fresh()
    one.edit('dtype = "float32"', 'dtype = "float16"')
    assert run(one, hub, "build").returncode == 0
    assert hub.answers == []


def test_a_file_that_another_repository_brought_is_not_fetched_again(one, hub):
    assert run(one, hub, "build").returncode == 0
    hub.put("org/twin", one.root / "red")
    hub.to_xet("org/twin")
    hub.fresh()
    one.edit("hf:org/red", "hf:org/twin").edit('dtype = "float32"', 'dtype = "float16"')
    ran = run(one, hub, "build")
    assert ran.returncode == 0, ran.stderr
    assert hub.count("/xet-read-token/") == hub.count("/_storage/") == 0
    assert pointer(hub, "twin").resolve() == pointer(hub).resolve()


def test_offline_a_shared_file_is_known_by_the_name_of_its_blob(one, hub):
    assert run(one, hub, "build").returncode == 0
    wanted = one.bytes("m")[RED]
    (one.root / "Modelfile.lock").unlink()
    shutil.rmtree(one.cache)
    shutil.rmtree(one.out)
    hub.fresh()
    ran = run(one, hub, "build", "--offline")
    assert ran.returncode == 0, ran.stderr
    assert hub.answers == []
    assert one.bytes("m")[RED] == wanted


def test_damage_in_the_shared_store_is_found_and_mended(one, hub):
    assert run(one, hub, "build").returncode == 0
    wanted = one.bytes("m")[RED]
    shared = pointer(hub).resolve()
    assert "blobs" in shared.parts[-3]
    content = bytearray(shared.read_bytes())
    content[-1] ^= 1
    shared.chmod(0o644)
    shared.write_bytes(content)
    shutil.rmtree(one.cache)
    shutil.rmtree(one.out)
    ran = run(one, hub, "build")
    assert ran.returncode == 5
    assert "is not the file that the lock pins" in ran.stderr
    ran = run(one, hub, "build")
    assert ran.returncode == 0, ran.stderr
    assert one.bytes("m")[RED] == wanted

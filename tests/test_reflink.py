"""With reflinks an unchanged tensor costs no disk and no copying: on a real file system, where one can be made."""

import os
import shutil
import subprocess

import pico
import pytest

import modelbuild
from modelbuild.engine import files as engine_files

SIZE = 400 * 2**20


@pytest.fixture
def xfs(tmp_path):
    """An XFS file system in a file, which takes root and mkfs.xfs."""
    if os.geteuid() != 0 or shutil.which("mkfs.xfs") is None:
        pytest.skip("needs root and mkfs.xfs")
    image, mount = tmp_path / "image", tmp_path / "mount"
    mount.mkdir()
    with open(image, "wb") as file:
        file.truncate(SIZE)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, mount], capture_output=True).returncode:
        pytest.skip("may not mount")
    yield mount
    subprocess.run(["umount", "-l", mount], check=True)


def modelfile(folder, weight):
    # Only the attention of `a` follows the weight.
    text = f"""
    [base.a]
    source = "a"
    [base.b]
    source = "b"
    [merge.m]
    method = "linear"
    models = [
      {{ model = "a", weight = [ {{ match = "self_attn", value = {weight} }}, {{ value = 0.5 }} ] }},
      {{ model = "b", weight = 0.5 }},
    ]
    """
    (folder / "Modelfile").write_text(text)
    return str(folder / "Modelfile")


def make_models(folder):
    for seed, name in enumerate("ab"):
        pico.save_model(folder / name, "llama", seed=seed, hidden=64, layers=2)


def copied_bytes(monkeypatch):
    """Counts the bytes that are read from the cache."""
    read = []
    plain = engine_files.StoredFiles.read

    def counting(self, node, located, buffer, offset):
        read.append(len(buffer) if located is not None else 0)
        plain(self, node, located, buffer, offset)

    monkeypatch.setattr(engine_files.StoredFiles, "read", counting)
    return read


def test_unchanged_tensors_are_shared_and_not_read(xfs, monkeypatch, tmp_path):
    make_models(xfs)
    modelbuild.build(modelfile(xfs, 0.5))
    read = copied_bytes(monkeypatch)
    again = modelbuild.build(modelfile(xfs, 0.6))["m"]
    assert again.tensors.computed == 8
    # What is no whole number of blocks is copied.
    tensors = pico.read_tensors(xfs / "build" / "m")
    odd = sum(a.nbytes for name, (_, a) in tensors.items() if a.nbytes % 4096 and "self_attn" not in name)
    assert sum(read) == odd
    clean = tmp_path / "clean"
    make_models(clean)
    modelbuild.build(modelfile(clean, 0.6))
    ours, theirs = (folder / "build" / "m" / "model.safetensors" for folder in (xfs, clean))
    assert ours.read_bytes() == theirs.read_bytes()


def test_an_output_is_a_file_of_its_own_that_shares_its_blocks(xfs):
    make_models(xfs)
    modelbuild.build(modelfile(xfs, 0.5), link="ref")
    assert (xfs / "build" / "m" / "model.safetensors").stat().st_nlink == 1


def test_without_reflinks_the_bytes_are_copied_through_their_checksum(monkeypatch, tmp_path):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(engine_files.fcntl, "ioctl", refuse)
    make_models(tmp_path)
    modelbuild.build(modelfile(tmp_path, 0.5))
    read = copied_bytes(monkeypatch)
    again = modelbuild.build(modelfile(tmp_path, 0.6))["m"]
    assert again.tensors.reused == again.tensors.total - 8
    tensors = pico.read_tensors(tmp_path / "build" / "m")
    assert sum(read) == sum(a.nbytes for name, (_, a) in tensors.items() if "self_attn" not in name)

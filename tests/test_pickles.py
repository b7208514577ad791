"""Files of torch.save: their tensors are those that torch loads, and no file runs anything or is believed unchecked."""

import contextlib
import os
import pickle
import warnings
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pickled import LEGACY_MAGIC, Call, Tensor, forged, gadgets, save, write_legacy, write_zip
from safetensors.torch import save_file

from modelbuild.errors import BuildFailed
from modelbuild.sources import legacy, pickles
from modelbuild.sources.content import SourceFile
from modelbuild.sources.headers import at_rest, look_into
from modelbuild.sources.memory import Memory
from modelbuild.sources.pickles import read_pickled_header
from modelbuild.sources.reader import LocalReader
from modelbuild.sources.safetensors import Header, read_header
from modelbuild.sources.stamps import stamp_of
from modelbuild.sources.statedict import DTYPES

both = pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
FORMATS = st.booleans()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.bin"


def header(path) -> Header:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return read_pickled_header(descriptor, os.path.getsize(path), name="the/file.bin")
    finally:
        os.close(descriptor)


def refusal(path) -> str:
    with pytest.raises(BuildFailed) as caught:
        header(path)
    assert type(caught.value) is BuildFailed
    return caught.value.render()


def contents(path):
    """Each tensor of the file, (dtype, shape, bytes), read where it is said to lie."""
    status = os.stat(path)
    file = SourceFile(path.name, str(path), status.st_size, f"{status.st_ino:064}", stamp_of(status))
    memory = Memory(path.parent / "cache")
    found = {}
    with LocalReader() as reader:
        for name, tensor in at_rest(look_into(file, memory, "f"), file, memory, "f").items():
            buffer = bytearray(tensor.nbytes)
            reader.read_into(buffer, tensor.file, tensor.offset)
            found[name] = (tensor.dtype, tensor.shape, bytes(buffer))
    return found


def as_loaded(loaded):
    """The same of tensors that torch loaded."""

    def raw(tensor):
        ordered = tensor.detach().clone(memory_format=torch.contiguous_format).flatten()
        return ordered.view(torch.uint8).numpy().tobytes() if tensor.numel() else b""

    name = {f"torch.{theirs}": ours for theirs, ours in DTYPES.items()}
    return {key: (name[str(t.dtype)], tuple(t.shape), raw(t)) for key, t in loaded.items()}


def loads(path):
    return torch.load(path, weights_only=True)


# --- what is read -----------------------------------------------------------------------------------------------------

ALL = [getattr(torch, name) for name in DTYPES]
OLDER = [t for t in ALL if "float8" not in str(t) and str(t) not in ("torch.uint16", "torch.uint32", "torch.uint64")]
"""The dtypes that torch reads from files of the old format."""


@st.composite
def views(draw):
    """A format, and a few storages with tensors that view them at random offsets, shapes and strides."""
    old, tensors = draw(FORMATS), {}
    for storage in range(draw(st.integers(1, 3))):
        dtype, count = draw(st.sampled_from(OLDER if old else ALL)), draw(st.integers(0, 60))
        flat = torch.arange(count, dtype=torch.uint8).to(dtype)
        for number in range(draw(st.integers(1, 3))):
            shape = draw(st.lists(st.integers(0 if count == 0 else 1, 4), max_size=3))
            offset = draw(st.integers(0, max(count - 1, 0)))
            left, strides = count - 1 - offset, []
            for size in shape:
                stride = draw(st.integers(0, max(left, 0) // (size - 1))) if size > 1 else draw(st.integers(0, 5))
                left -= (size - 1) * stride
                strides.append(stride)
            if count == 0 and 0 not in shape:
                shape, strides = [0], [1]
            view = flat.as_strided(shape, strides, offset)
            name = draw(st.text("abc.é", min_size=1, max_size=4)) + f"{storage}{number}"
            tensors[name] = torch.nn.Parameter(view, False) if draw(st.booleans()) else view
    return old, tensors


@given(views())
@settings(deadline=None)
def test_tensors_of_any_view_are_those_that_torch_loads(tmp_path_factory, made):
    old, tensors = made
    path = save(tmp_path_factory.mktemp("f") / "file.bin", tensors, old)
    strided = [t for t in header(path).tensors if t.strides is not None]
    if sum(t.nbytes for t in strided) > path.stat().st_size:
        with pytest.raises(BuildFailed, match="views of far fewer numbers"):
            contents(path)
        return
    assert contents(path) == as_loaded(loads(path)) == as_loaded(tensors)
    assert [t.name for t in strided] == [n for n in contents(path) if not tensors[n].is_contiguous()]


@given(st.dictionaries(st.text("abXY_.é0", min_size=1, max_size=5), st.sampled_from(ALL), min_size=1, max_size=8))
def test_tensors_come_in_the_order_that_the_safetensors_library_gives_them(tmp_path_factory, dtypes):
    old = set(dtypes.values()) <= set(OLDER)
    folder = tmp_path_factory.mktemp("f")
    tensors = {name: torch.zeros(3, dtype=torch.uint8).to(dtype) for name, dtype in dtypes.items()}
    save_file(tensors, folder / "model.safetensors")
    converted = read_header(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size)
    assert [t.name for t in header(save(folder / "f.bin", tensors, old)).tensors] == [t.name for t in converted.tensors]


@both
def test_tensors_that_share_their_bytes_lie_at_one_place(path, old):
    weight = torch.arange(6.0).view(2, 3)
    save(path, OrderedDict(head=weight, embed=weight, row=weight[1]), old)
    head, embed, row = (next(t for t in header(path).tensors if t.name == n) for n in ("head", "embed", "row"))
    assert (head.start, head.nbytes) == (embed.start, embed.nbytes)
    assert (row.start, row.nbytes) == (head.start + 12, 12)


@both
def test_empty_tensors_and_scalars_have_places_too(path, old):
    save(path, {"none": torch.empty(0, 3), "one": torch.tensor(7.0), "two": torch.tensor(True)}, old)
    assert {n: (d, s) for n, (d, s, _) in contents(path).items()} == {
        "none": ("F32", (0, 3)), "one": ("F32", ()), "two": ("BOOL", ())
    }  # fmt: skip
    assert contents(path) == as_loaded(loads(path))


def test_a_file_without_checksums_is_read(path):
    torch.serialization.set_crc32_options(False)
    try:
        save(path, {"w": torch.arange(4.0)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert contents(path) == as_loaded({"w": torch.arange(4.0)})


def test_a_file_as_torch_1_wrote_it_is_read(path):
    """Without a byte order, in a folder called otherwise, its storages in another order than its tensors."""
    data = forged({"w": Tensor(2, (2,), key="94371840"), "v": Tensor(3, (3,), key="7", storage=torch.HalfStorage)})
    write_zip(path, data, {"data/7": b"abcdef", "data/94371840": b"12345678"})
    assert contents(path) == {"v": ("F16", (3,), b"abcdef"), "w": ("F32", (2,), b"12345678")}
    assert contents(path) == as_loaded(loads(path))


def test_views_of_storages_as_torch_0_wrote_them_are_read(path):
    """A legacy pickle may name a storage as a part of another."""
    whole = {"storage": torch.ByteStorage, "key": "5", "numel": 6}
    tensors = {
        "part": Tensor(shape=(2,), view=("view", 3, 2), **whole), "all": Tensor(shape=(6,), **whole)
    }  # fmt: skip
    write_legacy(path, forged(tensors, legacy=True), {"5": (6, b"abcdef")})
    assert contents(path) == {"all": ("U8", (6,), b"abcdef"), "part": ("U8", (2,), b"de")}
    assert contents(path) == as_loaded(loads(path))


def test_a_storage_of_the_old_format_is_neither_read_nor_held_in_memory(path, monkeypatch):
    """It is a hole of 3 GiB in the file, which torch takes a gigabyte at a time."""
    numel = 3 * 2**30
    data = forged({"w": Tensor(numel, (numel,), key="1", storage=torch.ByteStorage)}, legacy=True)
    write_legacy(path, data, {"1": (numel, b"")})
    start = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate(start + numel)
    read = []
    real = os.pread
    monkeypatch.setattr(legacy.os, "pread", lambda fd, n, at: read.append(n) or real(fd, n, at))
    (found,) = header(path).tensors
    assert (found.start, found.nbytes) == (start, numel)
    assert max(read) <= legacy.READ_BELOW
    assert sum(read) < 20 * legacy.READ_BELOW


# --- what is in a state dict ------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module"])
def test_a_state_dict_inside_a_training_checkpoint_is_taken(path, key, old):
    save(path, {"epoch": 3, key: {"w": torch.ones(2)}, "optimizer": {"state": {0: torch.ones(2)}}, "args": [1]}, old)
    found = header(path)
    assert [t.name for t in found.tensors] == ["w"]
    assert found.notes == (
        f"its weights are those under `{key}`", f"left out beside `{key}`: `epoch`, `optimizer`, `args`"
    )  # fmt: skip


def test_a_wrapping_without_anything_beside_it_is_told_in_one_note(path):
    assert header(save(path, {"model": {"w": torch.ones(2)}})).notes == ("its weights are those under `model`",)


@both
def test_numbers_and_texts_among_the_tensors_are_left_out_with_a_note(path, old):
    save(path, {"w": torch.ones(2), "step": 7, "lr": 0.5, "name": "x", "none": None, "flag": True}, old)
    assert [t.name for t in header(path).tensors] == ["w"]
    assert header(path).notes == ("left out, being no tensors: `step`, `lr`, `name`, `none`, `flag`",)


@both
@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([torch.ones(1)], "it has list for its contents"),
        (torch.ones(1), "it has Tensor for its contents"),
        (
            {"state_dict": {"w": torch.ones(1)}, "model": {"w": torch.ones(1)}},
            "several state dicts: `state_dict`, `mod",
        ),
        ({"ema": {"w": torch.ones(1)}}, "it holds no tensors, but `ema`"),
        ({"w": torch.ones(1), "inner": {"v": torch.ones(1)}}, "it holds a dict called `inner`, which is no tensor"),
        ({"w": torch.ones(1), "list": [torch.ones(1)]}, "it holds a list called `list`, which is no tensor"),
        ({"w": torch.ones(1), 5: torch.ones(1)}, "no text: `5`"),
        ({"model": {"w": torch.ones(1), 5: torch.ones(1)}}, "a name in `model` that is no text: `5`"),
        ({"": torch.ones(1)}, "a tensor named ``"),
        ({"a\nb": torch.ones(1)}, r"a tensor named `a\nb`"),
        ({"\ud800": torch.ones(1)}, r"a tensor named `\ud800`"),
        ({"w": torch.ones(1, dtype=torch.complex64)}, "gives `w` the dtype `torch.complex64`, which is not known"),
        ({"w": torch.ones(2, dtype=torch.complex64).conj()}, "holds `w` as a conjugated or negated view"),
        ({"w": torch.ones(2, dtype=torch.complex64).conj().imag}, "holds `w` as a conjugated or negated view"),
        ({"w": torch.eye(2).to_sparse()}, "holds `w` as a sparse tensor"),
        ({"w": torch.empty(2, device="meta")}, "is"),
    ],
)
def test_what_is_no_state_dict_of_plain_tensors_is_refused_by_name(path, value, told, old):
    text = refusal(save(path, value, old))
    assert "`the/file.bin` is not a file of weights to rely on" in text
    assert told in text


@both
def test_quantised_tensors_are_refused(path, old):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)
    assert "quantised" in (text := refusal(save(path, {"w": value}, old))) or "no plain one" in text


def test_an_empty_state_dict_has_no_tensors(path):
    assert header(save(path, {})).tensors == ()


# --- what is not run --------------------------------------------------------------------------------------------------


def test_the_gadgets_of_these_tests_do_run_where_pickles_are_believed(tmp_path):
    for name, data in gadgets(tmp_path / "marker").items():
        pickle.loads(data)
        assert (tmp_path / "marker").exists(), name
        (tmp_path / "marker").unlink()


GADGETS = sorted(gadgets("marker"))


@pytest.mark.parametrize("name", GADGETS)
@pytest.mark.parametrize("where", ["zip", "legacy", "magic", "version", "machine", "keys"])
def test_a_hostile_pickle_is_refused_and_nothing_of_it_runs(path, tmp_path, name, where):
    marker = tmp_path / "marker"
    data = gadgets(marker)[name]
    if where == "zip":
        write_zip(path, data, {})
    elif where == "legacy":
        write_legacy(path, data, {})
    else:
        part = ["magic", "version", "machine", "keys"].index(where)
        write_legacy(path, forged({"w": Tensor(1, (1,))}, legacy=True), {"0": (1, b"1234")}, {part: data})
    refusal(path)
    assert not marker.exists()


def test_a_hostile_pickle_inside_a_state_dict_is_refused_and_named(path, tmp_path):
    value = {"w": torch.ones(2), "x": Call(os.system, f"touch {tmp_path / 'marker'}")}
    for old in (False, True):
        assert refusal(save(path, value, old)) == (
            "error: `the/file.bin` holds more than weights\n"
            "   |  its pickle asks for `posix.system`\n"
            "   |  only tensors in plain containers are loaded, so that no file can run code\n\n"
            "hint: get these weights as safetensors, or let who trusts the file save its state dict alone"
        )
    assert not (tmp_path / "marker").exists()


@both
def test_pickled_modules_and_arrays_are_refused_with_what_they_ask_for(path, old):
    assert "asks for `torch.nn.modules.linear.Linear`" in refusal(save(path, torch.nn.Linear(1, 1), old))
    assert "asks for `numpy." in refusal(save(path, {"w": torch.ones(2).numpy()}, old))


def test_a_torch_that_is_too_old_is_not_used(path, monkeypatch):
    save(path, {"w": torch.ones(1)})
    monkeypatch.setattr(torch, "__version__", "2.10.1+cu128")
    text = refusal(path)
    assert "error: files of torch.save need torch 2.11 or later" in text
    assert "torch 2.10.1+cu128 is installed" in text
    monkeypatch.setattr(torch, "__version__", "2.11.0a0+git1")
    header(path)
    monkeypatch.setattr(torch, "__version__", "unknown")
    refusal(path)


# --- what is not believed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "data", "told"),
    [
        (Tensor(4, (4,)), b"1234" * 3, "needs 16 bytes for the storage of `w`, and has 12"),
        (Tensor(4, (4,)), b"1234" * 5, "needs 16 bytes for the storage of `w`, and has 20"),
        (Tensor(2**40, (2**40,)), b"1234", "and has 4"),
        (Tensor(4, (2,), offset=3), b"1234" * 4, "needs 20 bytes for the storage of `w`, and has 16"),
        (Tensor(4, (3, 3), strides=(1, 1)), b"1234" * 4, "needs 20 bytes for the storage of `w`, and has 16"),
        (Tensor(4, (2,), strides=(4,)), b"1234" * 4, "needs 20 bytes for the storage of `w`, and has 16"),
        (Tensor(4, (2**61, 2**61), strides=(0, 0)), b"1234" * 4, "is"),
        (Tensor(4, (2**40, 2**40), strides=(0, 0)), b"1234" * 4, "is"),
        (Tensor(4, (4,), key="1"), b"1234" * 4, "is not understood by torch"),
        (Tensor(4, (2,), offset=-1), b"1234" * 4, "is"),
    ],
)
def test_a_pickle_that_lies_about_its_storages_is_refused(path, tensor, data, told):
    assert told in refusal(write_zip(path, forged({"w": tensor}), {"data/0": data}))


@pytest.mark.parametrize(
    ("tensor", "storage", "told"),
    [
        (Tensor(4, (4,)), (3, b"1234" * 3), "is not understood by torch"),
        (Tensor(4, (4,)), (4, b"1234" * 3), "it is cut short"),
        (Tensor(4, (4,)), (4, b"1234" * 5), "it has 4 bytes behind its storages"),
        (Tensor(4, (2,), offset=3), (4, b"1234" * 4), "is"),
        (Tensor(2**50, (1,)), (2**50, b"1234" * 4), "is"),
        (Tensor(4, (2,), key="1"), (4, b"1234" * 4), "is not understood by torch"),
        (Tensor(4, (6,), view=("v", 0, 6)), (4, b"1234" * 4), "is"),
    ],
)
def test_an_older_pickle_that_lies_about_its_storages_is_refused(path, tensor, storage, told):
    assert told in refusal(write_legacy(path, forged({"w": tensor}, legacy=True), {"0": storage}))


@both
def test_tensors_that_the_pickle_makes_of_nothing_are_refused(path, old):
    """`torch.Tensor(3)` is a call that a pickle may ask for, and has no bytes in the file."""
    value = pickle.dumps({"w": Call(torch.FloatTensor, 3)}, protocol=2)
    write_legacy(path, value, {}) if old else write_zip(path, value, {})
    assert "not stored in it" in refusal(path)


@pytest.mark.parametrize("order", [b"big", b"", b"little\n", b"x" * 30])
def test_another_byte_order_is_refused(path, order):
    write_zip(path, forged({"w": Tensor(1, (1,))}), {"data/0": b"1234"}, byteorder=order)
    assert "byte order" in refusal(path)


@pytest.mark.parametrize("name", ["data.pkl", "data/0", "byteorder"])
def test_compressed_members_are_refused(path, name):
    data = forged({"w": Tensor(2**20, (2**20,))})
    write_zip(path, data, {"data/0": bytes(2**22)}, compressed=[name])
    assert path.stat().st_size < 2**23
    assert f"`archive/{name}` compressed" in refusal(path)


def test_zip_files_that_are_no_state_dicts_are_refused(path):
    write_zip(path, forged({}), {"constants.pkl": b""})
    assert "it is a TorchScript program" in refusal(path)
    write_zip(path, forged({}), {"../data.pkl": b""})
    assert "not one of torch.save" in refusal(path)
    write_zip(path, b"", {})
    assert "is not understood by torch" in refusal(path)


def test_pickles_are_bounded(path, monkeypatch):
    monkeypatch.setattr(pickles, "PICKLE_LIMIT", 2000)
    long = {f"{n:08}": torch.ones(1) for n in range(200)}
    assert "the limit is 2000" in refusal(save(path, long))
    assert "pickles of more than 2000 bytes" in refusal(save(path, long, legacy=True))


def test_an_endless_name_is_refused(path):
    write_legacy(path, b"\x80\x02c" + b"a" * 10_000 + b"\n.", {})
    assert "endless name" in refusal(path)
    text = b"X" + (2**31 - 1).to_bytes(4, "little")
    write_legacy(path, b"\x80\x02" + text + b"abc", {})
    assert "it is cut short" in refusal(path)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "does not start as torch.save starts a file"),
        (b"hello", "does not start as torch.save starts a file"),
        (b"GGUF\x03\0\0\0", "it is a GGUF file"),
        (b"lmgg0000", "it is a ggml file"),
        (b"\x1f\x8b0000", "it is a compressed file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "`git lfs pull` fetches it"),
        (bytes(257) + b"ustar\x0000" + bytes(300), "it is a tar file of torch 0.1"),
        (b"PK\x03\x04" + bytes(100), "it is cut short"),
        (pickle.dumps(7, protocol=2), "Invalid magic number"),
        (pickle.dumps({"w": 1}, protocol=4), "is not understood by torch"),
        (pickle.dumps(LEGACY_MAGIC, protocol=2) + pickle.dumps(7, protocol=2), "Invalid protocol version"),
    ],
)
def test_files_of_other_formats_are_refused_with_what_they_are(path, data, told):
    path.write_bytes(data)
    assert told in refusal(path)


# --- damage -----------------------------------------------------------------------------------------------------------

SAVED = {"w": torch.arange(6.0).view(2, 3), "t": torch.arange(6.0).view(2, 3).t(), "h": torch.ones(3).half()}


@both
def test_every_cut_of_a_file_is_refused(path, old):
    data = save(path, SAVED, old).read_bytes()
    for length in range(0, len(data), 1 if old else 7):
        path.write_bytes(data[:length])
        refusal(path)


def test_a_flipped_bit_in_a_pickle_is_found_by_its_checksum(path):
    data = bytearray(save(path, SAVED).read_bytes())
    middle = data.index(b"_rebuild_tensor_v2")
    data[middle] ^= 1
    path.write_bytes(data)
    assert "it is damaged: `file/data.pkl` does not have its checksum" in refusal(path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The bytes of the same tensors in both formats."""
    folder = tmp_path_factory.mktemp("saved")
    return {old: save(folder / "file.bin", SAVED, old).read_bytes() for old in (False, True)}


@given(FORMATS, st.integers(0), st.binary(min_size=1, max_size=6))
@settings(max_examples=300, deadline=None)
def test_whatever_is_written_over_a_file_it_is_refused_or_has_its_tensors_inside_it(
    tmp_path_factory, saved, old, position, other
):
    data = bytearray(saved[old])
    position %= len(data)
    data[position : position + len(other)] = other
    path = tmp_path_factory.mktemp("f") / "file.bin"
    path.write_bytes(data)
    try:
        found = header(path)
    except BuildFailed:
        return
    for t in found.tensors:
        span = t.nbytes
        if t.strides is not None:
            size = t.nbytes // max(torch.Size(t.shape).numel(), 1)
            span = size * (1 + sum((n - 1) * stride for n, stride in zip(t.shape, t.strides, strict=True)))
        assert t.start >= 0
        assert t.start + span <= len(data)


@given(FORMATS, st.binary(max_size=60))
@settings(deadline=None)
def test_any_pickle_is_refused_or_has_no_tensors(tmp_path_factory, old, data):
    path = tmp_path_factory.mktemp("f") / "file.bin"
    write_legacy(path, data, {}) if old else write_zip(path, data, {})
    with contextlib.suppress(BuildFailed):
        assert header(path).tensors == ()

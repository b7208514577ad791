"""Headers by range request: how much is asked for, what is believed, and a large model planned from kilobytes."""

import json
import resource
import threading

import pytest
from hubserver import Sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelbuild.errors import BuildFailed, SourceNotFound, VerificationFailed
from modelbuild.sources.content import SourceFile, Stamp
from modelbuild.sources.fence import fence
from modelbuild.sources.hub import headers, requests
from modelbuild.sources.hub.fetch import distant
from modelbuild.sources.hub.files import Hub, HubFile, Snapshot, listing, open_hub
from modelbuild.sources.hub.headers import look_ahead
from modelbuild.sources.hub.names import HubName, is_safe
from modelbuild.sources.memory import Memory
from modelbuild.sources.safetensors import read_header


def weights(count, name="layers.{}.mlp.up_proj.weight", columns=4096):
    """The start of a file of `count` matrices, and its whole size."""
    header, end = {}, 0
    for n in range(count):
        size = 2 * columns * columns
        header[name.format(n)] = {"dtype": "BF16", "shape": [columns, columns], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    return Sparse(len(text).to_bytes(8, "little") + text, 8 + len(text) + end)


@pytest.fixture
def door(tmp_path, hub):
    """The Hub as a source sees it."""
    (tmp_path / "home").mkdir()
    return open_hub(fence(tmp_path / "home"), Memory(tmp_path / "home/cache"))


def on_hub(hub, door, data, path="model.safetensors"):
    """A file that was put on the Hub, as a source's file."""
    commit = hub.put("org/m", {path: data})
    entries = requests.list_repository(door, HubName("m", "org/m")).files
    assert entries[path].at.commit == commit
    return distant(door, entries[path])


def asked(hub):
    return [answer.range for answer in hub.answers if "/_storage/" in answer.path]


# --- how much is asked for --------------------------------------------------------------------------------------------


def test_a_header_is_one_request_where_the_index_tells_how_long_it_is(hub, door):
    data = weights(300)
    file = on_hub(hub, door, data)
    index = {f"layers.{n}.mlp.up_proj.weight": "model.safetensors" for n in range(300)}
    (header,) = look_ahead([file], index)
    assert len(header.tensors) == 300
    assert len(asked(hub)) == 1
    assert len(data.start) <= hub.sent("/_storage/") < 1.6 * len(data.start)


def test_a_header_that_is_longer_than_the_first_request_takes_a_second_one(hub, door):
    data = weights(3000)
    file = on_hub(hub, door, data)
    (header,) = look_ahead([file], {})
    assert len(header.tensors) == 3000
    assert asked(hub) == [f"bytes=0-{headers.FIRST - 1}", f"bytes={headers.FIRST}-{len(data.start) - 1}"]


def test_a_file_that_is_smaller_than_the_first_request_is_asked_for_no_further_than_its_end(hub, door):
    data = weights(1, columns=8)
    (header,) = look_ahead([on_hub(hub, door, data[0 : data.size])], {})
    assert header.size == data.size
    assert asked(hub) == [f"bytes=0-{data.size - 1}"]


@pytest.mark.parametrize(
    ("names", "least", "most"),
    [
        (None, headers.FIRST, headers.FIRST),
        ([], 4096, 4096),
        (["x" * 100] * 100, 20_000, 25_000),
        (["x"] * 10**5, 2**20, 2**20),
    ],
    ids=["unknown", "none", "some", "many"],
)
def test_the_first_request_is_as_long_as_the_index_lets_expect(names, least, most):
    assert least <= headers._guess(names) <= most


def test_headers_are_remembered_by_digest_for_any_repository(hub, door, tmp_path):
    data = weights(3)
    file = on_hub(hub, door, data)
    (first,) = look_ahead([file], {})
    hub.fresh()
    again = open_hub(fence(tmp_path / "home"), Memory(tmp_path / "home/cache"))
    assert look_ahead([distant(again, file.remote.file)], {}) == [first]
    assert hub.answers == []


def test_headers_of_many_files_are_asked_for_together(hub, door):
    """Each answer waits for all others."""
    together = threading.Barrier(4)

    class Meeting:
        def wait(self):
            together.wait(60)

    files = {f"model-{n}.safetensors": weights(n, columns=256) for n in range(1, 5)}
    hub.put("org/m", files)
    entries = requests.list_repository(door, HubName("m", "org/m")).files
    hub.faults.hold.update(dict.fromkeys(files, Meeting()))
    found = look_ahead([distant(door, entries[path]) for path in files], {})
    assert [len(header.tensors) for header in found] == [1, 2, 3, 4]


# --- a large model ----------------------------------------------------------------------------------------------------

LAYERS = 40
WIDE, INNER, VOCAB = 5120, 13824, 32000
SHAPES = {
    "self_attn.q_proj": (WIDE, WIDE), "self_attn.k_proj": (WIDE, WIDE), "self_attn.v_proj": (WIDE, WIDE),
    "self_attn.o_proj": (WIDE, WIDE), "mlp.gate_proj": (INNER, WIDE), "mlp.up_proj": (INNER, WIDE),
    "mlp.down_proj": (WIDE, INNER), "input_layernorm": (WIDE,), "post_attention_layernorm": (WIDE,),
}  # fmt: skip


def thirteen_billion(salt):
    """The files of a Llama of 13 billion parameters in six shards: real headers, and nothing behind them."""
    tensors = {"model.embed_tokens.weight": (VOCAB, WIDE)}
    for n in range(LAYERS):
        tensors |= {f"model.layers.{n}.{name}.weight": shape for name, shape in SHAPES.items()}
    tensors |= {"model.norm.weight": (WIDE,), "lm_head.weight": (VOCAB, WIDE)}
    files, index = {}, {}
    for part, names in enumerate(list(tensors)[n::6] for n in range(6)):
        path, header, end = f"model-{part + 1:05}-of-00006.safetensors", {"__metadata__": {"salt": salt}}, 0
        for name in names:
            size = 2 * tensors[name][0] * (tensors[name][1] if len(tensors[name]) > 1 else 1)
            header[name] = {"dtype": "F16", "shape": tensors[name], "data_offsets": [end, end + size]}
            index[name], end = path, end + size
        text = json.dumps(header).encode()
        files[path] = Sparse(len(text).to_bytes(8, "little") + text, 8 + len(text) + end)
    files["model.safetensors.index.json"] = json.dumps({"weight_map": index}).encode()
    config = {"model_type": "llama", "num_hidden_layers": LAYERS, "hidden_size": WIDE, "vocab_size": VOCAB}
    return files | {"config.json": json.dumps({**config, "torch_dtype": "float16"}).encode()}


def test_a_merge_of_two_models_of_13_billion_parameters_is_planned_from_kilobytes(world, hub):
    for name in ("one", "two"):
        hub.put(f"org/{name}", thirteen_billion(name))
    world.modelfile("""
        [base.one]
        source = "hf:org/one"
        [base.two]
        source = "hf:org/two"
        [merge.m]
        method = "linear"
        models = [ { model = "one", weight = 1 }, { model = "two", weight = 3 } ]
    """)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    plan = world.plan()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert plan.download == sum(
        len(data) for name in ("one", "two") for path, data in thirteen_billion(name).items() if "-of-" in path
    )
    assert plan.download > 2 * 25 * 10**9
    assert plan["m"].tensors.computed == len(SHAPES) * LAYERS + 3
    assert hub.sent() < 400_000
    assert grown < 200_000, "in units of 1024 bytes"
    assert len(asked(hub)) == 12
    hub.fresh()
    assert world.run("plan", **hub.env).returncode == 0
    assert hub.sent() < 5_000


# --- what is believed -------------------------------------------------------------------------------------------------


def test_a_server_that_ignores_ranges_sends_little_more_than_the_header(hub, door):
    data = weights(40)
    file = on_hub(hub, door, data)
    assert data.size > 10**9
    hub.faults.no_ranges = True
    (header,) = look_ahead([file], {})
    assert len(header.tensors) == 40
    # What the system's buffers take is sent before the server hears that nobody reads any more.
    hub.ended("/_storage/")
    assert 0 < hub.sent("/_storage/") < 50_000_000


def test_a_long_header_of_a_server_that_ignores_ranges_is_read_from_the_start_again(hub, door):
    file = on_hub(hub, door, weights(3000))
    hub.faults.no_ranges = True
    assert len(look_ahead([file], {})[0].tensors) == 3000


def test_a_range_far_into_a_file_of_a_server_that_ignores_ranges_is_refused(hub, door):
    file = on_hub(hub, door, weights(40))
    hub.faults.no_ranges = True
    with pytest.raises(SourceNotFound, match="does not give parts of files"):
        file.remote.read(requests.IGNORED_LIMIT, 10)


@pytest.mark.parametrize("told", ["", "bytes */100", "bytes 5-100/1000", "0-32767/1", "bytes a-b/c"])
def test_a_part_that_does_not_say_where_it_lies_is_refused(hub, door, told):
    file = on_hub(hub, door, weights(3))
    hub.faults.range_header = told
    with pytest.raises(SourceNotFound, match="does not give parts of files"):
        look_ahead([file], {})


def test_a_part_of_a_file_of_another_size_is_refused(hub, door):
    file = on_hub(hub, door, weights(3))
    hub.faults.range_header = "bytes 0-32767/99"
    with pytest.raises(VerificationFailed) as error:
        look_ahead([file], {})
    assert "it has   99" in error.value.render()


def test_a_part_that_ends_early_is_asked_for_again(hub, door, monkeypatch):
    monkeypatch.setattr(requests.time, "sleep", lambda seconds: None)
    file = on_hub(hub, door, weights(30))
    hub.faults.drop_after["model.safetensors"] = [10, 0]
    assert len(look_ahead([file], {})[0].tensors) == 30


BAD = {
    "a header longer than the file": (10**6).to_bytes(8, "little") + b"{}",
    "a header longer than any": (2**40).to_bytes(8, "little") + b"{}",
    "no JSON": (2).to_bytes(8, "little") + b"[]",
    "empty": b"",
    "short": b"\1\0\0",
}


@pytest.mark.parametrize("start", BAD)
def test_a_header_that_is_none_is_refused(hub, door, start):
    file = on_hub(hub, door, BAD[start])
    with pytest.raises(BuildFailed, match="is not a safetensors file to rely on"):
        look_ahead([file], {})


def test_an_index_that_does_not_agree_with_the_headers_is_refused_by_the_plan(world, hub):
    files = thirteen_billion("odd")
    index = json.loads(files["model.safetensors.index.json"])
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00006.safetensors"
    hub.put("org/odd", files | {"model.safetensors.index.json": json.dumps(index).encode()})
    world.modelfile(
        '[base.odd]\nsource = "hf:org/odd"\n[merge.m]\nmethod = "passthrough"\nmodels = [ { model = "odd" } ]\n'
    )
    with pytest.raises(BuildFailed, match="does not agree with its shards"):
        world.plan()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 60), st.integers(1, 40), st.integers(10, 3000))
def test_a_header_by_range_is_the_header_of_the_file(tmp_path_factory, count, columns, guess):
    """Whatever the first request was, and however it cut the header."""
    data = weights(count, columns=columns)
    path = tmp_path_factory.mktemp("range") / "file"
    path.write_bytes(data[0 : data.size])
    home = path.parent
    at = Snapshot(HubName("m", "org/m"), "0" * 40)
    door = Hub(str(home / "hub"), fence(home), Memory(home))
    file = distant(door, HubFile(at, "model.safetensors", data.size, "0" * 64))
    parts = []

    def read(told, start, stop):
        parts.append((start, stop))
        return data[start:stop]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(headers, "read_range", read)
        assert headers._asked(file.remote, guess) == read_header(str(path), data.size)
    assert sum(stop - start for start, stop in parts) <= max(guess, len(data.start)) <= data.size or guess > data.size


# --- listings and names -----------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
SIBLINGS = st.lists(
    st.fixed_dictionaries(
        {"rfilename": st.text(max_size=30) | st.sampled_from(["a", "a/b", "../a"]), "size": st.integers(-1, 2**60)},
        optional={"lfs": JSON | st.fixed_dictionaries({"sha256": st.just("0" * 64) | JSON}), "blobId": JSON},
    )
    | JSON,
    max_size=6,
)


@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({"sha": st.just("0" * 40) | JSON, "siblings": SIBLINGS | JSON}) | JSON)
def test_a_listing_gives_safe_names_and_sound_sizes_or_is_refused(told):
    name = HubName("m", "org/m")
    try:
        commit, entries = requests._checked(json.dumps(told).encode(), name)
    except BuildFailed as error:
        refused = error.faults[0]
    else:
        refused = None
    if refused is not None:
        assert refused.message == "the Hub's listing of `hf:org/m` is not to be relied on"
        assert all(fact.isprintable() for fact in refused.facts)
        return
    assert commit == "0" * 40
    for path, entry in listing(Snapshot(name, commit), entries).files.items():
        assert is_safe(path)
        assert 0 <= entry.size <= requests.SIZE_LIMIT
        assert entry.sha256 is None or len(entry.sha256) == 64


@settings(max_examples=300)
@given(st.text(alphabet="ab./\\~ \n\u202e:", max_size=20))
def test_a_safe_name_stays_below_its_folder_and_on_its_line(path):
    import os.path

    if is_safe(path):
        assert not os.path.isabs(path)
        assert os.path.normpath(f"/root/{path}") == f"/root/{path}"
        assert path.isprintable()


def test_usual_names_are_safe():
    for path in (
        "config.json",
        "1_Pooling/config.json",
        "model-00001-of-00002.safetensors",
        "a b.txt",
        ".gitattributes",
    ):
        assert is_safe(path)


def test_a_distant_file_is_no_other_than_its_copy():
    """Where a file lies is no part of what it is."""
    one = SourceFile("a", "/x", 1, "0" * 64, Stamp(0, 0, 1, 0, 0))
    assert one == SourceFile("a", "/x", 1, "0" * 64, Stamp(0, 0, 1, 0, 0), remote=object())

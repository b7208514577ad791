"""Fixtures that any test may ask for."""

import os

import hubserver
import pytest
from world import World


@pytest.fixture
def world(tmp_path):
    """An empty folder to put sources and a Modelfile in, and to build in; see world.py."""
    root = tmp_path / "world"
    root.mkdir()
    return World(root)


VIOLET = """
    [base.red]
    source = "red"

    [base.blue]
    source = "blue"

    [adapter.style]
    source = "style"

    [merge.styled]
    method = "lora"
    base = "red"
    adapters = [ { adapter = "style", weight = 0.5 } ]

    [merge.violet]
    method = "lerp"
    base = "styled"
    models = [ { model = "blue", t = 0.25 } ]
"""


@pytest.fixture
def violet(world):
    """Two models, an adapter, and what is made of them; not built yet."""
    world.model("red", seed=1).model("blue", seed=2, shards=2).lora("style", "red", seed=3)
    return world.modelfile(VIOLET)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on this machine, which this process and, with `hub.env`, others talk to; see hubserver.py."""
    from huggingface_hub import constants, utils

    server = hubserver.serve(tmp_path / "hf")
    for name in [name for name in os.environ if name.startswith("HF_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(server.home))
    # The client read its variables when it was imported.
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(server.home / "token"))
    for flag in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setattr(constants, flag, True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield server
    utils.close_session()
    server.shutdown()
    server.server_close()


@pytest.fixture
def far(violet, hub):
    """Violet with its sources on the Hub, as `org/red`, `org/blue` and `org/style`, and none of them here."""
    for name in ("red", "blue", "style"):
        hub.put(f"org/{name}", violet.root / name)
        violet.edit(f'source = "{name}"', f'source = "hf:org/{name}"')
        (violet.root / name).rename(violet.root.parent / name)
    return violet

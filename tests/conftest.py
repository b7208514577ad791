"""Fixtures that any test may ask for."""

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

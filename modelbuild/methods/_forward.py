"""A forward pass through a model's decoder layers, one layer at a time, by transformers' own modules.

The model is built without memory for its weights. A first pass through layers that only take notes tells what each is
called with, positions and masks: that depends on a prompt's length alone. Then every layer gets its weights, all
prompts pass through it, and the weights go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from modelbuild.errors import BuildFailed

if TYPE_CHECKING:
    from numpy.typing import NDArray


def run_layers(
    config: Mapping[str, Any],
    embedded: NDArray[Any],
    lengths: Sequence[int],
    average: bool,
    layer: Callable[[int], Mapping[str, NDArray[Any]]],
) -> NDArray[Any]:
    """What each layer is given for each prompt, [layers · prompts, hidden], float32: at the last token, or on average.

    `embedded` are the embeddings of all tokens, float32, `layer` gives the weights of one by their names in it. Raises
    BuildFailed where the weights are not those of a layer of such a model.
    """
    import numpy as np
    import torch

    with _one_thread(), torch.no_grad():
        model, layers = _skeleton(config)
        every: Any = torch.from_numpy(np.ascontiguousarray(embedded))
        states = [part.unsqueeze(0) for part in every.split(list(lengths))]
        notes = [_notes(model, layers, state) for state in states]
        found = []
        for number, module in enumerate(layers):
            found += [(state.mean(dim=1) if average else state[:, -1]).clone() for state in states]
            if number + 1 == len(layers):
                break
            _fill(module, layer(number), number)
            for index, state in enumerate(states):
                args, kwargs = notes[index][number]
                made = module(state, *args, **kwargs)
                states[index] = made[0] if isinstance(made, tuple) else made
            module.to("meta")
        rows: NDArray[Any] = torch.cat(found).numpy()
        return rows


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread in torch: sums must not depend on how many there are."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _skeleton(config: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """The model without weights, and its layers; what it computes before and after them is left out."""
    import torch
    from transformers import AutoConfig, AutoModel

    settings = {key: value for key, value in config.items() if key != "model_type"}
    described = AutoConfig.for_model(config["model_type"], **settings)
    made: Any = AutoModel
    with torch.device("meta"):
        model = made.from_config(described, attn_implementation="eager", dtype=torch.float32)
    # The turns of positions are made of the config, not stored.
    model.rotary_emb = type(model.rotary_emb)(config=model.config)
    model.norm = torch.nn.Identity()
    return model.eval(), list(model.layers)


def _notes(model: Any, layers: Sequence[Any], state: Any) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What each layer is called with for a prompt, besides the hidden state."""
    import torch

    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    class Note(torch.nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.attention_type = getattr(layer, "attention_type", None)

        def forward(self, hidden: Any, *args: Any, **kwargs: Any) -> Any:
            found.append((args, kwargs))
            return hidden

    model.layers = torch.nn.ModuleList(Note(layer) for layer in layers)
    model(inputs_embeds=state, use_cache=False)
    return found


def _fill(module: Any, weights: Mapping[str, NDArray[Any]], number: int) -> None:
    import torch

    try:
        module.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()}, strict=True, assign=True)
    except RuntimeError as error:
        facts = [line.strip() for line in str(error).splitlines()[1:4]]
        message = f"the weights of layer {number} are not those that transformers expects by the config"
        raise BuildFailed(
            message, facts=facts, hint="routers by `cheap_embed` or `random` need no hidden states"
        ) from None

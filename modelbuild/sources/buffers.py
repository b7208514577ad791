"""Buffers that some checkpoints hold and that loading computes anew: they are no weights.

transformers leaves them out when it loads a checkpoint that has them (its `_keys_to_ignore_on_load_unexpected`, and for
every model `rotary_emb.inv_freq` and `position_ids`), because later versions of the models no longer save them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_BY_NAME = re.compile(r"(?:.*[._])?inv_freq|(?:.*\.)?masked_bias")
_MASK = re.compile(r"(?:.*\.)?(?:attn|attention|crossattention)\.bias")
_POSITIONS = re.compile(r"(?:.*\.)?position_ids")


def is_recomputed(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is such a buffer: rotary frequencies, GPT-2's causal masks (`attn.bias`, square, as opposed to
    the bias of a layer), the value of masked positions, and position numbers."""
    if _BY_NAME.fullmatch(name):
        return True
    if _MASK.fullmatch(name):
        return len(shape) == 4 and tuple(shape[:2]) == (1, 1) and shape[2] == shape[3]
    return _POSITIONS.fullmatch(name) is not None and len(shape) == 2 and shape[0] == 1

"""The Modelfile that `modelbuild init` writes: it builds as soon as its three folders are there."""

from __future__ import annotations

TEMPLATE = """\
# A Modelfile says where models come from and what is made of them.
#   modelbuild plan      what a build would do, and what it would cost
#   modelbuild build     makes the models named in `default`, each in build/NAME/

modelfile = 1                       # version of this format

[settings]
# dtype = "bfloat16"                # of every merge; without it, tensors keep the dtype of the base
# seed = 0                          # the only source of randomness
shard_size = "5GB"                  # largest file of weights
default = ["blend"]                 # what a bare `modelbuild build` makes

# --- what exists already: folders or files beside this Modelfile -----------------------------------------------------

[base.first]                        # full weights, as transformers saves them
source = "models/first"

[base.second]
source = "models/second"

[adapter.style]                     # a PEFT adapter for `first`
source = "models/style"

# --- what is made ----------------------------------------------------------------------------------------------------

[merge.styled]                      # the adapter folded into its base, at half of its strength
method = "lora"
base = "first"
adapters = [ { adapter = "style", weight = 0.5 } ]

[merge.blend]                       # 70 % of `second` at layer 0, falling to none at layer 12
method = "lerp"
base = "styled"
models = [ { model = "second", t = { points = [[0, 0.7], [12, 0.0]] } } ]

# Other ways to write a value such as `t` or `weight`:
#   t = 0.4                                             the same for every tensor
#   t = [0.9, 0.5, 0.0]                                 a gradient over the layers
#   t = [ { match = "self_attn", value = 0.6 },         by a piece of the tensor's name, first match wins;
#         { match = "mlp", value = [0.2, 0.8] },        `*` stands for anything
#         { value = 0.4 } ]
#
# Other methods: `modelbuild methods` lists them, `modelbuild methods NAME` shows what one takes.
"""
"""A commented Modelfile to start from."""

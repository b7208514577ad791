"""transformers and PEFT as oracles: models loaded from folders, adapters made and merged by PEFT itself."""

import warnings

import numpy as np
import torch

DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
CLASSES = {"bert": "AutoModel", "llava": "AutoModelForImageTextToText"}


def raw(tensor):
    """A torch tensor as a raw tensor."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.float32:
        return "F32", tensor.numpy()
    return DTYPES[tensor.dtype], tensor.view(torch.int16).numpy().view(np.uint16)


def load(folder, kind="llama", dtype="auto", whole=True):
    """The model in a folder; every weight of it must be in the files, and every weight of the files in it."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    cls = getattr(transformers, CLASSES.get(kind, "AutoModelForCausalLM"))
    model, info = cls.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    if whole:
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    return model.eval()


def state(model):
    """Every tensor of a model in memory, raw; tied ones under each of their names."""
    return {name: raw(tensor) for name, tensor in model.state_dict().items()}


def adapt(folder, base, kind="llama", *, dtype="auto", seed=0, scale=0.05, prepare=None, **config):
    """Writes an adapter that PEFT makes for the model in `base`, with random trained values, and returns its folder."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load(base, kind, dtype)
        if prepare is not None:
            prepare(model)
        cls = config.pop("cls", peft.LoraConfig)
        adapted = peft.get_peft_model(model, cls(**config))
        torch.manual_seed(seed)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, 0.0, scale)
        adapted.save_pretrained(folder)
    return folder


def adapted(folder, base, kind="llama", *, weight=1.0, dtype="auto", prepare=None):
    """The model in `base` with PEFT's adapter on it, not merged, at a weight."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load(base, kind, dtype)
        if prepare is not None:
            prepare(model)
        model = peft.PeftModel.from_pretrained(model, folder)
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", weight)
    return model.eval()


def logits(model, kind="llama"):
    """What a model says to a few tokens; the last hidden state of a model without a head."""
    tokens = torch.tensor([[1, 8, 9, 20, 33, 7, 2], [4, 60, 11, 30, 31, 2, 3]])
    with torch.no_grad():
        out = model(input_ids=tokens)
    return (out.last_hidden_state if kind == "bert" else out.logits).float().numpy()

"""Shows what a model folder holds: its files, and how many tensors and elements of which dtype.

usage: python show.py FOLDER
"""

import json
import sys
from collections import Counter
from math import prod
from pathlib import Path

from safetensors import safe_open


def main() -> None:
    """Opens every weight file with the safetensors library and prints what is in it."""
    folder = Path(sys.argv[1])
    for path in sorted(folder.iterdir()):
        print(f"  {path.stat().st_size:>12,}  {path.name}")
    tensors = parameters = 0
    dtypes: Counter[str] = Counter()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                tensors, parameters = tensors + 1, parameters + prod(part.get_shape())
                dtypes[part.get_dtype()] += 1
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in sorted(dtypes.items()))
    print(f"  {tensors} tensors ({kinds}), {parameters:,} elements, {config['num_hidden_layers']} layers")


if __name__ == "__main__":
    main()

"""Files of PyTorch as safetensors files; the only place that reads a pickle, and PyTorch is needed here alone."""

from pathlib import Path
from typing import Any

from protojax.weights import WeightsError

_NESTED = ("state_dict", "model", "model_state_dict", "teacher")
"""Where checkpoints keep the weights beside other things."""


def convert(source: Path, target: Path, overwrite: bool = False) -> int:
    """Writes the weights of a PyTorch file, under the names that they have there; returns how many.

    The file is read by `torch.load(weights_only=True)`, which builds tensors and runs no code of the file.

    Args:
      source: a file that `torch.save` wrote: tensors by name, or a dict that holds them as `state_dict` or `model`.
      target: the safetensors file.
      overwrite: replaces one that is there.

    Raises:
      WeightsError: PyTorch is not installed, the file cannot be read so, or holds no tensors by name; or the target is
        there already.
    """
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError:
        raise WeightsError(
            "converting a file of PyTorch needs PyTorch: pip install 'protojax[torch]'; reading what it writes does not"
        ) from None
    if target.suffix != ".safetensors":
        raise WeightsError(f"{target}: the name of a safetensors file ends in .safetensors")
    if target.exists() and not overwrite:
        raise WeightsError(f"{target} exists: choose another name, or replace it with --overwrite")
    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{source}: no such file") from None
    # The unpickler raises whatever the bytes of a foreign file lead it to.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{source}: cannot be read as weights alone: {reason}") from None
    tensors = _tensors(loaded, torch.Tensor)
    if not tensors:
        raise WeightsError(f"{source}: holds no tensors by name, but {type(loaded).__name__}; give a state dict")
    # Tensors that share memory are refused by safetensors; copies share none.
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, target)
    return len(tensors)


def _tensors(loaded: Any, kind: type) -> dict[str, Any]:
    if not isinstance(loaded, dict):
        return {}
    for key in _NESTED:
        if isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    return {name: value for name, value in loaded.items() if isinstance(value, kind)}

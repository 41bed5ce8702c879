"""The paper's residual network layer by layer, each kind timed apart, ours and PyTorch's, times how many there are.

Every convolution counts as one layer with batch normalisation and ReLU after it. In the network the second of a block
is added to the input before the ReLU, and a shortcut has none; the images themselves need no gradient.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, trained
from benchmarks.causes import usage
from benchmarks.measure import OURS
from protojax.config import ResNetSettings
from protojax.networks.convolution import conv_general_dilated
from protojax.networks.layers import BatchNorm, ConvNorm

IMAGES = 128 + 1024
"""The batch and the candidates of a dense step."""

FORWARD, BY_INPUT, BY_WEIGHT = "convolution", "convolution, by its input", "convolution, by its weight"
NORM, WHOLE = "norm and ReLU, with gradients", "whole layer, with gradients"

Runs = dict[str, Callable[[], Any]]


class Layer(NamedTuple):
    """A convolution and what it reads."""

    size: int
    """Height and width of its input."""
    channels: int
    filters: int
    kernel: int
    stride: int
    reads_images: bool

    def __str__(self) -> str:
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return f"{self.size}x{self.size}x{self.channels} to {self.filters}, {self.kernel}x{self.kernel}{stride}"


class Arrays(NamedTuple):
    """What a layer is measured on, channels last."""

    inputs: np.ndarray
    weights: np.ndarray
    cotangent: np.ndarray


def rows(options: Any) -> list[dict[str, Any]]:
    """One row a kind of layer and operation, then one an operation over all layers."""
    settings = trained.tiny() if options.quick else trained.paper(None, "digits", 1)
    images, size, channels = (4, 8, 1) if options.quick else (IMAGES, 28, 1)
    try:
        measure.torch()
        libraries = {OURS: _ours, "PyTorch": _pytorch}
    except measure.Skipped as reason:
        print(f"  skipped: {reason}")
        libraries = {OURS: _ours}
    found = []
    for layer, count in layers(settings.encoder, size, channels).items():
        arrays = _drawn(layer, images)
        times: dict[str, dict[str, float]] = {}
        for library, make in libraries.items():
            for operation, run in make(layer, arrays).items():
                samples = usage.alone(run, 1 if options.quick else 5)
                times.setdefault(operation, {})[library] = usage.row(samples)["ms"]
        found += [_row(str(layer), name, count, taken) for name, taken in times.items()]
    return found + _totals(found, list(libraries))


def layers(encoder: ResNetSettings, size: int, channels: int) -> Counter[Layer]:
    """The convolutions of a network with the plain stem, and how many there are of each."""
    width = encoder.filters[0]
    found = Counter([Layer(size, channels, width, 3, 1, True)])
    for stage, (blocks, filters) in enumerate(zip(encoder.blocks, encoder.filters, strict=True)):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            found[Layer(size, width, filters, 3, stride, False)] += 1
            if stride > 1 or width != filters:
                found[Layer(size, width, filters, 1, stride, False)] += 1
            size, width = -(-size // stride), filters
            found[Layer(size, width, filters, 3, 1, False)] += 1
    return found


def _drawn(layer: Layer, images: int) -> Arrays:
    random = np.random.default_rng(0)
    after = -(-layer.size // layer.stride)
    shapes = (
        (images, layer.size, layer.size, layer.channels),
        (layer.kernel, layer.kernel, layer.channels, layer.filters),
        (images, after, after, layer.filters),
    )
    return Arrays(*(random.normal(size=shape).astype(np.float32) for shape in shapes))


def _ours(layer: Layer, arrays: Arrays) -> Runs:
    x, w, g = map(jnp.asarray, arrays)
    norm, whole = BatchNorm(), ConvNorm(layer.filters, (layer.kernel,) * 2, layer.stride)
    of_norm, of_whole = (_variables(module, a) for module, a in ((norm, g), (whole, x)))
    half = layer.kernel // 2

    def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return conv_general_dilated(x, w, (layer.stride,) * 2, [(half, half)] * 2, dimension_numbers=numbers)

    def activated(module: nn.Module, variables: Any, parameters: Any, x: jax.Array) -> jax.Array:
        y, _ = module.apply({**variables, "params": parameters}, x, True, mutable=["batch_stats"])
        return nn.relu(y)

    def norm_gradients(variables: Any, y: jax.Array, g: jax.Array) -> Any:
        out, pull = jax.vjp(lambda p, y: activated(norm, variables, p, y), variables["params"], y)
        return out, pull(g)

    def gradients(variables: Any, x: jax.Array, g: jax.Array) -> Any:
        out, pull = jax.vjp(lambda p, x: activated(whole, variables, p, x), variables["params"], x)
        by_parameters, by_input = pull(g)
        return out, by_parameters, None if layer.reads_images else by_input

    made = {FORWARD: (convolve, x, w)}
    if not layer.reads_images:
        made[BY_INPUT] = (lambda x, w, g: jax.vjp(lambda x: convolve(x, w), x)[1](g), x, w, g)
    made[BY_WEIGHT] = (lambda x, w, g: jax.vjp(lambda w: convolve(x, w), w)[1](g), x, w, g)
    # Of the shape of what the convolution returns, as its cotangent is.
    made[NORM] = (norm_gradients, of_norm, g + 1, g)
    made[WHOLE] = (gradients, of_whole, x, g)
    return {name: measure.compiled(name, *call).run for name, call in made.items()}


def _variables(module: nn.Module, inputs: jax.Array) -> Any:
    return jax.jit(lambda key: module.init(key, inputs, True))(jax.random.key(0))


def _pytorch(layer: Layer, arrays: Arrays) -> Runs:
    torch = measure.torch()
    x, g = (torch.from_numpy(np.ascontiguousarray(a.transpose(0, 3, 1, 2))) for a in (arrays.inputs, arrays.cotangent))
    w = torch.from_numpy(np.ascontiguousarray(arrays.weights.transpose(3, 2, 0, 1)))
    window = {"stride": layer.stride, "padding": layer.kernel // 2}
    convolution = torch.nn.Conv2d(layer.channels, layer.filters, layer.kernel, bias=False, **window)
    norm = torch.nn.BatchNorm2d(layer.filters)
    read, normalised = x.clone().requires_grad_(not layer.reads_images), (g + 1).requires_grad_()

    def gradients(modules: Any, inputs: Any) -> Any:
        modules.zero_grad(set_to_none=True)
        inputs.grad = None
        modules(inputs).backward(g)

    of_norm = torch.nn.Sequential(norm, torch.nn.ReLU())
    of_whole = torch.nn.Sequential(convolution, norm, torch.nn.ReLU())
    runs = {FORWARD: lambda: torch.nn.functional.conv2d(x, w, **window)}
    if not layer.reads_images:
        runs[BY_INPUT] = lambda: torch.nn.grad.conv2d_input(x.shape, w, g, **window)
    runs[BY_WEIGHT] = lambda: torch.nn.grad.conv2d_weight(x, w.shape, g, **window)
    runs[NORM] = lambda: gradients(of_norm, normalised)
    runs[WHOLE] = lambda: gradients(of_whole, read)
    return runs


def _row(layer: str, operation: str, count: int, times: dict[str, float]) -> dict[str, Any]:
    each = {f"{library} ms": taken for library, taken in times.items()}
    return {"layer": layer, "operation": operation, "layers": count, **each, **_all(times, count)}


def _all(times: dict[str, float], count: int) -> dict[str, float]:
    every = {f"{library} ms, all": count * taken for library, taken in times.items()}
    if len(times) == 1:
        return every
    ours, peer = times.values()
    return {**every, "ours / PyTorch": ours / peer}


def _totals(found: list[dict[str, Any]], libraries: list[str]) -> list[dict[str, Any]]:
    totals = []
    for operation in dict.fromkeys(row["operation"] for row in found):
        own = [row for row in found if row["operation"] == operation]
        times = {library: sum(row[f"{library} ms, all"] for row in own) for library in libraries}
        count = sum(row["layers"] for row in own)
        totals.append({"layer": "all", "operation": operation, "layers": count, **_all(times, 1)})
    return totals

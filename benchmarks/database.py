"""Encoding examples into a candidate database, beside the same network in PyTorch."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, trained
from benchmarks.measure import OURS, Case, Implementation
from benchmarks.peers import resnet
from protojax import database, methods, networks, opened
from protojax.config import AugmentSettings, Settings
from protojax.methods import Method, Variables

CLASSES = 10


class Images:
    """Random images as a source, in memory: what is measured is the encoding, not the decoding of files."""

    def __init__(self, count: int, shape: tuple[int, int, int]):
        self.inputs = np.random.default_rng(0).integers(0, 256, (count, *shape)).astype(np.uint8)
        self.ids = np.arange(count, dtype=np.int32)
        self.labels = self.ids % CLASSES

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"id": self.ids[index], "inputs": self.inputs[index], "label": self.labels[index]}


def cases(options: Any) -> Iterator[Case]:
    """The cases, one after another."""
    settings = trained.tiny() if options.quick else trained.paper(None, "digits", 1)
    shape = (8, 8, 1) if options.quick else (28, 28, 1)
    network = methods.build(settings, CLASSES)
    transform = opened.Preparation("image", AugmentSettings())
    variables = network.init(jax.random.key(0), {"inputs": jnp.zeros((1, *shape))})
    batch_size = 32 if options.quick else settings.evaluate.batch_size
    for size in (64, 128) if options.quick else (1024, 4096):
        source = Images(size, shape)
        run = partial(_build, network, variables, source, transform, batch_size)
        expected = _expected(settings, variables, source, transform)
        check = partial(_close, expected)
        peer = partial(_torch, settings, source, batch_size)
        ours = [Implementation(OURS, run, check=check)]
        yield Case("database", f"encoding, ResNet, D = {size}", size, measure.with_peers(ours, peer))


def _build(method: Method, variables: Variables, source: Images, transform: Any, batch_size: int) -> Any:
    indices = np.arange(len(source), dtype=np.int32)
    return database.build(method, variables, source, indices, transform, batch_size, progress=False)


def _expected(settings: Settings, variables: Variables, source: Images, transform: Any) -> Any:
    """The embeddings of the first examples, computed in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables)
        inputs = transform(jnp.asarray(source.inputs[:4]), None).astype(jnp.float64)
        network = networks.build(settings.encoder, jnp.dtype(jnp.float64), None)
        method = methods.protoattend.build(network, CLASSES, settings.method)
        return jax.tree.map(np.asarray, method.encode(wide, inputs))


def _close(expected: Any, found: Any) -> bool:
    pairs = zip(jax.tree.leaves(expected), jax.tree.leaves(found.embeddings), strict=True)
    return all(bool(np.abs(np.asarray(b)[: len(a)] - a).max() < 1e-3 * max(1.0, np.abs(a).max())) for a, b in pairs)


def _torch(settings: Settings, source: Images, batch_size: int) -> list[Implementation]:
    return [Implementation("PyTorch eager", resnet.encode(settings, CLASSES, source.inputs, batch_size))]

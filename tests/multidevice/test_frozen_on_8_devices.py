"""A backbone over the mesh makes the features of each image that it makes of it on its own."""

from functools import partial

import jax
import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from protojax import config, layouts, naming, weights
from protojax.data import frozen, loading
from protojax.networks import backbones
from protojax.networks.backbones import IMAGENET, Backbone
from protojax.networks.resnet50 import BottleneckResNet


def test_the_batch_is_split_over_the_devices(tmp_path, monkeypatch):
    assert jax.device_count() == 8
    module = partial(BottleneckResNet, depths=(1,), filters=4)
    monkeypatch.setitem(backbones.BACKBONES, "resnet50", Backbone(module, IMAGENET))
    variables = jax.eval_shape(module().init, jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))
    flat, rng = traverse_util.flatten_dict(variables), np.random.default_rng(0)
    tensors = {}
    for row in naming.wanted(module(), layouts.RESNET, 0):
        shape = flat[row.path].shape
        # Kernels that keep the size of what they read; scales, shifts, means and variances.
        spread = np.prod(shape[:-1]) ** -0.5
        drawn = spread * rng.normal(size=shape) if len(shape) > 1 else rng.uniform(0.5, 1.5, shape)
        array = drawn.astype(np.float32)
        tensors[row.names[0]] = np.ascontiguousarray(array.transpose(np.argsort(row.axes)) if row.axes else array)
    save_file(tensors, tmp_path / "small.safetensors")
    settings = config.FrozenSettings(
        network="resnet50", weights=str(tmp_path / "small.safetensors"), image_size=(16, 16), batch_size=12
    )
    dataset = loading.load(config.DataSettings())
    source = frozen.behind(dataset, settings).test
    # 12 images a batch become 16, two a device; the last of these three batches is filled up.
    got = np.stack([example["inputs"] for example in source.many(range(35))])
    images = np.stack([dataset.test[i]["inputs"] for i in range(35)])
    nothing = np.zeros(35, np.int32)
    found = weights.load(settings.weights, "resnet50")
    wanted = jax.jit(partial(frozen.features, found.module, settings))(found.variables, images, nothing, nothing)
    np.testing.assert_allclose(got, wanted, atol=1e-5)

"""The paper's residual network with ProtoAttend in PyTorch, eager, as a user of PyTorch would write it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import measure
from protojax.config import Settings


def network(settings: Settings, classes: int, channels: int) -> Any:
    """The encoder with query, key, value and decision layers of `protojax.methods.protoattend`.

    Raises:
      Skipped: PyTorch is not installed, or the encoder is another one.
    """
    torch = measure.torch()
    nn = torch.nn
    encoder, method = settings.encoder, settings.method
    if encoder.kind != "resnet" or encoder.stem != "plain" or encoder.norm != "batch":
        raise measure.Skipped("PyTorch: its network here is the residual one with batch norm, the run has another")

    class Block(nn.Module):
        def __init__(self, before: int, filters: int, stride: int):
            super().__init__()
            self.first = nn.Conv2d(before, filters, 3, stride, 1, bias=False)
            self.first_norm = nn.BatchNorm2d(filters)
            self.second = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
            self.second_norm = nn.BatchNorm2d(filters)
            self.shortcut = nn.Identity()
            if stride != 1 or before != filters:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(before, filters, 1, stride, bias=False), nn.BatchNorm2d(filters)
                )

        def forward(self, x: Any) -> Any:
            y = self.first_norm(self.first(x)).relu()
            return (self.second_norm(self.second(y)) + self.shortcut(x)).relu()

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width = encoder.filters[0]
            blocks: list[Any] = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            for stage, (count, filters) in enumerate(zip(encoder.blocks, encoder.filters, strict=True)):
                for place in range(count):
                    blocks.append(Block(width, filters, 2 if stage and not place else 1))
                    width = filters
            blocks += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            for size in encoder.dense:
                blocks += [nn.Linear(width, size), nn.ReLU(), nn.LayerNorm(size)]
                width = size
            self.features = nn.Sequential(*blocks)
            self.value = nn.Sequential(nn.Linear(width, method.value_size), nn.ReLU(), nn.LayerNorm(method.value_size))
            self.query = nn.Sequential(nn.Linear(width, method.key_size), nn.ReLU())
            self.key = nn.Sequential(nn.Linear(width, method.key_size), nn.ReLU())
            self.decide = nn.Linear(method.value_size, classes, bias=False)

        def forward(self, x: Any) -> tuple[Any, Any, Any]:
            features = self.features(x)
            return self.query(features), self.key(features), self.value(features)

    return Network()


def step(settings: Settings, classes: int, shape: tuple[int, int, int], candidates: int) -> Callable[[], float]:
    """One dense training step on random images: batch and candidates encoded, three losses, Adam.

    Args:
      settings: the experiment.
      classes: number of classes.
      shape: of an image, `[height, width, channels]`.
      candidates: D.

    Raises:
      Skipped: PyTorch or entmax is not installed.
    """
    torch, entmax = measure.torch(), measure.peer("entmax")
    functional = torch.nn.functional
    torch.manual_seed(0)
    model = network(settings, classes, shape[2])
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.optimizer.learning_rate)
    images = torch.randn(settings.train.batch_size + candidates, shape[2], *shape[:2])
    batch, others = images[: settings.train.batch_size], images[settings.train.batch_size :]
    labels = torch.randint(classes, (settings.train.batch_size,))

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        query, _, own = model(batch)
        _, keys, values = model(others)
        mixture = entmax.sparsemax(query @ keys.T / keys.shape[1] ** 0.5, dim=-1, k=64) @ values
        alpha = float(np.mean(settings.method.alpha))
        loss = sum(
            functional.cross_entropy(model.decide(x), labels)
            for x in (own, mixture, (1 - alpha) * own + alpha * mixture)
        )
        loss.backward()
        if settings.optimizer.clip == "value":
            torch.nn.utils.clip_grad_value_(model.parameters(), settings.optimizer.clip_at)
        optimizer.step()
        return loss.item()

    return run


def encode(settings: Settings, classes: int, images: np.ndarray, batch_size: int) -> Callable[[], Any]:
    """Keys and values of images `[n, height, width, channels]`, without gradient.

    Raises:
      Skipped: PyTorch is not installed.
    """
    torch = measure.torch()
    model = network(settings, classes, images.shape[3]).eval()
    raw = torch.from_numpy(images).permute(0, 3, 1, 2)

    def run() -> Any:
        with torch.no_grad():
            parts = []
            for batch in raw.split(batch_size):
                x = batch.float()
                mean, spread = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True)
                parts.append(model((x - mean) / spread.clamp_min(1e-6))[1:])
            return [torch.cat(part) for part in zip(*parts, strict=True)]

    return run

"""The nearest of many codes for the vectors of feature maps, by cosine, beside FAISS and vector-quantize-pytorch."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.measure import OURS, Case, Implementation
from protojax import ops

SIZES = ((12544, 384, 2000), (12544, 768, 2000), (4096, 768, 16000), (1024, 768, 128000))
"""Vectors (256 images of 7x7), features, codes: the paper's networks, and its smallest and largest codebooks."""

RANDOM = (12544, 768, 2000)
"""Where no code is near, as before training."""

QUICK = ((196, 16, 50), (98, 16, 5000))

CHECKED = 32
"""Vectors that are compared with the float64 reference, which are enough to tell a wrong algorithm."""

FAISS_GOAL, TORCH_GOAL = 1 / 1.15, 2.0


class Problem(NamedTuple):
    """What is assigned to what."""

    vectors: np.ndarray
    """float32 `[vectors, features]`."""
    codes: np.ndarray
    """float32 `[codes, features]`, of length 1."""


def cases(options: Any) -> Iterator[Case]:
    """The cases, one after another."""
    sizes, hard = (QUICK, QUICK[0]) if options.quick else (SIZES, RANDOM)
    problems = [(size, drawn, "") for size in sizes] + [(hard, random, ", no code near")]
    for (vectors, features, codes), draw, how in problems:
        problem = draw(vectors, features, codes)
        check = partial(_near, _scores(problem))
        floor = options.peaks.seconds(2.0 * vectors * features * codes, problem.codes.nbytes)
        name = f"{vectors} vectors of {features}, K = {codes}{how}"
        given = jnp.asarray(problem.vectors), jnp.asarray(problem.codes)

        ours = [measure.compiled(OURS, places, *given, check=check)]
        yield Case(
            "quantize", f"places, {name}", codes, measure.with_peers(ours, partial(_faiss, problem, check)), floor
        )

        both = [measure.compiled(OURS, with_codes, *given, check=lambda found, check=check: check(found[0]))]
        peers = measure.with_peers(both, partial(_pytorch, problem, check))
        yield Case("quantize", f"places and codes, {name}", codes, peers, floor)


def places(vectors: Any, codes: Any) -> Any:
    """Where the nearest codes are."""
    return ops.nearest(vectors, codes).index


def with_codes(vectors: Any, codes: Any) -> tuple[Any, Any]:
    """The nearest codes themselves, too."""
    index = places(vectors, codes)
    return index, codes[index]


def drawn(vectors: int, features: int, codes: int) -> Problem:
    """Vectors around codes, of which one is clearly the nearest."""
    random = np.random.default_rng(codes)
    directions = random.normal(size=(codes, features)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    own = directions[random.integers(0, codes, vectors)]
    noise = random.normal(size=(vectors, features)).astype(np.float32) * np.float32(2 / features**0.5)
    return Problem(3 * (own + noise), directions)


def random(vectors: int, features: int, codes: int) -> Problem:
    """Vectors that have nothing to do with the codes, as before training."""
    others = np.random.default_rng((codes, vectors)).normal(size=(vectors, features))
    return drawn(vectors, features, codes)._replace(vectors=others.astype(np.float32))


def _scores(problem: Problem) -> np.ndarray:
    """Cosines `[CHECKED, codes]` in float64."""
    some = problem.vectors[:CHECKED].astype(np.float64)
    some /= np.linalg.norm(some, axis=1, keepdims=True)
    return some @ problem.codes.T.astype(np.float64)


def _near(scores: np.ndarray, found: Any) -> bool:
    """Whether the codes found are the nearest, up to what float32 tells apart."""
    chosen = np.take_along_axis(scores, np.asarray(found).reshape(-1)[: len(scores), None], axis=1)[:, 0]
    return bool((chosen >= scores.max(axis=1) - 1e-6).all())


def _faiss(problem: Problem, check: Any) -> list[Implementation]:
    faiss = measure.peer("faiss")
    faiss.omp_set_num_threads(measure.threads())
    index = faiss.IndexFlatIP(problem.codes.shape[1])
    index.add(problem.codes)
    return [
        Implementation("faiss FlatIP, k = 1", lambda: index.search(problem.vectors, 1)[1], check=check, goal=FAISS_GOAL)
    ]


def _pytorch(problem: Problem, check: Any) -> list[Implementation]:
    torch, library = measure.torch(), measure.peer("vector_quantize_pytorch")
    codes, features = problem.codes.shape
    layer = library.VectorQuantize(dim=features, codebook_size=codes, use_cosine_sim=True).eval()
    with torch.no_grad():
        layer._codebook.embed.copy_(torch.from_numpy(problem.codes)[None])
    vectors = torch.from_numpy(problem.vectors)[None]

    def run() -> Any:
        with torch.no_grad():
            return layer(vectors)

    return [
        Implementation("vector-quantize-pytorch", run, check=lambda found: check(found[1].numpy()), goal=TORCH_GOAL)
    ]

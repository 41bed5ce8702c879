"""The commands before a run: `protojax prepare | convert-weights | recognise | features`.

Each takes the parsed arguments, prints what it did, and imports what it needs only then.
"""

import argparse
import difflib
from typing import Any

from protojax import values

_DIVISION = ("validation", "test", "duplicates")

_OF_KIND = {
    "tfds": (),
    "funnybirds": ("name", "validation", "duplicates"),
    "idx": ("name", "label_names", *_DIVISION),
    "image-folder": ("name", "image_size", *_DIVISION),
    "csv": ("name", "label", "numeric", "categorical", *_DIVISION),
    "text": ("name", "label", "text", *_DIVISION),
    "features": ("name", "labels", *_DIVISION),
}
"""The options of `prepare` that only some kinds of sources read, by kind."""


def _prepare(parsed: argparse.Namespace) -> None:
    from protojax.data import prepare

    for option in sorted(set().union(*_OF_KIND.values()).difference(_OF_KIND[parsed.kind])):
        if getattr(parsed, option) is not None:
            raise ValueError(f"--{option.replace('_', '-')} means nothing for {parsed.kind}; leave it out")
    if parsed.kind != "tfds" and parsed.name is None:
        raise ValueError(f"prepare {parsed.kind} needs --name NAME: the name of the data set that is written")
    if parsed.kind == "tfds" and parsed.overwrite:
        raise ValueError("--overwrite means nothing for tfds; remove the folder of the data set to have it built anew")
    label = parsed.label or "label"
    common: dict[str, Any] = {"data_dir": parsed.data_dir, "overwrite": parsed.overwrite}
    given = {option: getattr(parsed, option) for option in ("name", *_DIVISION)}
    common |= {option: value for option, value in given.items() if value is not None}
    match parsed.kind:
        case "tfds":
            done = prepare.official(str(parsed.source), data_dir=parsed.data_dir)
        case "funnybirds":
            done = prepare.funnybirds(parsed.source, **common)
        case "idx":
            done = prepare.idx(parsed.source, label_names=values.names(parsed, "label_names"), **common)
        case "image-folder":
            done = prepare.image_folder(parsed.source, image_size=values.size(parsed.image_size), **common)
        case "csv":
            columns = {kind: values.names(parsed, kind) or () for kind in ("numeric", "categorical")}
            done = prepare.table(parsed.source, label=label, **columns, **common)
        case "text":
            done = prepare.text(parsed.source, label=label, text=parsed.text or "text", **common)
        case "features":
            if parsed.labels is None:
                raise ValueError("prepare features needs --labels FILE: an npy file of a label for each example")
            done = prepare.features(parsed.source, labels=parsed.labels, **common)
    counts = ", ".join(f"{split} {count}" for split, count in done.counts.items())
    dropped = sum(len(ids) for ids in done.dropped.values())
    print(
        f"prepared {parsed.name or parsed.source}: {counts}"
        + (f" ({dropped} duplicates dropped)" if dropped else "")
        + f"\n{done.path}"
    )


def _convert_weights(parsed: argparse.Namespace) -> None:
    from protojax import convert

    count = convert.convert(parsed.source, parsed.target, parsed.overwrite)
    print(f"{parsed.target} holds {count} tensors")


def _recognise(parsed: argparse.Namespace) -> None:
    from protojax import config, recognise

    if parsed.top < 1:
        raise ValueError(f"--top {parsed.top}: show at least 1 class")
    known = config.FrozenSettings.model_fields["network"].annotation.__args__
    if parsed.network not in known:
        near = difflib.get_close_matches(parsed.network, known, n=1, cutoff=0.0)
        raise ValueError(f"--network: no {parsed.network!r}; did you mean {near[0]!r}? There are {', '.join(known)}")
    settings = config.FrozenSettings(network=parsed.network, weights=str(parsed.weights))
    names = None if parsed.names is None else recognise.read_names(parsed.names)
    guesses = recognise.recognise(parsed.images, settings, names, parsed.top)
    for image, found in zip(parsed.images, guesses, strict=True):
        print(image)
        for name, probability in found:
            print(f"  {100 * probability:6.2f} %  {name}")


def _features(parsed: argparse.Namespace) -> None:
    from protojax import config
    from protojax.data import frozen

    settings = config.load(parsed.experiment, parsed.overrides)
    counts, shape = frozen.write_store(settings, parsed.output, parsed.overwrite)
    print(f"features {list(shape)}: {', '.join(f'{split} {count}' for split, count in counts.items())}")
    print(f"{parsed.output}    train from it with encoder.features={parsed.output}")


COMMANDS = {
    "prepare": _prepare,
    "convert-weights": _convert_weights,
    "recognise": _recognise,
    "features": _features,
}

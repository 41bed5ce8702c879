"""Experiments as TOML: reading, overriding, and errors that name the key and the nearest valid one."""

import difflib
import json
import tomllib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pydantic

from protojax.config.data import NumericColumn
from protojax.config.encoders import EncoderSettings
from protojax.config.methods import MethodSettings
from protojax.config.settings import Settings


class SettingsError(ValueError):
    """A setting is unknown, of the wrong type or impossible."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Settings:
    """Reads an experiment from TOML and applies `section.key=value` overrides.

    Values are in TOML syntax, bare strings, or `null`, which unsets an optional setting.

    Raises:
      SettingsError: the file cannot be read or a setting is unknown, of the wrong type or impossible.
    """
    path = Path(path)
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such experiment file") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read as an experiment file: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from None
    return _overridden(tree, overrides, str(path))


def override(settings: Settings, overrides: Sequence[str], origin: str) -> Settings:
    """The settings with `section.key=value` overrides; `origin` names them in errors.

    Raises:
      SettingsError: an override is unknown, of the wrong type or impossible.
    """
    return _overridden(to_tree(settings), overrides, origin)


def from_tree(tree: dict[str, Any], origin: str) -> Settings:
    """Validates a tree of plain values; `origin` names it in errors.

    Raises:
      SettingsError: a setting is unknown, of the wrong type or impossible.
    """
    try:
        # Strict JSON mode: TOML has arrays where the settings have tuples, and no silent "3" -> 3 is wanted.
        return Settings.model_validate_json(json.dumps(tree, default=str))
    except pydantic.ValidationError as error:
        raise SettingsError("\n".join(f"{origin}: {_explain(e)}" for e in error.errors())) from None


def to_tree(settings: Settings) -> dict[str, Any]:
    """The resolved settings as plain JSON values."""
    return json.loads(settings.model_dump_json())


def _overridden(tree: dict[str, Any], overrides: Sequence[str], origin: str) -> Settings:
    for text in overrides:
        _set(tree, text)
    return from_tree(tree, origin)


_UNSET = "null"
"""TOML has no word for it."""


def _set(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise SettingsError(f"{override!r}: an override has the form section.key=value, such as train.steps=500")
    try:
        value = None if text.strip() == _UNSET else tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, last = key.strip().split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise SettingsError(f"{override!r}: {section} is a setting, not a section")
    tree[last] = value


def _explain(error: dict[str, Any]) -> str:
    # Union branches add their tag ("resnet") to the location; it is no key of the file.
    location = [part for i, part in enumerate(error["loc"]) if not (i == 1 and part in _TAGS)]
    key = ".".join(str(part) for part in location)
    if error["type"] == "extra_forbidden":
        valid = _valid_keys(error["loc"][:-1])
        near = difflib.get_close_matches(str(location[-1]), valid, n=1, cutoff=0.0)
        return f"unknown key {key}; did you mean {'.'.join([*map(str, location[:-1]), *near])}?"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{key} is required"
    if error["input"] is None:
        return f"{key} cannot be {_UNSET}: only optional settings can be unset"
    if error["type"].startswith("union_tag"):
        return f"{key}: {message}"
    return (
        f"{key}: {message} (got {error['input']!r})"
        if key and error["type"] != "value_error"
        else (f"{key}: {message}" if key else message)
    )


# Unions of sections that are told apart by their `kind`.
_ENCODERS, _METHODS = (typing.get_args(typing.get_args(union)[0]) for union in (EncoderSettings, MethodSettings))
_TAGS = [model.model_fields["kind"].default for model in (*_ENCODERS, *_METHODS)]


def _valid_keys(location: tuple[Any, ...]) -> list[str]:
    model: Any = Settings
    for part in location:
        if part in ("encoder", "method") and model is Settings:
            model = {m.model_fields["kind"].default: m for m in (_ENCODERS if part == "encoder" else _METHODS)}
        elif isinstance(model, dict):
            model = model[part]
        elif part in getattr(model, "model_fields", {}):
            model = model.model_fields[part].annotation
        elif model == dict[str, NumericColumn]:
            model = NumericColumn
    return list(getattr(model, "model_fields", {}))

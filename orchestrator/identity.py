"""TrialConfig <-> JSON, fingerprint and readable id: what makes two trials the same trial.

A fingerprint covers everything that is computed and nothing about where it runs, so a trial may move between machines and stores.
"""

from __future__ import annotations

import hashlib
import json
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from data.atomic import write_json
from model.configs import TrialConfig

Record = TypeVar("Record")


def trial_id(config: TrialConfig) -> str:
    """The trial's readable name, also its folder's: `qwen3-4b.hybrid.seed0`."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", config.foundation.name):
        raise ValueError(f"foundation.name: {config.foundation.name!r} names a folder; use letters, digits, . - and _")
    return f"{config.foundation.name}.{config.mode}.seed{config.seed}"


def fingerprint(config: TrialConfig) -> str:
    """sha256 (hex) of the config's canonical JSON: the same on every machine and in every process."""
    return json_fingerprint(config_to_json(config))


def json_fingerprint(config: Mapping[str, Any]) -> str:
    """`fingerprint` of a config that is JSON already, perhaps one that an older version wrote."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def config_to_json(config: TrialConfig) -> dict[str, Any]:
    """The config as JSON values (tuples as lists), fields in declaration order."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def config_from_json(value: Mapping[str, Any], where: str = "config") -> TrialConfig:
    """The exact inverse of `config_to_json`. Raises ValueError that names the faulty field, prefixed by `where`."""
    return record_from_json(TrialConfig, value, where)


def write_config(path: Path, config: TrialConfig) -> None:
    """Write a trial's `config.json`: its id, fingerprint and config."""
    write_json(
        path, {"trial_id": trial_id(config), "fingerprint": fingerprint(config), "config": config_to_json(config)}
    )


def read_config(path: Path) -> TrialConfig:
    """The config that `write_config` wrote."""
    return config_from_json(read_config_json(path), f"{path}: config")


def read_config_json(path: Path) -> dict[str, Any]:
    """The config in a `config.json`, not yet typed: an older version may have written it. Raises ValueError when damaged."""
    remedy = "put it back, or move the trial's folder away and run again"
    document = read_document(path, remedy)
    config = document.get("config")
    if not isinstance(config, dict):
        raise ValueError(f"{path}: config: missing; {remedy}")
    if document.get("fingerprint") != json_fingerprint(config):
        raise ValueError(f"{path}: fingerprint: is not its config's, so the file is damaged; {remedy}")
    return config


def read_document(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError naming file, line and remedy when it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; {remedy}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {error.lineno}: not JSON ({error.msg}); {remedy}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: line 1: a JSON object is expected; {remedy}")
    return value


def changed_fields(old: Mapping[str, Any], config: TrialConfig) -> list[str]:
    """What differs between a config on disk and the declared one, as `optim.precision: "fp32" -> "bf16"`."""
    before, after = _flatten(old), _flatten(config_to_json(config))
    changed = [
        name for name in dict.fromkeys([*after, *before]) if before.get(name, _ABSENT) != after.get(name, _ABSENT)
    ]
    return [f"{name}: {_show(before.get(name, _ABSENT))} -> {_show(after.get(name, _ABSENT))}" for name in changed]


_ABSENT = object()


def _show(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value, ensure_ascii=False)


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flatten(item, f"{prefix}{name}.")
        else:
            flat[prefix + name] = item
    return flat


def record_from_json(cls: type[Record], value: Any, where: str) -> Record:
    """Build a frozen dataclass, and those nested in it, from JSON values, checking every type.

    Raises ValueError that names the field below `where`: unknown, missing, of another type, or refused by the class itself.
    """
    assert is_dataclass(cls), cls
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: an object is expected, not {value!r}")
    hints = get_type_hints(cls)
    names = {field.name for field in fields(cls)}
    if unknown := sorted(set(value) - names):
        raise ValueError(f"{where}.{unknown[0]}: unknown field; another version of slotgrid wrote it")
    optional = {f.name for f in fields(cls) if f.default is not MISSING or f.default_factory is not MISSING}
    if missing := sorted(names - set(value) - optional):
        raise ValueError(f"{where}.{missing[0]}: missing field; another version of slotgrid wrote it")
    loaded = {name: _from_json(hints[name], item, f"{where}.{name}") for name, item in value.items()}
    try:
        return cls(**loaded)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _from_json(hint: Any, value: Any, where: str) -> Any:
    """One JSON value as the type that `hint` names; the types that our records use, no more."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if isinstance(hint, type) and is_dataclass(hint):
        return record_from_json(hint, value, where)
    if origin is Literal and value in arguments:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (hint,) = [argument for argument in arguments if argument is not type(None)]
        return _from_json(hint, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_from_json(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {key: _from_json(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint in (str, int, bool) and type(value) is hint:
        return value
    raise ValueError(f"{where}: {value!r} is not {getattr(hint, '__name__', None) if origin is None else hint}")

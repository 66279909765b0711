"""Methods by name. Ours are the modules of `kvfoot.methods`; others come through the entry point `kvfoot.methods`."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar, get_args, get_type_hints

from kvfoot.core.compose import PLUS, compose
from kvfoot.core.errors import UsageError, did_you_mean
from kvfoot.core.hooks import Method

M = TypeVar("M", bound=type[Method])
_methods: dict[str, type[Method]] = {}


def register(name: str, *, paper: str, category: str, stores: str, reads: str) -> Callable[[M], M]:
    """Class decorator. paper: arXiv id or '-'; category: 'evict', 'read', ...; stores, reads: a line each."""

    def wrap(cls: M) -> M:
        if name in _methods and _methods[name].__qualname__ != cls.__qualname__:
            raise UsageError(f"method {name!r} is registered twice: {_methods[name]} and {cls}")
        cls.name, cls.paper, cls.category, cls.stores, cls.reads = name, paper, category, stores, reads
        _methods[name] = cls
        return cls

    return wrap


def methods() -> Mapping[str, type[Method]]:
    """All methods, sorted by name; the first call imports them."""
    _import_all()
    return dict(sorted(_methods.items()))


@cache
def _import_all() -> None:
    package = importlib.import_module("kvfoot.methods")
    for module in pkgutil.walk_packages(package.__path__, "kvfoot.methods."):
        importlib.import_module(module.name)
    for entry in entry_points(group="kvfoot.methods"):
        entry.load()


def method(name: str | Method, options: Mapping[str, Any] | None = None) -> Method:
    """The method `name` with `options` over its published defaults; strings are read by the option's type.

    "reader+evictor" is a reader over a method that evicts (core/compose.py). Raises UsageError for an unknown
    name, option or value.
    """
    if isinstance(name, Method):
        if options:
            raise UsageError("options go with a method's name, not with a finished method")
        return name
    known = methods()
    if PLUS in name:
        return compose(name, options or {}, known, method)
    if name not in known:
        raise UsageError(f"unknown method {name!r}{did_you_mean(name, list(known))}")
    cls = known[name]
    types = get_type_hints(cls)
    names = [f.name for f in fields(cls)]
    values = {}
    for key, value in (options or {}).items():
        if key not in names:
            hint = did_you_mean(key, names) if names else " (it has none)"
            raise UsageError(f"{name} has no option {key!r}{hint}")
        values[key] = read_option(name, key, value, types[key])
    return cls(**values)


def read_option(name: str, key: str, value: Any, kind: Any) -> Any:
    """`value`, possibly a string, as an option of type `kind`. Raises UsageError, naming `name` and `key`."""
    if type(None) in get_args(kind):
        if value is None or value in ("none", "None"):
            return None
        kind = next(k for k in get_args(kind) if k is not type(None))
    choices = get_args(kind)
    if choices and all(isinstance(c, str) for c in choices):
        if value not in choices:
            raise UsageError(f"{name}: {key}={value!r} is none of {', '.join(choices)}")
        return value
    if kind is bool and isinstance(value, str):
        if value.lower() not in ("true", "false", "1", "0"):
            raise UsageError(f"{name}: {key}={value!r} is not true or false")
        return value.lower() in ("true", "1")
    try:
        if kind is int and isinstance(value, float) and not value.is_integer():
            raise ValueError
        return kind(value)
    except (TypeError, ValueError):
        raise UsageError(f"{name}: {key}={value!r} is not of type {kind.__name__}") from None

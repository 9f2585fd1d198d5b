"""Names for code of the user's: what a saved model can refer to. No saved file holds a Python module path.

A plugin module (listed under `plugins:` in the YAML) calls `register_cell`, `register_optimizer` or
`register_normalizer` when it is imported; driver, workers and replicas import it before they build a model. Knows no
torch: configs are checked against names alone.

May import: model.errors, model.settings.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from model.errors import ConfigError
from model.settings import did_you_mean

BUILT_IN_CELLS = ("basic_rnn", "lstm", "gru", "gru_reset_before")
BUILT_IN_OPTIMIZERS = ("Adagrad", "Adam", "Ftrl", "Momentum", "RMSProp", "SGD")
BUILT_IN_NORMALIZERS = ("none", "zscore", "minmax", "log1p")
Normalizer = Callable[[Any], Any]
_cells: dict[str, type[Any]] = {}
_normalizers: dict[str, Normalizer] = {}
_optimizers: dict[str, Callable[..., Any]] = {}


def register_cell(name: str, cell_class: type[Any]) -> None:
    """Makes `cell_type: name` mean a class that keeps the contract of `model.network.cells.Cell`.

    Registering the same class again is allowed (a module may be imported in several ways); a name that is taken
    by another class is a ConfigError.
    """
    known = _cells.get(name)
    if name in BUILT_IN_CELLS or (known is not None and known.__qualname__ != cell_class.__qualname__):
        raise ConfigError(f"cell name {name!r} is taken; register {cell_class.__name__} under another one")
    _cells[name] = cell_class


def registered_cell(name: str) -> type[Any] | None:
    """The class registered under `name`, None for a built-in one; ConfigError when there is neither."""
    if name in BUILT_IN_CELLS:
        return None
    if name not in _cells:
        known = (*BUILT_IN_CELLS, *_cells)
        raise ConfigError(
            f"cell_type must be one of {', '.join(known)}, but is {name!r}{did_you_mean(name, known)}; a cell of your "
            f"own must be registered by a module listed under `plugins:`"
        )
    return _cells[name]


def name_of_cell(cell_class: type[Any]) -> str | None:
    """The name a class is registered under; None where it is not."""
    return next((name for name, known in _cells.items() if known is cell_class), None)


def register_optimizer(name: str, factory: Callable[..., Any]) -> None:
    """Makes `optimizer: name` mean a `torch.optim` class, or a function (params, lr) that makes such an optimizer.

    Registering the same again is allowed; a name that is taken by another one is a ConfigError.
    """
    known = _optimizers.get(name)
    if name in BUILT_IN_OPTIMIZERS or (known is not None and _path(known) != _path(factory)):
        raise ConfigError(f"optimizer name {name!r} is taken; register this one under another name")
    _optimizers[name] = factory


def _path(factory: Callable[..., Any]) -> tuple[object, object]:
    return getattr(factory, "__module__", None), getattr(factory, "__qualname__", factory)


def registered_optimizer(name: str) -> Callable[..., Any] | None:
    """What is registered under `name`, None for a built-in optimizer."""
    return _optimizers.get(name)


def check_optimizer(name: object) -> None:
    """ConfigError for what is no name of an optimizer."""
    known = (*BUILT_IN_OPTIMIZERS, *_optimizers)
    if isinstance(name, str):
        if name not in known:
            raise ConfigError(
                f"optimizer must be one of {', '.join(known)}, but is {name!r}{did_you_mean(name, known)}; one of "
                f"your own must be registered by a module listed under `plugins:`"
            )
        return
    raise ConfigError(
        f"optimizer must be a name in a config, for code cannot be saved, but is {name!r}; call "
        f"model.registry.register_optimizer('some_name', …) and use that name"
    )


def register_normalizer(name: str, function: Normalizer) -> None:
    """Makes `normalizer: name` mean a function of a column's numbers: float64 [n, dimension] to the same shape.

    Missing numbers come as NaN and must stay NaN. A name that is taken by another function is a ConfigError.
    """
    known = _normalizers.get(name)
    if name in BUILT_IN_NORMALIZERS or (known is not None and _qualified(known) != _qualified(function)):
        raise ConfigError(f"normalizer name {name!r} is taken; register {_qualified(function)} under another one")
    _normalizers[name] = function


def registered_normalizer(name: str) -> Normalizer | None:
    """The function registered under `name`, None for a built-in one; ConfigError when there is neither."""
    if name in BUILT_IN_NORMALIZERS:
        return None
    if name not in _normalizers:
        known = (*BUILT_IN_NORMALIZERS, *_normalizers)
        raise ConfigError(
            f"normalizer must be one of {', '.join(known)}, but is {name!r}{did_you_mean(name, known)}; a function of "
            f"your own must be registered by a module listed under `plugins:`"
        )
    return _normalizers[name]


def normalizer_name(normalizer: str | Normalizer | None) -> str:
    """The name of a normalizer: None is none; ConfigError for a function that is not registered."""
    if normalizer is None or isinstance(normalizer, str):
        return normalizer or "none"
    name = next((name for name, known in _normalizers.items() if known is normalizer), None)
    if name is None:
        raise ConfigError(
            f"normalizer {_qualified(normalizer)} has no name that a saved model could refer to; call "
            f"model.registry.register_normalizer('some_name', {_qualified(normalizer)}) first"
        )
    return name


def _qualified(function: Normalizer) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def import_plugins(modules: Sequence[str]) -> None:
    """Imports the modules that register cells and optimizers; ConfigError names one that cannot be found."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"plugins: module {module!r} must be importable, but {error.name!r} is not found; run from the "
                f"directory that holds it or install it"
            ) from error

"""Mutable values that both sides of the channel share (`wire.py`), and how each is read and filled.

Both sides run this file; it reaches the sandbox over the channel, so it imports nothing beyond the
standard library.
"""

import importlib
import io
import math
import sys
from array import array
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any, NamedTuple


class Container(NamedTuple):
    """How the objects of one class are shared."""

    create: Callable[..., Any]
    """Return an empty object, given the classes in common and `settings`."""
    read: Callable[[Any], tuple[Any, ...]]
    """Return the content of an object, as plain values and other shared objects."""
    fill: Callable[..., None]
    """Replace the content of an object, in place."""
    settings: Callable[[Any], tuple[Any, ...]] = lambda x: ()
    """Return what the empty object is made from."""
    hashes: bool = False
    """Whether its items are hashed."""


def _fill_list(x: Any, items: tuple[Any, ...] = ()) -> None:
    x[:] = items


def _fill_set(x: Any, items: frozenset[Any] = frozenset()) -> None:
    set.clear(x)
    set.update(x, items)


def _fill_deque(x: Any, items: tuple[Any, ...] = ()) -> None:
    deque.clear(x)
    deque.extend(x, items)


def _read_dict(x: Any) -> tuple[Any, ...]:
    return tuple(dict.keys(x)), tuple(dict.values(x))


def _fill_dict(x: Any, keys: tuple[Any, ...] = (), values: tuple[Any, ...] = ()) -> None:
    x.clear()
    for key, value in zip(keys, values, strict=True):
        x[key] = value


def _read_default(x: Any) -> tuple[Any, ...]:
    return x.default_factory, *_read_dict(x)


def _fill_default(x: Any, factory: Any, keys: tuple[Any, ...], values: tuple[Any, ...]) -> None:
    x.default_factory = factory
    _fill_dict(x, keys, values)


def _fill_array(x: Any, data: bytes) -> None:
    del x[:]
    x.frombytes(data)


def _fill_names(x: Any, names: tuple[str, ...], values: tuple[Any, ...]) -> None:
    vars(x).clear()
    vars(x).update(zip(names, values, strict=True))


def _read_stream(x: Any) -> tuple[Any, ...]:
    return ("", -1) if x.closed else (x.getvalue(), x.tell())


def _fill_stream(x: Any, content: Any = "", at: int = -1) -> None:
    if at < 0:
        x.close()
        return
    x.seek(0)
    x.truncate()
    x.write(content)
    x.seek(at)


# --- instances of classes that both sides define --------------------------------------------------


def _attributes(x: Any) -> dict[str, Any]:
    """Return the attributes that an object itself holds."""
    found: dict[str, Any] = {}
    for kind in type(x).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(x, name):
                found[name] = object.__getattribute__(x, name)
    found.update(getattr(x, "__dict__", {}))
    return found


def _create_instance(classes: dict[str, type], name: str) -> Any:
    return object.__new__(classes[name])


def _read_instance(x: Any) -> tuple[Any, ...]:
    attributes = _attributes(x)
    return tuple(attributes), tuple(attributes.values())


def _fill_instance(x: Any, names: tuple[str, ...], values: tuple[Any, ...]) -> None:
    for name in _attributes(x).keys() - set(names):
        object.__delattr__(x, name)
    for name, value in zip(names, values, strict=True):
        if name.startswith("__") or not name.isidentifier() or is_computed(type(x), name):
            raise ValueError(f"no attribute {name}")
        object.__setattr__(x, name, value)


def is_computed(kind: type, name: str) -> bool:
    """Whether an attribute is a method or property of a class, which no instance should hide."""
    defined = next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)
    return isinstance(defined, (FunctionType, property, classmethod, staticmethod))


# --- arrays of numpy, if it is loaded -------------------------------------------------------------


def _create_ndarray(classes: dict[str, type], dtype: str) -> Any:
    import numpy as np

    kind = np.dtype(dtype)
    if kind.hasobject:
        raise ValueError("an array of objects")
    return np.empty(0, kind)


def _fill_ndarray(x: Any, shape: tuple[int, ...], data: bytes) -> None:
    import numpy as np

    if math.prod(shape) * x.itemsize != len(data):
        raise ValueError("the size of an array")
    if x.shape != shape:
        if x.size:  # other arrays may show its items
            raise ValueError("an array that changes its shape")
        x.resize(shape, refcheck=False)
    x[...] = np.frombuffer(data, x.dtype).reshape(shape)


def _is_ndarray(x: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(x) is numpy.ndarray and not x.dtype.hasobject


CONTAINERS: dict[str, Container] = {
    "list": Container(lambda c: [], lambda x: (tuple(x),), _fill_list),
    "set": Container(lambda c: set(), lambda x: (frozenset(x),), _fill_set, hashes=True),
    "dict": Container(lambda c: {}, _read_dict, _fill_dict, hashes=True),
    "bytearray": Container(lambda c: bytearray(), lambda x: (bytes(x),), _fill_list),
    "deque": Container(
        lambda c, size: deque(maxlen=size),
        lambda x: (tuple(x),),
        _fill_deque,
        lambda x: (x.maxlen,),
    ),
    "defaultdict": Container(lambda c: defaultdict(), _read_default, _fill_default, hashes=True),
    "OrderedDict": Container(lambda c: OrderedDict(), _read_dict, _fill_dict, hashes=True),
    "Counter": Container(lambda c: Counter(), _read_dict, _fill_dict, hashes=True),
    "array": Container(
        lambda c, code: array(code), lambda x: (x.tobytes(),), _fill_array, lambda x: (x.typecode,)
    ),
    "ndarray": Container(
        _create_ndarray, lambda x: (x.shape, x.tobytes()), _fill_ndarray, lambda x: (x.dtype.str,)
    ),
    "SimpleNamespace": Container(
        lambda c: SimpleNamespace(),
        lambda x: (tuple(vars(x)), tuple(vars(x).values())),
        _fill_names,
    ),
    "StringIO": Container(lambda c: io.StringIO(), _read_stream, _fill_stream),
    "BytesIO": Container(lambda c: io.BytesIO(), _read_stream, _fill_stream),
    "Random": Container(
        lambda c: importlib.import_module("random").Random(),
        lambda x: (x.getstate(),),
        lambda x, state: x.setstate(state),
    ),
    "instance": Container(
        _create_instance, _read_instance, _fill_instance, lambda x: (type(x).__name__,)
    ),
}
_NAMES: dict[type, str] = {
    kind: kind.__name__
    for kind in (
        *(list, set, dict, bytearray, deque, defaultdict, OrderedDict, Counter, array),
        *(SimpleNamespace, io.StringIO, io.BytesIO),
    )
}


def container_of(value: Any, classes: dict[str, type]) -> str | None:
    """Return the key in `CONTAINERS` of a value that is shared; None for any other value."""
    kind = type(value)
    name = _NAMES.get(kind)
    if name is None and kind.__flags__ & _HEAP and classes.get(kind.__name__) is kind:
        # members of enumerations and exceptions pass otherwise
        fits = not hasattr(kind, "_member_map_") and not issubclass(kind, BaseException)
        name = "instance" if fits else None
    if name is None and _is_ndarray(value):
        name = "ndarray"
    if name is None and kind.__name__ == "Random":
        random = sys.modules.get("random")
        name = "Random" if random is not None and kind is random.Random else None
    return name


_HEAP = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class that Python code defines

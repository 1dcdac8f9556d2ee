"""What a candidate raises, as an exception of the trusted process."""

import builtins
import sys
from typing import Any


def exception_of(
    names: tuple[Any, ...], arguments: tuple[Any, ...], text: str, stand_in: Any
) -> BaseException:
    """Return an exception of the first class of the standard library among those raised.

    Args:
        names: (module, name) of the raised class and its bases.
        arguments: Plain arguments of the exception.
        text: Its text.
        stand_in: What stands for the exception itself, for attributes that this process lacks.
    """
    base: type[BaseException] = Exception
    own = "Exception"
    for i, pair in enumerate(names):
        found = _library_class(pair)
        if found is not None:
            base = found
            own = base.__name__ if i == 0 else str(names[0][1])
            break
    kind = base
    if own != base.__name__:
        body = {"__str__": lambda self: text, "__getattr__": _attribute, "__module__": "candidate"}
        kind = type(own, (base,), body)
    try:
        error = kind(*arguments)
    except Exception:  # some classes need other arguments
        error = kind.__new__(kind)
        error.args = arguments
    error._stand_in = stand_in  # type: ignore[attr-defined]
    return error


def _attribute(self: BaseException, name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    return getattr(self._stand_in, name)  # type: ignore[attr-defined]


def _library_class(pair: Any) -> type[BaseException] | None:
    """Return the exception class of this name in the standard library, if its module is loaded."""
    if type(pair) is not tuple or len(pair) != 2 or not all(type(part) is str for part in pair):
        return None
    module, name = pair
    if module == "builtins":
        kind = vars(builtins).get(name)
    elif module.split(".")[0] in sys.stdlib_module_names and module in sys.modules:
        kind = vars(sys.modules[module]).get(name)
    else:
        return None
    return kind if isinstance(kind, type) and issubclass(kind, BaseException) else None

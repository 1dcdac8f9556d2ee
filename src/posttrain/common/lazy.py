"""torch, imported on first use.

A method's config and loss are in one file. With `from posttrain.common.lazy import torch` that file
can be imported, and a recipe checked, without the seconds that importing torch takes. A use at
module level (a decorator, a base class, a default argument) would import torch at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["F", "torch"]

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
else:

    class _OnFirstUse:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            return getattr(import_module(self._name), attribute)

    torch = _OnFirstUse("torch")
    F = _OnFirstUse("torch.nn.functional")

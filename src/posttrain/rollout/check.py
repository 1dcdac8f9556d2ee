"""Checks of sampling settings that come from Python or the command line."""

from __future__ import annotations

import math

from posttrain.common.errors import SettingError

LEAST_TEMPERATURE = 1e-6
"""Logits divided by less can overflow, and nothing but the likeliest token is drawn anyway."""


def drawable(temperature: float) -> float:
    """Return a temperature; raise ValueError for one at which the distribution is no number."""
    if not (temperature == 0 or LEAST_TEMPERATURE <= temperature < math.inf):
        raise ValueError(f"expected 0 (greedy) or at least {LEAST_TEMPERATURE}, got {temperature}")
    return temperature


def check_sampling(max_new_tokens: int, temperature: float, top_p: float, top_k: int) -> None:
    """Raise SettingError, by the names of the arguments, for a value that no distribution has."""
    if max_new_tokens < 1:
        raise SettingError("max_new_tokens", f"expected at least 1, got {max_new_tokens}")
    try:
        drawable(temperature)
    except ValueError as error:
        raise SettingError("temperature", str(error)) from None
    if not 0 < top_p <= 1:
        raise SettingError("top_p", f"expected above 0 and at most 1 (no limit), got {top_p}")
    if top_k < 0:
        raise SettingError("top_k", f"expected at least 0 (no limit), got {top_k}")


def check_at_least(least: int, **settings: int | None) -> None:
    """Raise SettingError for a setting below `least`; None is no setting."""
    for name, value in settings.items():
        if value is not None and value < least:
            raise SettingError(name, f"expected at least {least}, got {value}")

"""Numbers as people read them. Every function takes a plain number and returns text; None and NaN become a dash."""

from __future__ import annotations

import math

from metaprune.cost.metrics import COST_METRICS, CostMetric, cost_metric

MISSING = "–"

_LARGE = (("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12), ("P", 1e15))


def finite(value: object) -> float | None:
    """Read the value as a float; None where it is missing, not a number or not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def quantity(value: object) -> str:
    """Format a count with an SI prefix, `40.55 M`; whole numbers below a thousand stay whole."""
    number = finite(value)
    if number is None:
        return MISSING
    if abs(number) < 1e3 and number == int(number):
        return str(int(number))
    return _scaled(number)


def byte_size(value: object) -> str:
    """Format bytes in powers of ten, `1.10 MB`, as file managers and `Cost.memory_mb` count them."""
    number = finite(value)
    if number is None:
        return MISSING
    return f"{int(number)} B" if abs(number) < 1e3 else _scaled(number) + "B"


def duration(seconds: object) -> str:
    """Format seconds: `35 ms`, `12.3 s`, `3 min 05 s`, `1 h 02 min`."""
    number = finite(seconds)
    if number is None:
        return MISSING
    if number < 0.9995:
        return f"{number * 1e3:.0f} ms"
    if number < 59.95:
        return f"{number:.1f} s"
    if round(number) < 3600:
        minutes, rest = divmod(round(number), 60)
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(number / 60), 60)
    return f"{hours} h {minutes:02d} min"


def milliseconds(value: object) -> str:
    """Format milliseconds to three significant digits, `7.10 ms`."""
    number = finite(value)
    return MISSING if number is None else f"{_three_digits(number)} ms"


def cost_text(metric: str, value: object) -> str:
    """Format a cost metric's figure with its unit; of what is no metric here (another's record), a plain quantity."""
    known = _metric(metric)
    unit = known.unit if known else ""
    if unit in _UNITS:
        return _UNITS[unit](value)
    return f"{quantity(value)} {unit}".rstrip()


def cost_noun(metric: str) -> str:
    """Name a metric in text: `memory` for `memory_mb`; the name itself of what is no metric here."""
    known = _metric(metric)
    return known.noun if known else metric


def cost_axis(metric: str) -> str:
    """Title an axis: `memory (MB)` for `memory_mb`; the name itself of what is no metric here."""
    known = _metric(metric)
    return known.axis_title if known else metric


def is_count(metric: str) -> bool:
    """Tell whether the metric is known here, and whole numbers."""
    known = _metric(metric)
    return known is not None and known.count


def share(part: object, whole: object, digits: int = 1) -> str:
    """Format a part as `50.1%` of the whole; a dash where the whole is nothing."""
    ratio = _ratio(part, whole)
    return MISSING if ratio is None else f"{100 * ratio:.{digits}f}%"


def percentage(value: object, digits: int = 2) -> str:
    """Format 0.912 as `91.20%`."""
    number = finite(value)
    return MISSING if number is None else f"{100 * number:.{digits}f}%"


def relative_change(before: object, after: object) -> str:
    """`-50.1%`, `+3.0%` or `0.0%`."""
    ratio = _ratio(after, before)
    return MISSING if ratio is None else f"{_signed(100 * (ratio - 1), 1)}%"


def significant(value: object) -> str:
    """Format a plain number to four significant digits: `12.34`, `0.01235`."""
    number = finite(value)
    return MISSING if number is None else f"{number:.4g}"


def point_change(before: object, after: object) -> str:
    """`-0.40 pp`: the difference of two shares in percentage points."""
    a, b = finite(before), finite(after)
    return MISSING if a is None or b is None else f"{_signed(100 * (b - a), 2)} pp"


def number_change(before: object, after: object, digits: int = 3) -> str:
    """`-0.012`: a plain difference."""
    a, b = finite(before), finite(after)
    return MISSING if a is None or b is None else _signed(b - a, digits)


def times(before: object, after: object, fewer: str, more: str) -> str:
    """Format a factor: `2.01x fewer` or `1.30x more`; `unchanged` where it would read 1.00."""
    a, b = finite(before), finite(after)
    if a is None or b is None or a <= 0 or b <= 0:
        return MISSING
    factor, word = (a / b, fewer) if a >= b else (b / a, more)
    return "unchanged" if factor < 1.005 else f"{factor:.2f}x {word}"


def shortened(name: str, length: int) -> str:
    """At most `length` characters, cut in the middle: both the stage and the layer stay readable."""
    if len(name) <= length:
        return name
    head = (length - 1) // 2
    return f"{name[:head]}…{name[len(name) - (length - 1 - head) :]}"


def _metric(name: str) -> CostMetric | None:
    return cost_metric(name) if name in COST_METRICS.names() else None


def _megabytes(value: object) -> str:
    number = finite(value)
    return byte_size(None if number is None else number * 1e6)


_UNITS = {"MB": _megabytes, "bytes": byte_size, "ms": milliseconds}


def _scaled(number: float) -> str:
    for index, (prefix, scale) in enumerate(_LARGE):
        # 999.996 k would be printed as 1000.00 k: such a number belongs to the next prefix
        if round(abs(number) / scale, 2) < 1e3 or index == len(_LARGE) - 1:
            return f"{number / scale:.2f} {prefix}".rstrip()
    raise AssertionError("unreachable")


def _three_digits(number: float) -> str:
    digits = 0 if abs(number) >= 99.95 else 1 if abs(number) >= 9.995 else 2 if abs(number) >= 0.9995 else 3
    return f"{number:.{digits}f}"


def _signed(number: float, digits: int) -> str:
    text = f"{number:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def _ratio(part: object, whole: object) -> float | None:
    a, b = finite(part), finite(whole)
    return None if a is None or b is None or b == 0 else a / b

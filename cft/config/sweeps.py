"""What a search may choose a setting from, in Hydra's words for sweeps."""

import dataclasses
from typing import Any

from hydra.core.override_parser.types import Override

from cft.config.compose import compose_job, parse_overrides, sweep_values
from cft.system.errors import UserError


@dataclasses.dataclass(frozen=True)
class Dimension:
    """What a search may choose a setting from: values, or an interval."""

    key: str  # a setting or group
    choices: tuple[str, ...] = ()  # as they are typed; none for an interval
    low: float = 0.0  # end of the interval
    high: float = 0.0  # end of the interval
    log: bool = False  # searched by orders of magnitude
    whole: bool = False  # integers only


def search_space(overrides: list[str]) -> tuple[list[str], list[Dimension]]:
    """Split a command line into what is fixed and what is searched, in Hydra's own words for sweeps.

    Args:
        overrides: such as `model=tiny`, `lora.rank=4,8,16` or `lr=tag(log,interval(1e-5,1e-3))`.

    Raises:
        UserError: if a key or a value, or an interval's end, is one that no job could run with.
    """
    fixed: list[str] = []
    dimensions: list[Dimension] = []
    for override in parse_overrides(overrides):
        line = override.input_line or ""
        if not override.is_sweep_override():
            fixed.append(line)
        elif override.is_interval_sweep():
            dimensions.append(_interval(override))
        else:
            key = line.split("=", 1)[0]
            values = (value.split("=", 1)[1] for value in sweep_values(override))
            dimensions.append(Dimension(key, choices=tuple(dict.fromkeys(values))))  # one that is named twice is one
    first = {d.key: f"{d.key}={d.choices[0] if d.choices else _typed(d, d.low)}" for d in dimensions}
    for dimension in dimensions:
        ends = dimension.choices or (_typed(dimension, dimension.low), _typed(dimension, dimension.high))
        for end in ends:
            compose_job([*fixed, *(first | {dimension.key: f"{dimension.key}={end}"}).values()])
    return fixed, dimensions


def _interval(override: Override) -> Dimension:
    sweep: Any = override.value()
    low, high = sweep.start, sweep.end
    if low is None or high is None or not low < high:
        raise UserError(f"{override.input_line}: an interval needs two ends, the smaller first")
    log = "log" in sweep.tags
    if log and low <= 0:
        raise UserError(f"{override.input_line}: an interval searched by orders of magnitude must begin above 0")
    whole = isinstance(low, int) and isinstance(high, int)
    return Dimension(override.key_or_group, low=float(low), high=float(high), log=log, whole=whole)


def _typed(dimension: Dimension, value: float) -> str:
    return str(int(value)) if dimension.whole else repr(float(value))

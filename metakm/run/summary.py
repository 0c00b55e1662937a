"""A test's result in words."""

from __future__ import annotations

from metakm.config import RunConfig
from metakm.strategies import Strategy
from metakm.strategies.registry import strategy_class

SPLIT_NAMES = {"val": "meta-validation", "test": "meta-test"}


def format_metric(algo: str, value: float, width: float | None = None, sign: str = "") -> str:
    """An accuracy in percent, or a strategy's own metric as it is; with the half-width of its interval, if known."""
    factor, digits, unit = (1, "4g", "") if _own_metric(algo) else (100, "2f", " %")
    interval = "" if width is None else f" +- {factor * width:.{digits}}"
    return f"{factor * value:{sign}.{digits}}{interval}{unit}"


def summary(config: RunConfig, accuracy: float, ci95: float, ending: str, tested: str = SPLIT_NAMES["test"]) -> str:
    """One line: the run, its accuracy or own metric on the split called `tested`, and `ending`."""
    c = config
    return (
        f"{c.algo} {c.dataset} {c.ways}-way {c.shots}-shot ({c.preset}, seed {c.seed}, batch norm {c.bn_mode}): "
        f"{tested} {'metric' if _own_metric(c.algo) else 'accuracy'} {format_metric(c.algo, accuracy, ci95)} "
        f"(95 % interval over {c.eval_tasks} tasks), {ending}"
    )


def _own_metric(algo: str) -> bool:
    return strategy_class(algo).metric is not Strategy.metric

"""`python -m metakm.search`: choose hyper-parameters on meta-validation."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

from metakm.cli.exit_code import REPEAT, exit_code
from metakm.cli.signals import StopRequest
from metakm.errors import missing_extra
from metakm.io.figure import import_matplotlib
from metakm.learning.malloc import keep_freed_memory
from metakm.search.options import parse_search
from metakm.search.plan import make_plan


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done or in use by another process, 1 a file not written, 2 a user error, 130 interrupted."""
    return exit_code(lambda: _run(arguments), REPEAT)


def _run(arguments: Sequence[str] | None) -> int:
    options, rest = parse_search(sys.argv[1:] if arguments is None else list(arguments))
    if importlib.util.find_spec("optuna") is None:
        raise missing_extra("optuna", "search", "a search")
    import_matplotlib("the page of a search")
    keep_freed_memory()
    plan = make_plan(options, rest)
    with StopRequest() as stop:
        from metakm.search.worker import Worker  # imports Optuna

        return Worker(plan, stop).work()


if __name__ == "__main__":
    sys.exit(main())

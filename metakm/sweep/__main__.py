"""`python -m metakm.sweep`: run strategies x settings x seeds; resumes."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

from metakm.cli.exit_code import INTERRUPTED, REPEAT, exit_code
from metakm.cli.progress import duration, log_line
from metakm.cli.signals import StopRequest
from metakm.fields import require_folder
from metakm.sweep.estimate import estimate
from metakm.sweep.messages import counts_text, outcome_text, plan_text
from metakm.sweep.options import parse_sweep
from metakm.sweep.plan import Planned, expand, inspect, make_plan
from metakm.sweep.pool import Pool
from metakm.sweep.status import status_text
from metakm.sweep.sweeper import Sweeper


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 all done or in use by another process, 1 a run failed, 2 a user error, 130 interrupted."""
    return exit_code(lambda: _run(arguments), REPEAT)


def _run(arguments: Sequence[str] | None) -> int:
    options, rest = parse_sweep(sys.argv[1:] if arguments is None else list(arguments))
    configs = expand(options, rest)
    require_folder(configs[0].out, "out")
    if options.status:
        print(status_text([inspect(config) for config in configs], options.jobs))  # noqa: T201
        return 0
    pool = Pool(options, _log_folder(configs[0].out))
    plan = make_plan(configs)
    with StopRequest() as stop:
        return _show(plan, pool, stop) if options.dry_run else _work(plan, pool, stop)


def _show(plan: list[Planned], pool: Pool, stop: StopRequest) -> int:
    if pool.threads:
        torch.set_num_threads(pool.threads)
    with pool.environment(plan[0].config.device):
        plan, seconds = estimate(plan, stop)
    jobs = max(1, min(pool.size, sum(p.missing for p in plan)))
    print(plan_text(plan))  # noqa: T201
    print(  # noqa: T201
        f"{counts_text(p.state for p in plan)}; about {duration(seconds)} of computing on this machine, "
        f"{duration(seconds / jobs)} with {jobs} at a time"
    )
    return 0


def _work(plan: list[Planned], pool: Pool, stop: StopRequest) -> int:
    log_line(plan_text(plan))
    sweeper = Sweeper(plan, pool, stop)
    sweeper.run()
    print(outcome_text(plan, sweeper.outcomes))  # noqa: T201
    if sweeper.stopping:
        log_line("Interrupted. Repeat the same command to continue.")
        return INTERRUPTED
    good = all(outcome.kind in ("done", "in use") for outcome in sweeper.outcomes.values())
    return 0 if good and not any(p.state == "blocked" for p in plan) else 1


def _log_folder(out: Path) -> Path:
    """A new folder for the logs of this sweep."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%f")
    return out.resolve() / ".sweep" / f"{stamp}-{socket.gethostname()}-{os.getpid()}"


if __name__ == "__main__":
    sys.exit(main())

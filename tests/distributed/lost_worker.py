"""`metakm.run` in float64, with 4 seconds of patience, in processes that kill themselves (test_lost_processes.py).

The first argument is a list such as 0:1:3, which is: in the first start, process 1 after 3 iterations.
"""

import os
import signal
import sys

import torch

from metakm.distributed import watchdog as watch
from metakm.run.__main__ import main
from metakm.run.history import History

if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    watch.SILENT_BEATS = 8
    _, deaths, *arguments = sys.argv
    start, rank = (int(os.environ[name]) for name in ("TORCHELASTIC_RESTART_COUNT", "RANK"))
    step = History.step

    def step_or_die(history, loop):
        if f"{start}:{rank}:{loop.iteration}" in deaths.split(","):
            os.kill(os.getpid(), signal.SIGKILL)
        return step(history, loop)

    History.step = step_or_die
    sys.exit(main(arguments))

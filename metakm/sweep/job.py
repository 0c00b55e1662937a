"""One run as a job that can be sent to another process or machine."""

from __future__ import annotations

import contextlib
import os
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from metakm.cli.exit_code import INTERRUPTED
from metakm.cli.progress import log_line
from metakm.cli.signals import StopRequest
from metakm.config import RunConfig
from metakm.errors import UserError
from metakm.io.lock import InUseError
from metakm.learning.malloc import keep_freed_memory
from metakm.registry import load_plugin
from metakm.run.runner import Run

if TYPE_CHECKING:
    import submitit
    from submitit.helpers import DelayedSubmission


class JobOutcome(NamedTuple):
    """How a job ended, and why."""

    kind: Literal["done", "in use", "interrupted", "preempted", "failed"]
    note: str = ""


@dataclass(frozen=True)
class RunJob:
    """Train a run; called in the process that does so.

    The file `stop` requests a stop, and then SIGTERM does: a process that is just starting sees only the file.
    """

    config: RunConfig
    stop: Path
    on_cluster: bool = False  # keep CUDA_VISIBLE_DEVICES as it is where the job runs: a cluster assigns GPUs by it
    visible_devices: str | None = None  # else that of the sweep, which submitit's local executor replaces

    def __reduce__(self) -> tuple[Any, ...]:
        """As values: another process has the class of a plugin's options only once it has run the plugin."""
        return _received, (self.config.to_json(), self.stop, self.on_cluster, self.visible_devices)

    def __call__(self) -> JobOutcome:
        """Never raises: a debugger would open in submitit's debug executor."""
        keep_freed_memory()
        if not self.on_cluster:
            set_environment("CUDA_VISIBLE_DEVICES", self.visible_devices)
        try:
            with StopRequest(once=self.on_cluster) as stop:
                if self.stop.exists():
                    return JobOutcome("interrupted", "before it began")
                return _outcome(Run(self.config, stop).execute())
        except InUseError as error:
            return JobOutcome("in use", str(error))
        except (UserError, OSError) as error:
            log_line(f"error: {error}")
            return JobOutcome("failed", str(error))
        except KeyboardInterrupt:
            return JobOutcome("interrupted", "by a second Ctrl-C")
        except Exception as error:
            traceback.print_exc()
            return JobOutcome("failed", f"{type(error).__name__}: {error}")

    def checkpoint(self) -> DelayedSubmission:
        """What submitit requeues when the cluster preempts the job: the same run, which resumes."""
        from submitit.helpers import DelayedSubmission  # of an extra, as below

        return DelayedSubmission(self)


def _received(config: dict[str, Any], *rest: Any) -> RunJob:
    for plugin in config["plugin"]:
        load_plugin(plugin)
    return RunJob(RunConfig.from_json(config), *rest)


def result_of(job: submitit.Job[JobOutcome]) -> JobOutcome | None:
    """The result that a job has written; None if it has not, or not yet. Does not ask the cluster."""
    from submitit.core.utils import pickle_load

    with contextlib.suppress(OSError):
        job.paths.folder.chmod(job.paths.folder.stat().st_mode)  # as submitit does, so that NFS shows new files
    try:
        kind, result = pickle_load(job.paths.result_pickle)
    except FileNotFoundError:
        return None
    if kind == "error":  # the traceback of an error outside RunJob, such as a package that the node lacks
        return JobOutcome("failed", result.strip().rpartition("\n")[2])
    return JobOutcome(*result)


def set_environment(name: str, value: str | None) -> None:
    """Set a variable of this process; None removes it."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _outcome(code: int) -> JobOutcome:
    """Of the exit code of `Run.execute`."""
    if code == 0:
        return JobOutcome("done")
    return JobOutcome("interrupted") if code == INTERRUPTED else JobOutcome("failed", f"exit code {code}")

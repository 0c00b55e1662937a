"""One process of a search: it claims trials, one strategy after another, trains them, and writes the summary."""

from __future__ import annotations

import dataclasses

from metakm.cli.exit_code import INTERRUPTED
from metakm.cli.progress import log_line
from metakm.cli.signals import Stoppable
from metakm.errors import UserError, counted
from metakm.run.summary import format_metric
from metakm.search.page import write_page
from metakm.search.plan import SearchPlan, StrategySearch, require_buildable
from metakm.search.records import read_records, winner, write_csv
from metakm.search.space import with_values
from metakm.search.studies import Claimed, Studies
from metakm.search.trial import TrialOutcome, TrialRun


class Worker:
    """Works until it finds no more trials, or a stop is requested.

    Raises:
        UserError: the folder has another search, or cannot be written.
    """

    def __init__(self, plan: SearchPlan, stop: Stoppable) -> None:
        self.plan, self.stop = plan, stop
        self.studies = Studies(plan)
        self.quiet = plan.searches[0].config.quiet

    def work(self) -> int:
        """The exit code of the command."""
        left = list(self.plan.searches)
        while left and not self.stop.requested:
            left = [search for search in left if self.stop.requested or self._next(search)]
        with self.studies.alone():
            write_page(self.studies)
        if self.stop.requested:
            log_line("Interrupted. Repeat the same command to continue.")
            return INTERRUPTED
        print(self._result())  # noqa: T201
        return 0

    def _next(self, search: StrategySearch) -> bool:
        """Work on one trial; False if there is none."""
        claimed = self.studies.claim(search)
        if claimed is None:
            return False
        try:
            outcome = self._train(search, claimed)
            if outcome is not None:
                self.studies.finish(claimed, outcome)
                self._tell(search, claimed, outcome)
        finally:
            claimed.folder.release()
        with self.studies.alone():
            write_csv(self.studies.out, read_records(self.studies))
        return True

    def _train(self, search: StrategySearch, claimed: Claimed) -> TrialOutcome | None:
        options = self.plan.options
        try:
            config = with_values(search.config, claimed.values)
            config = dataclasses.replace(config, plugin=search.config.plugin)
            require_buildable(config)
        except UserError as error:  # each value is right, but they do not go together
            return TrialOutcome("refused", 0.0, {}, str(error))
        run = TrialRun(config, claimed.folder, options.tasks, sorted(set(options.test_steps)))

        def should_prune(iteration: int, accuracy: float) -> bool:
            return self.studies.should_prune(claimed, iteration, accuracy)

        return run.run(self.stop, should_prune, f"{search.algo}, trial {claimed.number}")

    def _tell(self, search: StrategySearch, claimed: Claimed, outcome: TrialOutcome) -> None:
        if self.quiet:
            return
        said = f"{outcome.state}: {outcome.note}" if outcome.note else outcome.state
        if outcome.state == "done":
            steps = outcome.best_steps
            said = f"{format_metric(search.algo, outcome.accuracies[steps].mean())} with {steps} inner steps"
        log_line(f"{search.algo}, trial {claimed.number} ({claimed.number + 1} of {self.plan.options.trials}): {said}")

    def _result(self) -> str:
        records = read_records(self.studies)
        lines = []
        for search in self.plan.searches:
            own = [record for record in records if record.algo == search.algo]
            open_ones = sum(record.state == "running" for record in own)
            best = winner(own)
            won = "none was measured"
            if best is not None and best.accuracy is not None:
                won = f"best {format_metric(search.algo, best.accuracy)}, trial {best.number}"
            others = f"; {open_ones} running in other processes" if open_ones else ""
            lines.append(f"{search.algo}: {counted(len(own), 'trial')}, {won}{others}")
        return "\n".join([*lines, f"Summary: {self.studies.out / 'README.md'}"])

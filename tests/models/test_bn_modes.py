"""Which images can influence a query's prediction, for each batch-norm mode and every strategy, in float64."""

import pytest
import torch
from small import CLASS_TRAINING, random_episodes, small_strategy

import metakm
from metakm.learning.inner_loop import evaluate_episodes, meta_loss

MODES = ["transductive", "support", "running", "frozen"]
PHASES = {"training": meta_loss, "evaluation": evaluate_episodes}
NOISE = 1e-12  # relative; a change of one image may change the order of a sum over others


class Case:
    """A strategy and episodes, and how much the first query of task 0 changes when one image does."""

    def __init__(self, algo, mode, phase, steps=2):
        self.strategy, self.phase, self.steps = small_strategy(algo, bn_mode=mode, filters=8), phase, steps
        self.strategy.track_statistics(random_episodes(seed=9).query_images)  # so that running averages matter
        self.strategy.train(phase == "training")
        self.before = self.logits(random_episodes())

    def logits(self, episodes):
        return PHASES[self.phase](self.strategy, episodes, inner_lr=0.1, inner_steps=self.steps).logits[0, 0]

    def influence(self, half, task, image):
        episodes = random_episodes()
        getattr(episodes, half)[task, image] += torch.rand(1, 14, 14, generator=torch.Generator().manual_seed(1))
        return ((self.logits(episodes) - self.before).abs().amax() / self.before.abs().amax()).item()


def queries_see_each_other(algo, mode, phase):
    """By definition of the modes: `running` uses the batch at hand while it trains. Reptile trains on the queries."""
    if phase == "training" and (mode == "running" or algo == "reptile"):
        return True
    return mode == "transductive"


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("algo", metakm.available_strategies())
def test_what_a_query_depends_on(algo, mode, phase):
    case = Case(algo, mode, phase)
    assert case.influence("query_images", 0, 0) > 1e-3, "on itself"
    for image in (0, 7) if phase == "evaluation" or algo not in CLASS_TRAINING else ():
        assert case.influence("support_images", 0, image) > 1e-6, "on each support image of its task"
    for image in (1, 11):  # of its own class and of another
        found = case.influence("query_images", 0, image)
        assert found > 1e-6 if queries_see_each_other(algo, mode, phase) else found < NOISE, "on another query"
    for half in ("support_images", "query_images"):
        assert case.influence(half, 1, 0) < NOISE, "on no image of another task"


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("algo", ["maml", "anil", "km"])
def test_without_inner_steps_support_images_count_in_support_mode_alone(algo, mode, phase):
    """The statistics' path by itself: nothing is learned from the support set."""
    found = Case(algo, mode, phase, steps=0).influence("support_images", 0, 7)
    assert found > 1e-6 if mode == "support" else found < NOISE


@pytest.mark.parametrize("algo", metakm.available_strategies())
def test_in_evaluation_a_query_is_predicted_the_same_alone_unless_transductive(algo):
    for mode in MODES:
        case, alone = Case(algo, mode, "evaluation"), random_episodes()
        alone.query_images, alone.query_labels = alone.query_images[:, :1], alone.query_labels[:, :1]
        difference = (case.logits(alone) - case.before).abs().amax() / case.before.abs().amax()
        assert (difference > 1e-6) == (mode == "transductive"), mode

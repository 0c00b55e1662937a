"""Meta-training steps: chunks, rates, clipping, schedule, divergence, state."""

import contextlib

import pytest
import torch
from loops import CPU, Sampler, config, learner_of, loop
from small import learned_parameters, small_strategy, strategies_with

import metakm
from metakm.distributed.processes import Processes
from metakm.learning.cuda_graphs import CudaGraphs
from metakm.learning.divergence import DivergedError
from metakm.learning.evaluation import accuracies
from metakm.learning.inner_loop import evaluate_episodes
from metakm.learning.memory import TooLittleMemoryError, automatic_chunk, device_memory, sharing, task_bytes
from metakm.learning.outer_loop import OuterLoop
from metakm.learning.phases import seconds_of, trial_phases
from metakm.models.resnet12 import ResNet12
from metakm.presets import preset_config


@pytest.mark.parametrize("algo", metakm.available_strategies())
@pytest.mark.parametrize("chunk", [1, 3])
def test_the_result_does_not_depend_on_the_chunk(algo, chunk):
    whole, parts = loop(algo), loop(algo, task_chunk=chunk)
    results = [whole.step(), parts.step()]
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-12)
    assert results[0].accuracy == pytest.approx(results[1].accuracy, rel=1e-12)
    gradients = [{n: p.grad for n, p in learned_parameters(each.learner.strategy).items()} for each in (whole, parts)]
    scale = torch.cat([g.flatten() for g in gradients[0].values()]).norm()
    for name, gradient in gradients[0].items():
        assert (gradient - gradients[1][name]).norm() <= 1e-12 * scale


def test_iteration_i_learns_from_its_own_episodes():
    indices = []

    class Spy(Sampler):
        def batch(self, index, tasks):
            indices.append((index, tasks))
            return super().batch(index, tasks)

    spied = loop(sampler=Spy())
    for _ in range(3):
        spied.step()
    assert indices == [(0, 4), (4, 4), (8, 4)]


def test_training_lowers_the_loss():
    class Same(Sampler):
        def batch(self, index, tasks):
            return super().batch(index - index, tasks)

    trained = loop("km", sampler=Same(), meta_lr=0.01)
    losses = [trained.step().loss for _ in range(10)]
    assert losses[-1] < 0.9 * losses[0]


def test_learned_rates_move_and_are_part_of_the_state():
    learned = loop("anil", learn_inner_lr=True)
    learned.step()
    assert len(learned.learner.inner_lr) == 2
    assert all(rate.item() != 0.4 for rate in learned.learner.inner_lr)
    other = loop("anil", learn_inner_lr=True)
    other.load_state(learned.state())
    assert [r.item() for r in other.learner.inner_lr] == [r.item() for r in learned.learner.inner_lr]
    assert loop("anil").learner.inner_lr == 0.4


@pytest.mark.parametrize("algo", strategies_with("first_head_lr"))
def test_rates_of_each_step_start_as_told_and_each_moves(algo):
    learned = loop(algo, learn_inner_lr=True, inner_lr_per_step=True, first_head_lr=7.0)
    names = [name for name, _ in learned.learner.strategy.adapted.named_parameters()]
    starts = dict(zip(names, [rate.tolist() for rate in learned.learner.inner_lr], strict=True))
    assert starts.pop(f"{learned.learner.strategy.head_prefix}weight") == [7.0, 0.4]
    assert all(start == [0.4, 0.4] for start in starts.values())
    learned.step()
    moved = dict(zip(names, learned.learner.inner_lr, strict=True))
    weight = moved[f"{learned.learner.strategy.head_prefix}weight"]
    assert weight[0] != 7.0
    assert weight[1] != 0.4
    assert weight[0] - 7.0 != weight[1] - 0.4


@pytest.mark.parametrize("algo", strategies_with("zero_head"))
def test_a_head_that_starts_at_zero_is_not_learned(algo):
    zero, free = loop(algo, zero_head=True), loop(algo)
    heads = [each.learner.strategy.head_parameters() for each in (zero, free)]
    with torch.no_grad():
        for parameter in (*heads[0].values(), *heads[1].values()):
            parameter.zero_()
    losses = [(zero.step().loss, free.step().loss) for _ in range(3)]
    assert losses[0][0] == losses[0][1]
    assert losses[2][0] != losses[2][1]
    assert all(parameter.count_nonzero() == 0 for parameter in heads[0].values())
    assert heads[1][f"{free.learner.strategy.head_prefix}weight"].count_nonzero() > 0
    pairs = zip(zero.learner.strategy.named_parameters(), small_strategy(algo).parameters(), strict=True)
    moves = ((p, q) for (name, p), q in pairs if p.count_nonzero() and "conv__bias" not in name)  # which cancels
    assert not any(torch.equal(p, q) for p, q in moves)


def test_rates_of_another_shape_are_refused():
    learned, other = loop(learn_inner_lr=True, inner_lr_per_step=True), loop(learn_inner_lr=True)
    with pytest.raises(RuntimeError, match=r"size mismatch for rates.0.*\[2\]"):
        learned.load_state(other.state())


@pytest.mark.parametrize("more", [{}, {"zero_head": True}, {"ema": 0.9, "multi_step_loss": 3}])
def test_a_loop_that_takes_up_a_state_goes_on_as_if_never_stopped(more):
    options = {"learn_inner_lr": True, "inner_lr_per_step": True, **more}
    unbroken, first, second = (loop(**options) for _ in range(3))
    expected = [unbroken.step() for _ in range(4)]
    assert [first.step() for _ in range(2)] == expected[:2]
    second.load_state(first.state())
    assert [second.step() for _ in range(2)] == expected[2:]
    for a, b in zip(unbroken.learner.strategy.parameters(), second.learner.strategy.parameters(), strict=True):
        assert torch.equal(a, b)
    evaluated = unbroken.model_state()
    assert all(torch.equal(tensor, evaluated[name]) for name, tensor in second.model_state().items())


def test_the_average_of_the_parameters_is_evaluated_and_does_not_change_the_training():
    plain, averaged = loop("anil", learn_inner_lr=True), loop("anil", learn_inner_lr=True, ema=0.3)
    expected = None
    for step in range(1, 4):
        assert averaged.step() == plain.step()
        decay = min(0.3, (1 + step) / (10 + step))
        before = expected or loop("anil", learn_inner_lr=True).model_state()
        expected = {name: decay * before[name] + (1 - decay) * value for name, value in plain.model_state().items()}
    state = averaged.model_state()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-12, atol=1e-14)
    weight = "strategy.adapted.weight"
    assert not torch.equal(state[weight], plain.model_state()[weight])
    tested = loop("anil", learn_inner_lr=True)
    tested.load_model_state(state)
    assert (averaged.accuracies(Sampler(), 4) == tested.accuracies(Sampler(), 4)).all()
    assert averaged.step() == plain.step(), "evaluation left the average in the parameters"


def test_learned_rates_stay_at_zero_or_above():
    options = {"learn_inner_lr": True, "inner_lr": 20.0, "meta_lr": 50.0}  # Adam's first step is the meta rate
    free, held = loop("km", **options), loop("km", **options, nonnegative_inner_lr=True)
    for each in (free, held):
        each.step()
    assert min(rate.item() for rate in free.learner.rates) < 0
    assert min(rate.item() for rate in held.learner.rates) == 0
    for a, b in zip(free.learner.rates, held.learner.rates, strict=True):
        assert b.item() == max(a.item(), 0.0)


def test_the_multi_step_loss_fades_into_the_loss_after_the_last_step():
    fading, last = loop(inner_steps=3, multi_step_loss=4), loop(inner_steps=3)
    weights = []
    for _ in range(5):
        weights.append(fading._step_weights())
        fading.step()
    assert weights[0] == pytest.approx([1 / 3] * 3)
    assert weights[2] == pytest.approx([1 / 6, 1 / 6, 2 / 3])
    assert weights[4] is None
    assert loop(inner_steps=3, multi_step_loss=4).step().loss != last.step().loss


def test_gradients_are_clipped_by_value():
    clipped, free = loop(grad_clip=1e-3), loop(grad_clip=0)
    pairs = zip(clipped.learner.strategy.parameters(), free.learner.strategy.parameters(), strict=True)
    clipped.step(), free.step()
    assert all(torch.equal(ours.grad, theirs.grad.clamp(-1e-3, 1e-3)) for ours, theirs in pairs)


def test_cosine_schedule_falls_from_the_meta_lr_to_zero():
    cosine, constant = loop(schedule="cosine", iterations=4), loop(schedule="constant", iterations=4)
    seen = []
    for _ in range(4):
        cosine.step()
        constant.step()
        seen.append(cosine.optimiser.param_groups[0]["lr"])
        assert constant.optimiser.param_groups[0]["lr"] == constant.config.meta_lr
    half = 0.5 * cosine.config.meta_lr
    assert seen == pytest.approx([2 * half, half * (1 + 2**-0.5), half, half * (1 - 2**-0.5)])


class OneBad(Sampler):
    """Episode `bad` of all has a query image that is not finite."""

    def __init__(self, bad):
        self.bad = bad

    def batch(self, index, tasks):
        episodes = super().batch(index, tasks)
        if self.bad in episodes.index:
            episodes.query_images[self.bad - index] = float("nan")
        return episodes


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_episode():
    broken, sound = loop(sampler=OneBad(6)), loop()
    assert broken.step() == sound.step()
    before = [p.clone() for p in broken.learner.strategy.parameters()]
    with pytest.raises(DivergedError, match="iteration 1, because of meta-training episode 6; try"):
        broken.step()
    assert all(torch.equal(a, b) for a, b in zip(before, broken.learner.strategy.parameters(), strict=True))
    assert broken.iteration == 1


def test_a_gradient_that_overflows_only_in_sum_blames_all_episodes(monkeypatch):
    answers = iter([False, True, True, True, True])  # the meta-batch, then each episode on its own
    monkeypatch.setattr("metakm.learning.outer_loop.is_finite", lambda *_: next(answers))
    with pytest.raises(DivergedError, match="episodes 0 to 3 together; try"):
        loop().step()


def real_allocator_error():
    try:
        torch.empty(2**50, dtype=torch.uint8)
    except RuntimeError as error:
        return error
    pytest.fail("expected this machine to have less than a petabyte")


OUT_OF_MEMORY = [MemoryError(), torch.cuda.OutOfMemoryError("CUDA out of memory"), real_allocator_error]


@pytest.fixture(params=OUT_OF_MEMORY, ids=["Python", "GPU", "CPU"])
def scarce(request, monkeypatch):
    """Memory for two tasks at a time; a function that sets for how many, and a list of what was tried."""
    error = request.param() if callable(request.param) else request.param
    room, tried = [2], []

    def limited(function):
        def checked(strategy, episodes, **options):
            tried.append(len(episodes))
            if len(episodes) > room[0]:
                raise error
            return function(strategy, episodes, **options)

        return checked

    monkeypatch.setattr("metakm.learning.learner.meta_loss", limited(metakm.meta_loss))
    monkeypatch.setattr("metakm.learning.evaluation.evaluate_episodes", limited(evaluate_episodes))
    return room, tried


def test_out_of_memory_halves_the_chunk_and_repeats_the_iteration(scarce, caplog):
    _, tried = scarce
    tight, wide = loop(meta_batch=6, task_chunk=5), loop(meta_batch=6, task_chunk=1)
    results = [tight.step(), tight.step()]
    assert tried == [5, 2, 2, 2, 2, 2, 2]
    assert caplog.messages == ["out of memory with 5 tasks at a time; continuing with 2"]
    assert tight.iteration == 2
    for result in results:
        assert result == pytest.approx(wide.step(), rel=1e-12)
    for a, b in zip(tight.learner.strategy.parameters(), wide.learner.strategy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_out_of_memory_with_one_task_is_an_error_with_advice(scarce):
    scarce[0][0] = 0
    tight = loop(task_chunk=4)
    with pytest.raises(TooLittleMemoryError, match=r"single task at a time; lower --queries"):
        tight.step()
    assert scarce[1] == [4, 2, 1]
    assert tight.iteration == 0


def test_evaluation_out_of_memory_goes_on_from_the_same_task(scarce):
    run = {"inner_lr": 0.4, "inner_steps": 2, "device": CPU, "dtype": torch.float64}
    strategy, seen = small_strategy("km"), []
    halved = accuracies(strategy, Sampler(), tasks=7, chunk=5, progress=seen.append, **run)
    assert seen == [2, 2, 2, 1]
    scarce[0][0] = 9
    assert (halved == accuracies(strategy, Sampler(), tasks=7, chunk=7, **run)).all()


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("no")])
def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("metakm.learning.learner.meta_loss", fail)
    with pytest.raises(type(error), match=str(error)):
        loop(task_chunk=4).step()


def test_running_statistics_move_with_training_and_not_with_evaluation():
    running = loop("maml", bn_mode="running")
    norm = running.learner.strategy.network.backbone.blocks[0].norm
    assert torch.equal(norm.running_mean, torch.zeros(3))
    running.step()
    after = norm.running_mean.clone()
    assert after.norm() > 0
    accuracies(
        running.learner.strategy,
        Sampler(),
        tasks=2,
        inner_lr=0.4,
        inner_steps=1,
        chunk=2,
        device=CPU,
        dtype=torch.float64,
    )
    assert torch.equal(norm.running_mean, after)


def test_accuracies_do_not_depend_on_the_chunk_and_restore_the_mode():
    strategy, seen = small_strategy("km"), []
    strategy.train()
    run = {"tasks": 5, "inner_lr": 0.4, "inner_steps": 2, "device": CPU, "dtype": torch.float64}
    whole = accuracies(strategy, Sampler(), chunk=5, **run)
    parts = accuracies(strategy, Sampler(), chunk=2, progress=seen.append, **run)
    assert whole.shape == (5,)
    assert (whole == parts).all()
    assert seen == [2, 2, 1]
    assert strategy.training


def test_a_sweep_s_runs_divide_the_memory_of_what_they_share(monkeypatch):
    gpu = torch.device("cuda")
    assert (sharing(CPU, 1), sharing(CPU, 2), sharing(gpu, 2)) == (1, 2, 1)
    monkeypatch.setenv("METAKM_RUNS_HERE", "5")
    assert (sharing(CPU, 1), sharing(CPU, 2), sharing(gpu, 2)) == (5, 10, 5)
    memory = 20 * loop().chunks.task_bytes  # ten tasks in half of it
    monkeypatch.setattr("metakm.learning.memory.device_memory", lambda _: memory)
    assert loop(task_chunk=None).chunks.training == 2
    monkeypatch.delenv("METAKM_RUNS_HERE")
    assert loop(task_chunk=None).chunks.training == 4, "no more than the meta-batch"


def test_automatic_chunk_is_bounded_by_memory_and_by_the_meta_batch(monkeypatch):
    chunks = []
    for memory in (1, 300, 10**6):
        monkeypatch.setattr("metakm.learning.memory.device_memory", lambda _device, memory=memory: memory)
        chunks.append(automatic_chunk(50.0, 4, CPU))
    assert chunks == [1, 3, 4]


@pytest.mark.parametrize(("limit", "expected"), [("1000", 1000), ("max", 8000), (None, 8000), ("99999", 8000)])
def test_memory_is_that_of_the_container_where_it_is_less(monkeypatch, tmp_path, limit, expected):
    file = tmp_path / "memory.max"
    if limit is not None:
        file.write_text(limit + "\n")
    monkeypatch.setattr("metakm.learning.memory.CONTAINER_LIMIT", file)
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 8, "SC_PHYS_PAGES": 1000}.get)
    assert device_memory(CPU) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"MEM_PER_NODE": "300"}, 300 << 20),
        ({"MEM_PER_CPU": "100", "CPUS_ON_NODE": "2"}, 200 << 20),
        ({"MEM_PER_NODE": "0"}, 1 << 30),
        ({"MEM_PER_NODE": "9999"}, 1 << 30),
        ({}, 1 << 30),
    ],
)
def test_memory_is_that_of_a_slurm_job_where_it_is_less(monkeypatch, tmp_path, given, expected):
    for name in ("MEM_PER_NODE", "MEM_PER_CPU", "CPUS_ON_NODE"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr("metakm.learning.memory.CONTAINER_LIMIT", tmp_path / "absent")
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 1 << 30}.get)
    assert device_memory(CPU) == expected


def test_memory_of_a_task_grows_with_its_images_and_steps():
    strategy = small_strategy("km")

    def estimate(**changes):
        return task_bytes(strategy, (1, 14, 14), config(**changes), CPU)

    assert estimate(inner_steps=4) > estimate(inner_steps=2)
    assert estimate(shots=4) > estimate()
    assert estimate(queries=6) > estimate()


def test_a_trial_changes_nothing():
    tried, untouched = loop("km", bn_mode="running"), loop("km", bn_mode="running")
    before = {name: tensor.clone() for name, tensor in tried.learner.state_dict().items()}
    assert tried.trial_seconds() > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in tried.learner.state_dict().items())
    assert tried.step() == untouched.step()


def test_a_trial_leaves_the_buffers_that_a_network_updates_itself_as_they_are():
    class Counting(torch.nn.Module):
        def __init__(self, inside):
            super().__init__()
            self.inside, self.out_features = inside, inside.out_features
            self.register_buffer("seen", torch.zeros(()))
            self.register_buffer("also", torch.zeros(()), persistent=False)

        def forward(self, images):
            self.seen = self.seen + images.detach().mean()
            self.also += 1
            return self.inside(images)

    tried = loop("anil")
    strategy = tried.learner.strategy
    strategy.backbone = Counting(strategy.backbone)
    assert tried.trial_seconds() > 0
    assert (strategy.backbone.seen, strategy.backbone.also) == (0, 0)
    tried._meta_gradient(tried.sampler.batch(0, 4))
    assert strategy.backbone.seen != 0
    assert strategy.backbone.also > 0


def test_each_way_to_differentiate_is_tried_for_its_share_of_the_iterations(monkeypatch):
    tried = []
    monkeypatch.setattr(OuterLoop, "trial_seconds", lambda loop: tried.append(loop.iteration) or 1.0 + loop.iteration)
    trained = loop("maml", second_order_from=0.5, multi_step_loss=2)
    assert trial_phases(trained) == [(0, 2, 1.0), (2, 5, 3.0), (5, 10, 6.0)]
    assert tried == [5, 2, 0]
    assert trained.iteration == 0
    trained.iteration = 4
    assert (phases := trial_phases(trained)) == [(4, 5, 5.0), (5, 10, 6.0)]
    assert seconds_of(phases) == 35.0
    assert seconds_of(phases, done=8) == 12.0
    trained.iteration = 10
    assert trial_phases(trained) == []
    assert trial_phases(loop("maml")) == [(0, 10, 1.0)]


def test_running_statistics_are_those_of_the_queries_at_the_averaged_weights():
    averaged = loop("maml", bn_mode="running", ema=0.5)
    kernels = averaged.learner.strategy.network.backbone.blocks[0].conv
    before = [p.detach().clone() for p in kernels.parameters()]
    averaged.step()
    weight, bias = (2 / 11 * a + 9 / 11 * b.detach() for a, b in zip(before, kernels.parameters(), strict=True))
    images = averaged.sampler.batch(0, 4).query_images.flatten(0, 1).to(weight.dtype)
    features = torch.nn.functional.conv2d(images, weight, bias, stride=2, padding=1)
    norm = averaged.learner.strategy.network.backbone.blocks[0].norm
    torch.testing.assert_close(norm.running_mean, norm.momentum * features.mean((0, 2, 3)), rtol=1e-9, atol=1e-12)


def test_a_backbone_that_does_not_fit_the_images_is_named():
    with pytest.raises(metakm.UserError, match="images of 1 channels, got 3"):
        task_bytes(small_strategy("km"), (3, 14, 14), config(), CPU)
    with pytest.raises(metakm.UserError, match="fit images of"):
        task_bytes(small_strategy("km", downsample="pool", size=16), (1, 32, 32), config(), CPU)


def test_parameters_frozen_after_the_start_stay_as_they_are():
    frozen, free = loop("maml"), loop("maml")
    kept = frozen.learner.strategy.network.backbone.blocks[0].conv.weight.requires_grad_(False)
    before = kept.clone()
    frozen.step()
    free.step()
    assert torch.equal(kept, before)
    assert not torch.equal(free.learner.strategy.network.backbone.blocks[0].conv.weight, before)


def test_a_gradient_that_is_one_number_in_memory_is_clipped_as_any():
    """Of a sum, say: autograd gives it expanded, and nothing may be written to that."""
    clipped = loop("anil", grad_clip=0.5)
    outer_loss = clipped.learner.strategy.outer_loss

    def with_penalty(inner, episodes):
        loss, logits = outer_loss(inner, episodes)
        return loss + clipped.learner.strategy.scale.sum(), logits

    clipped.learner.strategy.outer_loss = with_penalty
    clipped.learner.strategy.scale = torch.nn.Parameter(torch.ones(3))
    again = OuterLoop(clipped.learner, clipped.sampler, clipped.config, CPU)
    again.step()
    assert again.learner.strategy.scale.grad.tolist() == [0.5] * 3


def test_running_out_of_memory_forgets_the_graphs(monkeypatch):
    """A recording of the larger chunk would keep the memory that is wanting."""
    small = loop(task_chunk=4)
    small._graphs = CudaGraphs()
    small._graphs._graphs[4] = None
    asked = []

    def too_large(_, given):
        asked.append((len(given), dict(small._graphs._graphs)))
        if len(given) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return small._differentiate(given)

    monkeypatch.setattr(CudaGraphs, "run", lambda _, differentiate, given: too_large(differentiate, given))
    small.step()
    assert asked == [(4, {4: None}), (2, {}), (2, {})]


def test_a_cpu_that_ran_out_of_memory_tests_as_few_tasks_at_once_as_it_trains():
    small = loop(task_chunk=None)
    small.chunks.training = 1
    asked = []

    class Counting(Sampler):
        def batch(self, index, tasks):
            asked.append(tasks)
            return super().batch(index, tasks)

    small.accuracies(Counting(), 3)
    assert asked == [1, 1, 1]


class Rank(Processes):
    """One of several processes whose sums are its own part."""

    def sum_gradients(self, _parameters):
        pass

    def sum(self, *values):
        return values

    def raise_together(self, *_kinds):
        return contextlib.nullcontext()


@pytest.mark.float32
def test_running_statistics_of_networks_with_dropout_are_the_same_in_all_processes():
    """With three tasks on two processes, one has drawn more random numbers for dropout than the other."""
    held = []
    for rank in (0, 1):
        torch.manual_seed(0)
        backbone = ResNet12(1, "running", widths=(4, 4, 8, 8))
        found = config(meta_batch=3, bn_mode="running")
        sampler = metakm.EpisodeSampler(metakm.load_dataset("glyphs", split="train"), 3, 1, 2)
        learner = learner_of(metakm.make_strategy("protonet", backbone, 3), found)
        loop_of_rank = OuterLoop(learner, sampler, found, CPU, Rank(rank, 2))
        loop_of_rank._apply = lambda: None  # whose gradients are not summed here
        loop_of_rank.step()
        held.append(dict(loop_of_rank.learner.named_buffers()))
    assert held[0]
    assert all(torch.equal(tensor, held[1][name]) for name, tensor in held[0].items())


def test_options_that_would_change_nothing_are_refused():
    with pytest.raises(metakm.UserError, match=r"--protonet\.distance cosine with --protonet\.scale"):
        preset_config(algo="protonet", **{"protonet.scale": 5.0})
    with pytest.raises(metakm.UserError, match="--inner-steps above 1 with --multi-step-loss"):
        preset_config(algo="maml", multi_step_loss=5, inner_steps=1)

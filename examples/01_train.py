"""Meta-train in a loop of your own, and test on classes never seen before.

Takes seconds on a CPU; more iterations and `filters=64` give a better model.
"""

import torch

import metakm

WAYS, SHOTS, ITERATIONS = 5, 1, 40


def sampler(split: str) -> metakm.EpisodeSampler:
    """Episodes of drawn characters; the splits have different classes."""
    return metakm.EpisodeSampler(metakm.load_dataset("glyphs", split=split), WAYS, SHOTS, queries=5)


def main() -> None:
    """Train KM with Adam."""
    torch.manual_seed(0)
    train, test = sampler("train"), sampler("test")
    backbone = metakm.Conv4(in_channels=1, filters=16)
    learner = metakm.Learner("km", backbone=backbone, ways=WAYS, inner_lr=0.5, inner_steps=3)
    optimizer = torch.optim.Adam(learner.meta_parameters(), lr=3e-3)
    print(f"before: {learner.evaluate(test, tasks=50).accuracy:.1%}")
    for iteration in range(ITERATIONS):
        loss = learner.meta_loss(train.batch(index=4 * iteration, tasks=4)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"after:  {learner.evaluate(test, tasks=50).accuracy:.1%}")


if __name__ == "__main__":
    main()

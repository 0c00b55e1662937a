"""Meta-train in a loop of your own, and test on classes never seen before.

Takes seconds on a CPU; more iterations and `filters=64` give a better model.
"""

import torch

import metakm

WAYS, SHOTS, INNER_LR, INNER_STEPS, ITERATIONS = 5, 1, 0.5, 3, 40


def sampler(split: str) -> metakm.EpisodeSampler:
    """Episodes of drawn characters; the splits have different classes."""
    return metakm.EpisodeSampler(metakm.load_dataset("glyphs", split=split), WAYS, SHOTS, queries=5)


def accuracy(strategy: metakm.Strategy) -> float:
    """Mean accuracy on the same 50 test episodes, after adaptation to each."""
    episodes = sampler("test").batch(index=0, tasks=50)
    tested = metakm.evaluate_episodes(strategy.eval(), episodes, inner_lr=INNER_LR, inner_steps=INNER_STEPS)
    strategy.train()
    return tested.accuracy.mean().item()


def main() -> None:
    """Train KM with Adam."""
    torch.manual_seed(0)
    train = sampler("train")
    strategy = metakm.make_strategy("km", backbone=metakm.Conv4(in_channels=1, filters=16), ways=WAYS)
    optimizer = torch.optim.Adam(strategy.parameters(), lr=3e-3)
    print(f"before: {accuracy(strategy):.1%}")
    for iteration in range(ITERATIONS):
        episodes = train.batch(index=4 * iteration, tasks=4)
        loss = metakm.meta_loss(strategy, episodes, inner_lr=INNER_LR, inner_steps=INNER_STEPS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"after:  {accuracy(strategy):.1%}")


if __name__ == "__main__":
    main()

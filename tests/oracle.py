"""Independent, slow, plain PyTorch: one task at a time, written from the papers' equations without metakm's layers.

Parameters travel as a dict under the names of `Classifier`: `backbone.blocks.<i>.{conv,norm}.{weight,bias}`, `head.*`.
"""

import higher
import torch
import torch.nn.functional as F
from torch import nn


def conv4(parameters, images, downsample, reference=None, frozen=False):
    """Logits [n, N] of images [n, C, H, W].

    Norms use the statistics of `reference` images where given, mean 0 and variance 1 where frozen, else the batch's.
    """
    if reference is not None:
        n = len(reference)
        return _conv4(parameters, torch.cat([reference, images]), downsample, slice(0, n), frozen)[n:]
    return _conv4(parameters, images, downsample, slice(None), frozen)


def _conv4(parameters, images, downsample, rows, frozen):
    x = images
    for i in range(4):
        p = {k.split(f"blocks.{i}.")[1]: v for k, v in parameters.items() if f"blocks.{i}." in k}
        x = F.conv2d(x, p["conv.weight"], p["conv.bias"], stride=2 if downsample == "stride" else 1, padding=1)
        mean = 0.0 if frozen else x[rows].mean((0, 2, 3), keepdim=True)
        variance = torch.tensor(1.0) if frozen else ((x[rows] - mean) ** 2).mean((0, 2, 3), keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-5)
        x = torch.relu(x * p["norm.weight"][:, None, None] + p["norm.bias"][:, None, None])
        x = F.max_pool2d(x, 2) if downsample == "pool" else x
    features = x.mean((2, 3)) if downsample == "stride" else x.flatten(1)
    return features @ parameters["head.weight"].T + parameters["head.bias"]


def modulate(kernel, u1, u2):
    """Eq. 3 with Eq. 4's two layers, one row of k_h*k_w values at a time."""
    rows = kernel.reshape(-1, kernel.shape[2] * kernel.shape[3])
    return torch.stack([u2 @ torch.tanh(u1 @ row) for row in rows]).reshape(kernel.shape)


def unrolled_loss(predict, adapted, episodes, lr, steps, first_order=False, weights=None):
    """Mean query loss over tasks, by `torch.autograd.grad` alone; with `weights` their sum over the inner steps.

    `lr` is a number, or a dict with a tensor for each adapted parameter; or a list of either, one for each step.
    `predict(adapted, images)` gives logits [n, N]; the query call also gets `reference=support images`.
    """
    losses = []
    of_steps = [
        r if isinstance(r, dict) else dict.fromkeys(adapted, r) for r in (lr if isinstance(lr, list) else [lr] * steps)
    ]
    for t in range(len(episodes.support_images)):
        fast, after = dict(adapted), []
        for rates in of_steps:
            loss = F.cross_entropy(predict(fast, episodes.support_images[t]), episodes.support_labels[t])
            grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
            grads = [g.detach() for g in grads] if first_order else grads
            fast = {k: v - rates[k] * g for (k, v), g in zip(fast.items(), grads, strict=True)}
            logits = predict(fast, episodes.query_images[t], reference=episodes.support_images[t])
            after.append(F.cross_entropy(logits, episodes.query_labels[t]))
        losses.append(sum(w * loss for w, loss in zip(weights, after, strict=True)) if weights else after[-1])
    return torch.stack(losses).mean()


class PerTaskModule(nn.Module):
    """`predict` as a module that owns the adapted parameters, for `higher` as its users write it."""

    def __init__(self, predict, adapted):
        super().__init__()
        self.names = list(adapted)
        self.values = nn.ParameterList(adapted.values())
        self.predict = predict

    def forward(self, images):
        return self.predict(dict(zip(self.names, self.values, strict=True)), images)


def higher_loss(predict, adapted, episodes, lr, steps):
    """Mean query loss over tasks, one task at a time through `higher.innerloop_ctx`."""
    module = PerTaskModule(predict, adapted)
    losses = []
    for t in range(len(episodes.support_images)):
        sgd = torch.optim.SGD(module.parameters(), lr=lr)
        with higher.innerloop_ctx(module, sgd, copy_initial_weights=False) as (patched, optimiser):
            for _ in range(steps):
                optimiser.step(F.cross_entropy(patched(episodes.support_images[t]), episodes.support_labels[t]))
            losses.append(F.cross_entropy(patched(episodes.query_images[t]), episodes.query_labels[t]))
    return torch.stack(losses).mean()

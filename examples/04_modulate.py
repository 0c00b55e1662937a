"""Modulate a torchvision network, train the little that is left, and save the task as a pack of a few kilobytes."""

from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from metakm.modulation import load_pack, merge, modulate, save_pack, trainable_report

CLASSES = ("ant", "bee", "cat")


def photographs(each: int) -> tuple[Tensor, Tensor]:
    """Drawn stand-ins: noise around one colour a class, `[n, 3, 32, 32]`, with labels `[n]`."""
    labels = torch.arange(len(CLASSES)).repeat(each)
    return 0.5 * torch.rand(len(labels), 3, 32, 32) + 0.5 * torch.eye(3)[labels][:, :, None, None], labels


def main() -> None:
    """Train on one task, save it, and load it into a fresh copy of the base network."""
    torch.manual_seed(0)
    base = torchvision.models.resnet18(weights=None, num_classes=len(CLASSES))  # use weights="DEFAULT" for a real base
    start = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = modulate(base, classifier="fc")
    trainable_report(model)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    images, labels = photographs(each=8)
    for step in range(10):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item():.3f}")
    save_pack(model, "insects.safetensors", task="insects", classes=CLASSES)
    print(f"the pack has {Path('insects.safetensors').stat().st_size // 1000} kB")

    fresh = torchvision.models.resnet18(weights=None, num_classes=len(CLASSES))
    fresh.load_state_dict(start)
    load_pack(fresh, "insects.safetensors")  # modulates the base as the pack says
    plain, trained = merge(fresh), model.eval()
    print(f"largest difference after merging: {(plain(images) - trained(images)).abs().max().item():.1e}")


if __name__ == "__main__":
    main()

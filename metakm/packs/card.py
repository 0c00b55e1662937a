"""The model card of a pack."""

from __future__ import annotations

from collections import Counter

from metakm.io.markdown import markdown_table
from metakm.modulation.attachment import within
from metakm.modulation.pack_file import Pack

_MOST = 50  # classes that are listed
_MODULATION = """```python
import metakm.modulation

pack = metakm.modulation.load_pack(model, "pack.safetensors")  # model: the base network
```"""
_PHOTOS = """```bash
python -m metakm predict pack.safetensors photo.jpg
```

```python
import metakm

print(metakm.load_classifier("pack.safetensors").predict(["photo.jpg"]))
```"""


def values_by_part(pack: Pack) -> Counter[str]:
    """How many values of a pack are the classifier's, the modulators' and the norms'; or of the whole network."""
    values, classifier = Counter[str](), pack.modulation["classifier"]
    for name, tensor in pack.tensors.items():
        part = "classifier" if within(name, classifier) else "modulators" if ".modulator." in name else "norms"
        values["network" if classifier == "" else part] += tensor.numel()
    return values


def model_card(pack: Pack, size: int) -> str:
    """Markdown with the metadata that the Hugging Face Hub reads; `size` in bytes, of the file."""
    base = pack.photos.get("base") or pack.meta_trained.get("base")
    metadata = ["library_name: metakm", "pipeline_tag: image-classification"]
    metadata += ["tags:", "- kernel-modulation"] if pack.modulation["layers"] else []
    rows = [
        ("base network", f"`{base}`" if isinstance(base, str) else "(not named)"),
        ("base's fingerprint", f"`{pack.base}`"),
        ("modulated convolutions", f"{len(pack.modulation['layers'])}"),
        ("parameters", f"{sum(tensor.numel() for tensor in pack.tensors.values()):,}"),
        ("size", f"{size:,} bytes"),
        *[(name, f"{value:g}") for name, value in sorted(pack.metrics.items())],
    ]
    listed = ", ".join(_inline(name) for name in pack.classes[:_MOST])
    more = f", and {len(pack.classes) - _MOST} more" if len(pack.classes) > _MOST else ""
    classes = f"\n{len(pack.classes)} classes: {listed}{more}.\n" if pack.classes else ""
    listing = ", ".join(_part(part, pack) for part in sorted(values_by_part(pack)))
    parts = " and ".join(listing.rsplit(", ", 1))
    table = markdown_table(("", ""), rows)
    return f"""---
{chr(10).join(metadata)}
---

# {_inline(pack.task) or "A task pack"}

A task pack of metakm: the {parts} of one task, for a base network that is not in this repository.
{classes}
{table}

{_PHOTOS if pack.photos else _MODULATION}
"""


def _part(part: str, pack: Pack) -> str:
    names = {"norms": "norm parameters", "network": "whole network"}
    if pack.modulation["modulator"] == "KernelModulator":
        names["modulators"] = "kernel modulators"
    return names.get(part, part)


def _inline(text: str) -> str:
    """One line of text in which Markdown finds nothing to format."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in " ".join(text.split()))

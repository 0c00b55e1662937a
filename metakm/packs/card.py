"""The model card of a pack."""

from __future__ import annotations

import json

from metakm.modulation.pack_file import Pack

_MOST = 50  # classes that are listed


def model_card(pack: Pack, size: int) -> str:
    """Markdown with the metadata that the Hugging Face Hub reads; `size` in bytes, of the file."""
    base = pack.photos.get("base")
    metadata = ["library_name: metakm", "pipeline_tag: image-classification", "tags:", "- kernel-modulation"]
    rows = [
        ("base network", f"`{base}`" if isinstance(base, str) else "(not named)"),
        ("base's fingerprint", f"`{pack.base}`"),
        ("modulated convolutions", f"{len(pack.modulation['layers'])}"),
        ("values", f"{sum(tensor.numel() for tensor in pack.tensors.values()):,}"),
        ("size", f"{size:,} bytes"),
        *[(name, f"{value:g}") for name, value in sorted(pack.metrics.items())],
    ]
    listed = ", ".join(_inline(name) for name in pack.classes[:_MOST])
    more = f", and {len(pack.classes) - _MOST} more" if len(pack.classes) > _MOST else ""
    classes = f"\n{len(pack.classes)} classes: {listed}{more}.\n" if pack.classes else ""
    table = "\n".join(["| | |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)])
    return f"""---
{chr(10).join(metadata)}
---

# {_inline(pack.task) or "A task pack"}

A task pack of metakm: the kernel modulators, norm parameters and classifier of one task, for a base network that is not
in this repository.
{classes}
{table}

```python
import metakm.modulation

pack = metakm.modulation.load_pack(model, {json.dumps("pack.safetensors")})  # model: the base network
```
"""


def _inline(text: str) -> str:
    """One line of text in which Markdown finds nothing to format."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in " ".join(text.split()))

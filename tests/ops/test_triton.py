"""The Triton kernels equal PyTorch in float64, derivatives included; in Triton's interpreter, and on a GPU if any."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metakm.ops.triton import has_kernels

WORKER = Path(__file__).with_name("triton_cases.py")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def errors(device, **variables):
    done = subprocess.run(
        [sys.executable, str(WORKER), device], capture_output=True, text=True, env={**os.environ, **variables}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def assert_small(found):
    """Single precision; variances of numbers far from zero lose some of it, in PyTorch as well."""
    assert len(found) > 60
    limits = {case: 2e-3 if "far-from-zero" in case else 2e-5 for case in found}
    assert {case: e for case, e in found.items() if isinstance(e, str) or not e < limits[case]} == {}


@pytest.mark.slow
@needs_triton
def test_the_kernels_equal_float64_in_the_interpreter():
    assert_small(errors("cpu", TRITON_INTERPRET="1"))


@needs_triton
@needs_gpu
def test_the_kernels_equal_float64_on_the_gpu():
    assert_small(errors("cuda"))


def test_a_cpu_does_without_kernels():
    assert not has_kernels(torch.ones(2, dtype=torch.float32))

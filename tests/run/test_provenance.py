import subprocess
import sys

import torch

from metakm.run.provenance import peak_memory_mb

CODE = """
import torch
from metakm.run.provenance import peak_memory_mb
print(peak_memory_mb(torch.device("cpu")))
"""


def test_the_peak_memory_of_a_process_is_not_that_of_its_parent():
    held = b"x" * 500_000_000
    assert peak_memory_mb(torch.device("cpu")) > 500
    child = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    del held
    assert 50 < float(child.stdout) < 900

"""Moments of 50,000 images take no more memory than those of 5,000."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys
import torch
from genlab.eval.collect import collect
from genlab.eval.extractors.base import build_extractor
from genlab.eval.metrics.base import Need
from genlab.eval.samples import Drawn, Samples

class Noise(Samples):
    count, image_shape, labels, class_names = int(sys.argv[1]), (3, 32, 32), None, None
    def read(self, start, stop):
        generator = torch.Generator().manual_seed(start)
        shape = (stop - start, 3, 32, 32)
        return Drawn(images=torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))
    def identity(self):
        return {"noise": self.count}

torch.set_num_threads(1)
found = collect(Noise(), build_extractor("cnn-fmnist"), [Need("moments", "features")])
assert found.features.moments["features"].count == Noise.count
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images() -> None:
    peaks = []
    for count in (5_000, 50_000):
        command = [sys.executable, "-c", CODE, str(count)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(result.stdout) / 2**10)
    # The images alone are 147 MiB, their features 24 MiB; allocators breathe by a few MiB.
    assert peaks[1] - peaks[0] < 20, f"peaks {peaks} MiB"

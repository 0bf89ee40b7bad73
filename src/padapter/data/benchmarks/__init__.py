"""Published benchmarks, read from their files as they are distributed.

``vqav2:/data/vqav2`` names a benchmark and its folder; ``vqav2:/data/vqav2:karpathy-test`` a split of it too.
"""

from __future__ import annotations

from padapter.data.benchmarks.base import Benchmark, Form, Needed, Pictures, Reading, Split
from padapter.data.benchmarks.coco import COCO
from padapter.data.benchmarks.snli_ve import SNLI_VE
from padapter.data.benchmarks.textcaps import TEXTCAPS
from padapter.data.benchmarks.vizwiz_caption import VIZWIZ_CAPTION
from padapter.data.benchmarks.vizwiz_vqa import VIZWIZ_VQA
from padapter.data.benchmarks.vqav2 import VQAV2

#: Benchmarks by the first word of a data spec.
BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        VQAV2,
        VIZWIZ_VQA,
        SNLI_VE,
        COCO,
        TEXTCAPS,
        VIZWIZ_CAPTION,
    )
}

__all__ = ["BENCHMARKS", "Benchmark", "Form", "Needed", "Pictures", "Reading", "Split"]

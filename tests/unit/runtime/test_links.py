"""What connects the GPUs of a machine, from the output of `nvidia-smi topo -m`."""

from __future__ import annotations

import pytest

from align.runtime import links

TOPOLOGY = """\
\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\tSYS\tPIX\t0-31\t0\t\tN/A
GPU1\tNV18\t X \tSYS\tSYS\t0-31\t0\t\tN/A
GPU2\tSYS\tSYS\t X \tSYS\t32-63\t1\t\tN/A
NIC0\tPIX\tSYS\tSYS\t X

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TOPOLOGY, {"NV18": [(0, 1)], "SYS": [(0, 2), (1, 2)]}),
        ("", {}),
        ("Failed to initialize NVML", {}),
        ("\tGPU0\tCPU Affinity\nGPU0\t X \t0-7\n", {}),
        ("\tGPU0\tGPU1\nGPU0\n", {}),
    ],
)
def test_pairs_by_link(monkeypatch: pytest.MonkeyPatch, text: str, expected: object) -> None:
    monkeypatch.setattr(links, "ask_driver", lambda *options: [line for line in text.splitlines() if line.strip()])
    assert links.gpu_links() == expected


def test_the_words_of_the_driver_are_explained() -> None:
    assert links.link_text("NV18") == "NV18 (NVLink)"
    assert links.link_text("NODE") == "NODE (PCIe of one NUMA node)"
    assert links.link_text("C2C") == "C2C"

"""How the GPUs of this machine are connected, as `nvidia-smi topo -m` shows it."""

from __future__ import annotations

import re

from align.runtime.device import ask_driver

KINDS = {
    "NV": "NVLink",
    "PIX": "one PCIe bridge",
    "PXB": "several PCIe bridges",
    "PHB": "the CPU's PCIe",
    "NODE": "PCIe of one NUMA node",
    "SYS": "between CPUs",
}
"""What the driver's words mean, the fastest first; a number of links follows NV."""
GPU_NAME = re.compile(r"GPU(\d+)")
STYLE = re.compile(r"\x1b\[[0-9;]*m")


def gpu_links() -> dict[str, list[tuple[int, int]]]:
    """Pairs of GPUs by the driver's word for what connects them, such as NV18 or SYS; empty where it does not say."""
    lines = [STYLE.sub("", line) for line in ask_driver("topo", "-m")]
    header = next((line for line in lines if GPU_NAME.match(line.strip())), "")
    # The columns of GPUs come first; those of network cards and CPUs follow.
    columns = [int(found[1]) for name in header.split() if (found := GPU_NAME.fullmatch(name))]
    links: dict[str, list[tuple[int, int]]] = {}
    for line in lines:
        name, *cells = line.split()
        row = GPU_NAME.fullmatch(name)
        if row is None or line is header or len(cells) < len(columns):
            continue
        for column, word in zip(columns, cells, strict=False):
            if int(row[1]) < column and word != "X":
                links.setdefault(word, []).append((int(row[1]), column))
    return links


def link_text(word: str) -> str:
    """The driver's word and what it means: `NV18 (NVLink)`."""
    kind = next((meaning for name, meaning in KINDS.items() if re.fullmatch(rf"{name}\d*", word)), None)
    return word if kind is None else f"{word} ({kind})"

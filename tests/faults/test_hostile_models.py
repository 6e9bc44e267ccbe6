"""Model folders that try to run code. Everything that could is a canary: a file that must not be there afterwards."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from align.testing import tiny_causal_lm

pytestmark = pytest.mark.slow

LOADS = """
import json, sys
from pathlib import Path
from align.engines.transformers_engine import TransformersEngine
from align.errors import AlignError
from align.models import ModelFolder
from align.models.chat_format import load_format
told = {}
for path in sys.argv[1:]:
    folder = ModelFolder(Path(path))
    try:
        load_format(folder)
        TransformersEngine(folder, dtype="float32", max_model_tokens=32).close()
        told[folder.path.name] = "loaded"
    except AlignError as error:
        told[folder.path.name] = error.render()
print(json.dumps(told))
"""
ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('CANARY', 'w') }}",
    "{{ ''|attr('format')|attr('__globals__') }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{{ lipsum.__globals__['os'].popen('touch CANARY').read() }}",
)


class Writes:
    """Unpickled, it writes the canary."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._canary}",)


Attack = tuple[str, dict[str, Any] | str | bytes, str]
"""The file, what is in it (of JSON: what is added), and what is said of it."""


def attacks(canary: Path) -> dict[str, Attack]:
    """By name."""
    refs = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoProcessor"), "evil.Evil")
    code, kernel = {"auto_map": refs, "trust_remote_code": True}, "kernels-community/x"
    found: dict[str, Attack] = {
        "nothing": ("README.md", "sound", "loaded"),
        "map": ("config.json", {"auto_map": refs}, "loaded"),  # transformers has the architecture, and its own code is used
        "map_alone": ("config.json", {"auto_map": refs, "model_type": "evil"}, "has auto_map"),
        "config": ("config.json", code, "trust_remote_code"),
        "tokenizer": ("tokenizer_config.json", code, "has auto_map"),
        "generation": ("generation_config.json", code, "trust_remote_code"),
        "processor": ("processor_config.json", code, "loaded"),
        "preprocessor": ("preprocessor_config.json", code, "loaded"),
        "use_kernels": ("config.json", {"use_kernels": True, "kernel_config": {"RMSNorm": f"{kernel}:C"}}, "loaded"),
        "pickle_beside": ("pytorch_model.bin", pickle.dumps(Writes(canary)), "loaded"),
        "pickle": ("pytorch_model.bin", pickle.dumps(Writes(canary)), "the weights are pickled"),
    }
    for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "_experts_implementation"):
        found[key] = ("config.json", {key: kernel}, key)
    for number, escape in enumerate(ESCAPES):
        found[f"escape_{number}"] = ("chat_template.jinja", escape.replace("CANARY", str(canary)), "the chat template")
    return found


def write(folder: Path, file: str, content: dict[str, Any] | str | bytes) -> None:
    path = folder / file
    if isinstance(content, dict):
        content = json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **content})
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_nothing_in_a_folder_runs(tmp_path: Path) -> None:
    canary, fake = tmp_path / "canary", tmp_path / "site"
    fake.mkdir()
    writes = f"open({str(canary)!r}, 'w').close()\n"
    (fake / "kernels.py").write_text(writes)
    sound = tiny_causal_lm(tmp_path / "sound")
    expected = {}
    for name, (file, content, told) in attacks(canary).items():
        folder = Path(shutil.copytree(sound, tmp_path / "models" / name))
        for module in ("evil", "modeling_evil", "configuration_evil", "tokenization_evil"):
            (folder / f"{module}.py").write_text(writes)
        write(folder, file, content)
        if name == "pickle":
            (folder / "model.safetensors").unlink()
        expected[name] = told
    paths = [str(tmp_path / "models" / name) for name in expected]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(fake), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", LOADS, *paths], capture_output=True, text=True, env=environment, timeout=240, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert not canary.exists()
    assert found.keys() == expected.keys()
    assert {name: text for name, text in found.items() if expected[name] not in text} == {}

"""Jobs of a cluster: what is written, what is refused, and what is never overwritten."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from align.config.machine import MachineSettings
from align.config.machine_file import read_machine_settings
from align.errors import EnvironmentProblem, RecipeError
from align.pipeline.launch.job import Job, kept_environment, machine_text, read_time, settings_for
from align.pipeline.launch.submit import submit
from align.pipeline.launch.write import dns_name, render, write_job


def job(folder: Path, **fields: Any) -> Job:
    settings = settings_for(MachineSettings(), nodes=fields.get("nodes", 1), gpus=fields.get("gpus", 8))
    values: dict[str, Any] = {
        "system": "slurm",
        "name": "mine",
        "nodes": 1,
        "gpus": 8,
        "folder": folder,
        "here": folder / "launch" / "mine",
        "recipe": "my recipe",
        "options": ("--out", "runs", "--set", "stages.sft.num_epochs=2"),
        "settings": settings,
    }
    return Job(**values | fields)


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]


@pytest.mark.parametrize(
    "fields", [{}, {"nodes": 4, "seconds": 43_200}, {"gpus": 0, "cpus": 16, "environment": {"HF_HUB_OFFLINE": "1"}}]
)
def test_shellcheck_has_nothing_to_say(tmp_path: Path, fields: dict[str, Any]) -> None:
    written = write_job(job(tmp_path / "a folder", **fields))
    program = shutil.which("shellcheck")
    command = ["bash", "-n"] if program is None else [program, "--norc"]
    done = subprocess.run([*command, written.script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_what_slurm_reads_is_literal(tmp_path: Path) -> None:
    script = render(job(tmp_path, nodes=2, seconds=129_600))
    lines = directives(script)
    assert [line for line in lines if "$" in line] == []
    wanted = ["--nodes=2", "--gpus-per-node=8", "--time=1-12:00:00", "--requeue", "--signal=B:USR1@300", "--open-mode=append"]
    assert set(wanted) <= set(lines)
    assert f'--output="{tmp_path}/launch/mine/logs/slurm-%j.log"' in lines
    assert "align run 'my recipe' --out runs --set stages.sft.num_epochs=2 --machine" in script


def test_one_node_needs_no_ray_and_takes_no_whole_machine(tmp_path: Path) -> None:
    script = render(job(tmp_path, gpus=1, cpus=8))
    assert "ray start" not in script
    assert "--exclusive" not in directives(script)
    assert "--cpus-per-task=8" in directives(script)


def test_several_nodes_sample_on_ray_with_an_engine_for_each_group_of_gpus(tmp_path: Path) -> None:
    given = MachineSettings.model_validate(
        {"sampling": {"tensor_parallel": 4}, "training": {"processes": 8, "strategy": "fsdp2"}}
    )
    (tmp_path / "machine.yaml").write_text(machine_text(settings_for(given, nodes=3, gpus=8)))
    read = read_machine_settings(None, tmp_path, {}).settings
    assert (read.sampling.pool, read.sampling.engines, read.sampling.tensor_parallel) == ("ray", 6, 4)
    assert (read.training.nodes, read.training.processes, read.training.strategy) == (3, 8, "fsdp2")
    assert read.ray.address == "auto"
    assert settings_for(given, nodes=1, gpus=8) == given
    alone = MachineSettings.model_validate({"training": {"strategy": "single"}})
    assert settings_for(alone, nodes=3, gpus=8).training == alone.training
    assert settings_for(MachineSettings(), nodes=3, gpus=8).training.processes == 8


def test_nothing_but_known_variables_is_in_a_script(tmp_path: Path) -> None:
    environment = kept_environment({"HF_HUB_OFFLINE": "1", "HF_TOKEN": "secret", "WANDB_API_KEY": "secret"})
    script = render(job(tmp_path, environment=environment))
    assert "export HF_HUB_OFFLINE=1" in script
    assert "secret" not in script


def test_an_edited_script_is_never_overwritten(tmp_path: Path) -> None:
    first = write_job(job(tmp_path))
    assert write_job(job(tmp_path, gpus=4)) == first  # as align wrote it: may change
    assert "--gpus-per-node=4" in directives(first.script.read_text())
    edited = first.script.read_text() + "# mine\n"
    first.script.write_text(edited)
    with pytest.raises(RecipeError, match=r"job\.sh: is not as align wrote it") as caught:
        write_job(job(tmp_path))
    assert "sbatch launch/mine/job.sh" in str(caught.value)
    assert first.script.read_text() == edited


def test_a_template_of_the_users_own(tmp_path: Path) -> None:
    template = tmp_path / "own.sh"
    template.write_text(
        "#!/bin/bash\n#SBATCH --nodes={{ job.nodes }}\n{{ job.command | command }} --machine {{ job.machine_file }}\n"
    )
    assert directives(render(job(tmp_path, nodes=3), template)) == ["--nodes=3"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n{{ job.gpu }}\n", r"own\.sh:2: .*has no attribute 'gpu'"),
        ("{{ job.nodes\n", r"own\.sh:\d: "),
        ("{{ job.__class__.__mro__ }}", r"own\.sh:1: access to attribute '__class__'.*unsafe"),
        (None, r"own\.sh: there is no such template"),
    ],
)
def test_a_wrong_template_is_named_with_its_line(tmp_path: Path, text: str | None, message: str) -> None:
    template = tmp_path / "own.sh"
    if text is not None:
        template.write_text(text)
    with pytest.raises(RecipeError, match=message):
        render(job(tmp_path), template)


@pytest.mark.parametrize("name", ['a"b', "a\nb", "a%j", "$HOME"])
def test_a_path_that_slurm_would_read_differently_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="cannot name this path"):
        write_job(job(tmp_path / name))
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("text", "seconds"), [("12h", 43_200), ("90m", 5_400), ("2d", 172_800), ("1-12:00:00", 129_600), ("00:30:00", 1_800)]
)
def test_times(text: str, seconds: int) -> None:
    assert read_time(text) == seconds


@pytest.mark.parametrize("text", ["", "12", "0h", "1:00", "tomorrow"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(RecipeError, match="expected a time limit"):
        read_time(text)


def test_submitting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, programs = write_job(job(tmp_path)), tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(EnvironmentProblem, match="sbatch is not installed") as caught:
        submit(written, tmp_path)
    assert "sbatch launch/mine/job.sh" in str(caught.value)
    program = programs / "sbatch"
    program.write_text('#!/bin/sh\necho "given $1"\n')
    program.chmod(0o755)
    assert submit(written, tmp_path) == "given launch/mine/job.sh"
    program.write_text("#!/bin/sh\necho 'invalid partition' >&2\nexit 1\n")
    with pytest.raises(EnvironmentProblem, match=r"refused the job \(code 1\):\ninvalid partition"):
        submit(written, tmp_path)


CONTAINER = {"image": "registry.example/align:1", "volume": "work"}


def manifest(folder: Path, system: str, **fields: Any) -> Any:
    return YAML(typ="safe", pure=True).load(render(job(folder, system=system, **CONTAINER, **fields)))


def script_of(text: str) -> None:
    """The script of a container sets up its machine file and becomes align."""
    assert "  pool: processes\n" in text
    assert text.endswith(
        "\nexec align run 'my recipe' --out runs --set stages.sft.num_epochs=2 --machine /tmp/align-machine.yaml"
    )
    done = subprocess.run(["bash", "-n", "-c", text], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_job_of_kubernetes(tmp_path: Path) -> None:
    """Fields of batch/v1 as of Kubernetes 1.31, where podFailurePolicy is stable."""
    read = manifest(tmp_path, "kubernetes", cpus=16, environment={"HF_HUB_OFFLINE": "1"})
    assert (read["apiVersion"], read["kind"], read["metadata"]) == ("batch/v1", "Job", {"generateName": "mine-"})
    assert read["spec"].keys() == {"backoffLimit", "podFailurePolicy", "template"}
    pod = read["spec"]["template"]["spec"]
    assert pod.keys() == {"restartPolicy", "terminationGracePeriodSeconds", "containers", "volumes"}
    assert (pod["restartPolicy"], pod["terminationGracePeriodSeconds"]) == ("Never", 300)
    (container,) = pod["containers"]
    rules = read["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "FailJob"]
    assert rules[1]["onExitCodes"]["containerName"] == container["name"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 8, "cpu": 16}}
    assert container["env"] == [{"name": "HF_HUB_OFFLINE", "value": "1"}]
    assert (container["image"], container["workingDir"]) == ("registry.example/align:1", "/project")
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "work"}
    script_of(container["args"][0].rstrip("\n"))


def test_a_task_of_dstack(tmp_path: Path) -> None:
    """Fields of the task reference of dstack 0.20."""
    read = manifest(tmp_path, "dstack", gpu_type="H100", environment={"HF_HUB_OFFLINE": "1"})
    (command,) = read.pop("commands")
    script_of(command.rstrip("\n"))
    assert read == {
        "type": "task",
        "name": "mine",
        "image": "registry.example/align:1",
        "working_dir": "/project",
        "env": ["HF_HUB_OFFLINE=1"],
        "resources": {"gpu": {"name": "H100", "count": 8}},
        "volumes": [{"name": "work", "path": "/project"}],
        "retry": {"on_events": ["interruption"], "duration": "1d"},
        "stop_duration": "300s",
    }


def test_a_task_of_skypilot(tmp_path: Path) -> None:
    """Fields of the YAML reference of SkyPilot 0.10."""
    read = manifest(tmp_path, "skypilot", gpu_type="H100", cpus=16)
    script_of(read.pop("run").rstrip("\n"))
    assert read == {
        "name": "mine",
        "num_nodes": 1,
        "resources": {"accelerators": "H100:8", "cpus": "16+", "image_id": "docker:registry.example/align:1"},
        "volumes": {"/project": "work"},
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"system": "slurm", "image": "x"}, "--image: has no meaning for slurm"),
        ({"system": "kubernetes"}, "--on kubernetes: needs --image and --volume"),
        ({"system": "skypilot", **CONTAINER}, "--on skypilot: needs --gpu-type"),
        ({"system": "dstack", **CONTAINER, "seconds": 60}, "--time: has no meaning for dstack"),
        ({"system": "kubernetes", **CONTAINER, "nodes": 2}, "--nodes 2: align starts nothing on several nodes of kubernetes"),
        ({"system": "kubernetes", **CONTAINER, "recipe": "/a/recipe.yaml"}, "a container has only what is below"),
        ({"system": "dstack", **CONTAINER, "recipe": "../a"}, "a container has only what is below"),
    ],
)
def test_what_a_system_does_not_have_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        write_job(job(tmp_path, **fields))


@pytest.mark.parametrize(
    ("name", "plain"), [("My_run.v2", "my-run-v2"), ("3x", "align-3x"), ("a" * 60, "a" * 40), ("_", "align")]
)
def test_names_of_jobs(name: str, plain: str) -> None:
    assert dns_name(name) == plain

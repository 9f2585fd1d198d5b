"""cluster.yaml against Ray's own schema, against what that schema misses, and against pyproject.toml. Offline."""

from __future__ import annotations

import copy
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray.autoscaler._private.util import prepare_config, validate_config

from pipelines.cluster.capacity import most_resources
from pipelines.cluster.malloc import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def validated(cluster: dict[str, Any]) -> dict[str, Any]:
    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    return prepared


def test_ray_accepts_the_file(cluster):
    prepared = validated(cluster)

    assert prepared["provider"]["type"] == "aws"
    assert prepared["head_node_type"] == "head"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["maximum_workers"], 8),
        (["provider", "type"], None),
        (["available_node_types", "gpu_worker", "max_worker"], 4),
        (["available_node_types", "gpu_worker", "resources"], None),
        (["auth", "user"], "ubuntu"),
        (["docker", "imgae"], "rayproject/ray"),
        (["max_workers"], "8"),
    ],
)
def test_ray_refuses_a_broken_copy(cluster, path, value):
    place = cluster
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value

    with pytest.raises((ValidationError, NotImplementedError)):
        validated(cluster)


def test_workers_begin_at_none_and_fit_under_the_bound(cluster):
    types = validated(cluster)["available_node_types"]
    workers = {name: node for name, node in types.items() if name != "head"}

    assert workers.keys() == {"cpu_worker", "gpu_worker"}
    assert all(node["min_workers"] == 0 < node["max_workers"] for node in workers.values())
    assert sum(node["max_workers"] for node in workers.values()) <= cluster["max_workers"]


def test_nodes_install_what_pyproject_declares(cluster, project, tmp_path):
    """The command is run by a real bash, in which `pip` prints what it would have been given."""
    (command,) = cluster["setup_commands"]
    bash = shutil.which("bash")
    assert bash is not None

    given = subprocess.run(
        [bash, "-c", f'pip() {{ printf "%s\\n" "$@"; }}\n{command}'],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )

    expected = ["install", "--no-cache-dir", *project["dependencies"]]
    assert (given.stdout.splitlines(), given.stderr) == (expected, "")


def test_no_node_gets_a_copy_of_our_packages(cluster):
    assert list(cluster["file_mounts"]) == ["/home/ray/.ray/auth_token"]
    assert not any("dynamic-rnn" in word for word in shlex.split(" ".join(cluster["setup_commands"])))


def test_images_hold_a_ray_and_a_python_within_our_ranges(cluster, project):
    ray_range = next(
        requirement.specifier for requirement in map(Requirement, project["dependencies"]) if requirement.name == "ray"
    )
    images = [cluster["docker"]["image"], cluster["available_node_types"]["gpu_worker"]["docker"]["worker_image"]]

    for image in images:
        ray_version, python, _ = image.partition(":")[2].split("-")
        assert ray_version in ray_range
        assert f"{python[2]}.{python[3:]}" in SpecifierSet(project["requires-python"])


def test_every_process_asks_for_the_token_and_finds_it(cluster):
    assert "--env RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert cluster["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


def test_containers_start_as_our_own_processes_do(cluster):
    assert {f"--env {name}={value}" for name, value in ENVIRONMENT.items()} <= set(cluster["docker"]["run_options"])


def test_the_dashboard_listens_on_the_head_alone(cluster):
    assert "--dashboard-host=127.0.0.1" in shlex.split(" ".join(cluster["head_start_ray_commands"]))


def test_all_nodes_start_from_one_image(cluster):
    nodes = cluster["available_node_types"].values()

    assert {node["node_config"]["ImageId"] for node in nodes} == {cluster["metadata"]["image"]}


def test_the_most_a_cluster_grows_to_is_counted_with_its_bounds():
    def node(cpus, gpus, most):
        return {"resources": {"CPU": cpus, "GPU": gpus}, "max_workers": most}

    cluster = {
        "max_workers": 3,
        "head_node_type": "head",
        "available_node_types": {"head": node(4, 0, 0), "cpu": node(16, 0, 2), "gpu": node(8, 1, 2)},
    }

    # CPUs: the head, both CPU nodes and one GPU node; GPUs: both GPU nodes.
    assert most_resources(cluster) == {"CPU": 4 + 2 * 16 + 8, "GPU": 2}

"""What a job needs against what nodes have: too little is told at once, and no autoscaler is waited for endlessly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Mapping
from pathlib import Path

import pytest

from model.errors import ResourceError
from pipelines.cluster.capacity import most_room, require_room

ROOT = Path(__file__).resolve().parents[3]
SMALL = {"CPU": 4.0}
WITH_GPU = {"CPU": 8.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus", "gpus"),
    [
        ([SMALL, SMALL], 2, 4, 0),
        ([SMALL, SMALL], 8, 1, 0),
        ([SMALL, WITH_GPU], 2, 4, 1),
        ([{"CPU": 0.0}, WITH_GPU], 1, 8, 2),
    ],
)
def test_workers_that_fit_are_let_through(
    nodes: list[Mapping[str, float]], workers: int, cpus: float, gpus: float
) -> None:
    require_room(nodes, workers, {"CPU": cpus, "GPU": gpus}, most=None)


@pytest.mark.parametrize(
    ("nodes", "workers", "cpus", "gpus", "most", "message"),
    [
        (
            [SMALL, SMALL],
            1,
            6,
            0,
            None,
            "1 worker of 6 CPUs and 0 GPUs must fit on nodes of the Ray cluster, each on one node, but its nodes (2 "
            "with 4 CPUs and 0 GPUs) hold 0: lower resources.cpus_per_worker or resources.workers, or use larger nodes",
        ),
        (
            [SMALL, WITH_GPU],
            3,
            2,
            1,
            None,
            "3 workers of 2 CPUs and 1 GPU must fit on nodes of the Ray cluster, each on one node, but its nodes (1 "
            "with 4 CPUs and 0 GPUs, 1 with 8 CPUs and 2 GPUs) hold 2: lower resources.cpus_per_worker or "
            "resources.workers, or use larger nodes",
        ),
        (
            [SMALL],
            4,
            8,
            1,
            3,
            "4 workers of 8 CPUs and 1 GPU must fit on nodes of the Ray cluster, each on one node, but its nodes (1 "
            "with 4 CPUs and 0 GPUs) hold 0 and would hold 3 at most with what its autoscaler adds: lower "
            "resources.cpus_per_worker or resources.workers, or use larger nodes",
        ),
    ],
)
def test_workers_that_fit_on_no_node_are_refused_with_what_the_nodes_have(
    nodes: list[Mapping[str, float]], workers: int, cpus: float, gpus: float, most: float | None, message: str
) -> None:
    with pytest.raises(ResourceError) as caught:
        require_room(nodes, workers, {"CPU": cpus, "GPU": gpus}, most=most)
    assert str(caught.value) == message


def test_room_that_an_autoscaler_can_make_is_enough() -> None:
    require_room([SMALL], 4, {"CPU": 8.0, "GPU": 1.0}, most=4)


def test_the_room_of_a_growing_cluster_is_that_of_the_best_nodes_it_may_have_at_once() -> None:
    def node(cpus: int, gpus: int, most: int) -> dict[str, object]:
        return {"resources": {"CPU": cpus, "GPU": gpus}, "max_workers": most}

    cluster = {
        "max_workers": 3,
        "head_node_type": "head",
        "available_node_types": {"head": node(4, 0, 0), "cpu": node(16, 0, 4), "gpu": node(8, 2, 2)},
    }
    assert most_room(cluster, {"CPU": 4.0, "GPU": 0.0}) == 1 + 3 * 4
    assert most_room(cluster, {"CPU": 4.0, "GPU": 1.0}) == 2 * 2
    assert most_room(cluster, {"CPU": 32.0, "GPU": 0.0}) == 0


# --- two small nodes, for real ----------------------------------------------------------------------------------------

# The second cluster has no CPU at all, and a cluster.yaml on its head that promises nodes which nobody adds.
SCRIPT = """
    import json, time
    from ray.cluster_utils import Cluster
    from pipelines.cluster.capacity import RAY_UP_FILE, preflight_workers
    from pipelines.cluster.session import ray_session

    def told(action):
        began = time.monotonic()
        try:
            action()
        except ValueError as error:
            return [f"{type(error).__name__}: {error}", time.monotonic() - began]

    node = {"num_cpus": 2, "object_store_memory": 100 * 2**20}
    head = {**node, "include_dashboard": True, "dashboard_port": 0}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(**node)
    cluster.wait_for_nodes()
    facts = {}
    with ray_session(logical_cpus=1, address=cluster.address):
        facts["fits"] = told(lambda: preflight_workers(1, 2, 0))
        facts["one_too_large"] = told(lambda: preflight_workers(1, 3, 0))
        facts["too_many"] = told(lambda: preflight_workers(2, 2, 0))
    cluster.shutdown()

    empty = Cluster(initialize_head=True, head_node_args={**head, "num_cpus": 0})
    promised = {"resources": {"CPU": 4}, "max_workers": 2}
    RAY_UP_FILE.expanduser().write_text(str({
        "max_workers": 2, "head_node_type": "head",
        "available_node_types": {"head": {"resources": {}}, "cpu": promised},
    }))
    with ray_session(logical_cpus=0, address=empty.address):
        facts["never_comes"] = told(lambda: preflight_workers(1, 1, 0, wait_seconds=2))
    empty.shutdown()
    print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object] | None]:
    """What preflight said on each, and after how many seconds."""
    home = tmp_path_factory.mktemp("home")
    short = Path("/tmp") / f"ray-{uuid.uuid4().hex[:8]}"  # sockets below a long path would not bind
    short.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        env={**kept, "HOME": str(home), "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(short), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    shutil.rmtree(short, ignore_errors=True)
    assert finished.returncode == 0, finished.stderr
    return {**json.loads(finished.stdout.splitlines()[-1]), "stderr": [finished.stderr]}


def test_a_worker_that_fits_on_a_node_passes(told: dict[str, list[object] | None]) -> None:
    assert told["fits"] is None


def test_a_worker_larger_than_any_node_is_refused_at_once(told: dict[str, list[object] | None]) -> None:
    assert told["one_too_large"] is not None
    message, seconds = told["one_too_large"]
    assert message == (
        "ResourceError: 1 worker of 3 CPUs and 0 GPUs must fit on nodes of the Ray cluster, each on one node, but its "
        "nodes (2 with 2 CPUs and 0 GPUs) hold 0: lower resources.cpus_per_worker or resources.workers, or use larger "
        "nodes"
    )
    assert isinstance(seconds, float)
    assert seconds < 2


def test_workers_that_leave_ray_data_nothing_are_refused(told: dict[str, list[object] | None]) -> None:
    assert told["too_many"] is not None
    assert told["too_many"][0] == (
        "ResourceError: 5 CPUs and 0 GPUs must be in the Ray cluster, but it has 4 CPUs and 0 GPUs: lower "
        "resources.workers, or use a larger cluster"
    )


def test_an_autoscaler_that_adds_nothing_is_not_waited_for_for_ever(told: dict[str, list[object] | None]) -> None:
    assert told["never_comes"] is not None
    message, seconds = told["never_comes"]
    assert message == (
        "ResourceError: a node with a CPU must come within 2 s, but the autoscaler of the Ray cluster has added none: "
        "look at what it says (ray status), such as that there is no quota or no such machine"
    )
    assert isinstance(seconds, float)
    assert 2 <= seconds < 10
    assert told["stderr"] is not None
    assert "2 CPUs and 0 GPUs must be in the Ray cluster; it has 0 CPUs and 0 GPUs: waiting for its autoscaler" in str(
        told["stderr"][0]
    )

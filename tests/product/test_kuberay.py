"""docs/kuberay, offline: the schemas of Kubernetes and Ray Serve, KubeRay's fields, and what keeps the pods safe."""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray.serve.schema import ServeDeploySchema

from model.errors import ConfigError
from model.settings.yaml_text import parse_yaml
from pipelines.cluster.malloc import ENVIRONMENT
from pipelines.config import RunConfig, run_config
from serve.app import DEPLOYMENT, build_app
from serve.config import ServeConfig, ingress_environment

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "docs" / "kuberay"
KUBERNETES = "1.33.0"
Document = dict[str, Any]


def documents(name: str) -> list[Document]:
    return list(yaml.safe_load_all((MANIFESTS / name).read_text()))


def only(name: str, kind: str) -> Document:
    (found,) = (document for document in documents(name) if document["kind"] == kind)
    return found


ALL = [document for path in sorted(MANIFESTS.glob("*.yaml")) for document in documents(path.name)]
JOB, SERVICE = only("rayjob.yaml", "RayJob"), only("rayservice.yaml", "RayService")
CLUSTERS = {"RayJob": JOB["spec"]["rayClusterSpec"], "RayService": SERVICE["spec"]["rayClusterConfig"]}


def named(document: Document) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


def ray_templates() -> Iterator[tuple[str, Document]]:
    """(name, pod template) of every pod that runs Ray."""
    for kind, cluster in CLUSTERS.items():
        yield f"{kind}/head", cluster["headGroupSpec"]["template"]
        for group in cluster["workerGroupSpecs"]:
            yield f"{kind}/{group['groupName']}", group["template"]


RAY_TEMPLATES = dict(ray_templates())
TEMPLATES = {**RAY_TEMPLATES, "RayJob/submitter": JOB["spec"]["submitterPodTemplate"]}


# --- schemas ---------------------------------------------------------------------------------------------------------


def as_pod(template: Document) -> Document:
    metadata = {"name": "pod", "namespace": "dynamic-rnn"} | template.get("metadata", {})
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


@pytest.mark.parametrize("name", TEMPLATES)
def test_kubernetes_accepts_every_pod(name: str) -> None:
    kubernetes_validate.validate(as_pod(TEMPLATES[name]), KUBERNETES, strict=True)


@pytest.mark.parametrize("document", [each for each in ALL if not each["apiVersion"].startswith("ray.io/")], ids=named)
def test_kubernetes_accepts_what_is_its_own(document: Document) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["containers", 0, "securityContext", "readOnlyRootFileSystem"], True),
        (["containers", 0, "resources", "limits"], {"memory": [1]}),
        (["containers", 0, "livenessProbe", "httpGet", "port"], None),
        (["volumes", 0, "emptydir"], {}),
    ],
)
def test_kubernetes_refuses_a_broken_copy(path: list[str | int], value: object) -> None:
    template = copy.deepcopy(RAY_TEMPLATES["RayJob/gpu"])
    changed(template["spec"], path, value)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(as_pod(template), KUBERNETES, strict=True)


def changed(tree: Any, path: list[str | int], value: object) -> None:
    for key in path[:-1]:
        tree = tree[key]
    tree[path[-1]] = value


# The part of KubeRay's v1 API that is used here, after its reference; a dict says what lies below a field, None that
# its value is plain or Kubernetes' own.
POD = None
CLUSTER_FIELDS: dict[str, Any] = {
    "rayVersion": None,
    "authOptions": {"mode": None, "secretName": None},
    "enableInTreeAutoscaling": None,
    "autoscalerOptions": dict.fromkeys(
        ("version", "idleTimeoutSeconds", "upscalingMode", "securityContext", "resources", "volumeMounts", "env")
    ),
    "headGroupSpec": {"rayStartParams": None, "serviceType": None, "template": POD},
    "workerGroupSpecs": dict.fromkeys(
        ("groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "rayStartParams", "template")
    ),
    "gcsFaultToleranceOptions": dict.fromkeys(("redisAddress", "redisPassword", "externalStorageNamespace")),
}
FIELDS: dict[str, dict[str, Any]] = {
    "RayJob": {
        "rayClusterSpec": CLUSTER_FIELDS,
        "submitterPodTemplate": POD,
        **dict.fromkeys(
            ("entrypoint", "backoffLimit", "submissionMode", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished")
        ),
        **dict.fromkeys(("activeDeadlineSeconds", "runtimeEnvYAML", "suspend")),
    },
    "RayService": {
        "rayClusterConfig": CLUSTER_FIELDS,
        **dict.fromkeys(("serveConfigV2", "excludeHeadPodFromServeSvc", "rayClusterDeletionDelaySeconds", "suspend")),
        "upgradeStrategy": {"type": None},
    },
}


def unknown_fields(tree: Any, known: Mapping[str, Any] | None, place: str) -> Iterator[str]:
    if known is None:
        return
    if isinstance(tree, list):
        for each in tree:
            yield from unknown_fields(each, known, place)
        return
    for name, below in tree.items():
        if name not in known:
            yield f"{place}.{name}"
        else:
            yield from unknown_fields(below, known[name], f"{place}.{name}")


@pytest.mark.parametrize("resource", [JOB, SERVICE], ids=named)
def test_kuberay_knows_every_field(resource: Document) -> None:
    assert list(unknown_fields(resource["spec"], FIELDS[resource["kind"]], resource["kind"])) == []
    assert resource["apiVersion"] == "ray.io/v1"


def test_a_field_that_kuberay_does_not_know_is_found() -> None:
    broken = copy.deepcopy(JOB["spec"])
    broken["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 0
    broken["rayClusterSpec"]["authOption"] = {}
    assert list(unknown_fields(broken, FIELDS["RayJob"], "RayJob")) == [
        "RayJob.rayClusterSpec.workerGroupSpecs.minReplica",
        "RayJob.rayClusterSpec.authOption",
    ]


# --- what Ray and we make of it --------------------------------------------------------------------------------------


def served() -> Document:
    return yaml.safe_load(SERVICE["spec"]["serveConfigV2"])


def test_ray_serve_accepts_its_part_and_we_accept_the_arguments() -> None:
    schema = ServeDeploySchema.model_validate(served())
    (application,) = schema.applications
    assert application.import_path == "serve.app:build_app"
    bound = build_app(application.args)
    assert bound._bound_deployment.name == DEPLOYMENT
    wanted = application.args["serve"]["autoscaling"]
    scaling = bound._bound_deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (wanted["min_replicas"], wanted["max_replicas"])


def test_ray_serve_knows_every_key_of_its_part() -> None:
    """Its schema drops what it does not know."""
    kept = ServeDeploySchema.model_validate(served()).model_dump(exclude_unset=True)
    wanted = served()
    assert kept["proxy_location"] == wanted.pop("proxy_location")
    assert {name: kept[name] for name in wanted} == wanted


def test_a_misspelt_argument_of_ours_is_refused() -> None:
    arguments = served()["applications"][0]["args"]
    arguments["serve"]["max_batch_sequence"] = 64
    with pytest.raises(ConfigError, match="max_batch_sequences"):
        build_app(arguments)


def test_the_time_a_request_may_take_is_the_same_for_proxy_and_replica() -> None:
    arguments = served()["applications"][0]["args"]["serve"]
    assert served()["http_options"]["request_timeout_s"] == arguments["request_timeout_seconds"]


def test_the_replicas_that_autoscaling_may_add_find_room() -> None:
    arguments = served()["applications"][0]["args"]["serve"]
    (group,) = CLUSTERS["RayService"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    on_a_pod = int(container["resources"]["requests"]["cpu"]) // arguments["num_cpus"]
    assert group["maxReplicas"] * on_a_pod >= arguments["autoscaling"]["max_replicas"]
    assert group["minReplicas"] * on_a_pod >= arguments["autoscaling"]["min_replicas"] >= 2


def test_one_port_from_ingress_to_replica() -> None:
    port = served()["http_options"]["port"]
    assert served()["http_options"]["host"] == "0.0.0.0"
    (container,) = RAY_TEMPLATES["RayService/replicas"]["spec"]["containers"]
    assert container["ports"] == [{"name": "serve", "containerPort": port}]
    assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": port}


@pytest.mark.parametrize("name", [name for name in RAY_TEMPLATES if name.startswith("RayService/")])
def test_every_pod_of_the_service_starts_ray_for_the_ingress_that_is_configured(name: str) -> None:
    """`serve deploy` cannot set it: Ray reads it when it starts."""
    (container,) = RAY_TEMPLATES[name]["spec"]["containers"]
    told = {each["name"]: each["value"] for each in container["env"]}
    wanted = ingress_environment(ServeConfig.model_validate(served()["applications"][0]["args"]["serve"]))
    assert told.keys() == wanted.keys()
    assert told["RAY_SERVE_ENABLE_HA_PROXY"] == wanted["RAY_SERVE_ENABLE_HA_PROXY"]


@pytest.fixture(scope="module")
def run() -> RunConfig:
    text = only("rayjob.yaml", "ConfigMap")["data"]["run.yaml"]
    return run_config(parse_yaml(text, where="run.yaml"), where="run.yaml")


def test_the_job_runs_the_file_that_is_mounted(run: RunConfig) -> None:
    (container,) = RAY_TEMPLATES["RayJob/head"]["spec"]["containers"]
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == "run")
    assert JOB["spec"]["entrypoint"] == f"python -m pipelines train --resume-if-exists {mount['mountPath']}/run.yaml"
    assert run.output.startswith("s3://")
    assert run.data.train.startswith("s3://")


def test_the_runs_workers_fit_on_the_gpu_pods(run: RunConfig) -> None:
    group = next(each for each in CLUSTERS["RayJob"]["workerGroupSpecs"] if each["groupName"] == "gpu")
    (container,) = group["template"]["spec"]["containers"]
    assert run.resources.gpu is True
    assert group["maxReplicas"] * int(container["resources"]["limits"]["nvidia.com/gpu"]) >= run.resources.workers
    assert int(container["resources"]["requests"]["cpu"]) >= run.resources.cpus_per_worker


def test_the_jobs_workers_come_from_none_and_go_with_it() -> None:
    for group in CLUSTERS["RayJob"]["workerGroupSpecs"]:
        assert (group["replicas"], group["minReplicas"]) == (0, 0)
        assert group["maxReplicas"] > 0
    assert JOB["spec"]["shutdownAfterJobFinishes"] is True
    assert JOB["spec"]["activeDeadlineSeconds"] > 0


# --- safety ----------------------------------------------------------------------------------------------------------


def check_safe(template: Document) -> None:
    """Kubernetes' "restricted" profile, a read-only root, and bounds. AssertionError where something is missing."""
    spec = template["spec"]
    pod = spec["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] != 0
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))
    assert all(volume.keys() <= {"name", "emptyDir", "configMap"} for volume in spec["volumes"])
    assert all("sizeLimit" in volume["emptyDir"] for volume in spec["volumes"] if "emptyDir" in volume)
    for container in spec["containers"]:
        check_safe_container(container)
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert "/tmp" in mounts
        assert re.fullmatch(r"REGISTRY/dynamic-rnn:\d+\.\d+\.\d+(-gpu)?", container["image"])
        assert not any("TOKEN" in each["name"] or "SECRET" in each["name"] for each in container.get("env", []))


def check_safe_container(container: Document) -> None:
    context = container["securityContext"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert "privileged" not in context
    assert "memory" in container["resources"]["limits"]
    assert {"cpu", "memory"} <= container["resources"]["requests"].keys()


def check_ray_pod(template: Document) -> None:
    """Probes, and shared memory for the object store."""
    (container,) = template["spec"]["containers"]
    assert container["livenessProbe"]["httpGet"] == {"path": "/api/healthz", "port": 52365}
    assert container["readinessProbe"]["httpGet"]["path"] in ("/api/healthz", "/-/healthz")
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    (shared,) = (mount for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm")
    assert volumes[shared["name"]]["emptyDir"]["medium"] == "Memory"


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_pod_is_root_or_writes_to_its_image(name: str) -> None:
    check_safe(TEMPLATES[name])


@pytest.mark.parametrize("name", RAY_TEMPLATES)
def test_every_ray_pod_is_probed_and_has_shared_memory(name: str) -> None:
    check_ray_pod(RAY_TEMPLATES[name])


BROKEN: list[tuple[list[str | int], object]] = [
    (["securityContext", "runAsNonRoot"], False),
    (["securityContext", "runAsUser"], 0),
    (["securityContext", "seccompProfile"], {"type": "Unconfined"}),
    (["hostNetwork"], True),
    (["volumes", 0], {"name": "host", "hostPath": {"path": "/"}}),
    (["containers", 0, "securityContext", "allowPrivilegeEscalation"], True),
    (["containers", 0, "securityContext", "readOnlyRootFilesystem"], False),
    (["containers", 0, "securityContext", "capabilities"], {}),
    (["containers", 0, "resources", "limits"], {"cpu": "1"}),
    (["containers", 0, "image"], "REGISTRY/dynamic-rnn:latest"),
    (["containers", 0, "volumeMounts"], []),
    (["containers", 0, "env"], [{"name": "RAY_AUTH_TOKEN", "value": "secret"}]),
]


@pytest.mark.parametrize(("path", "value"), BROKEN)
def test_a_pod_without_one_of_these_is_found(path: list[str | int], value: object) -> None:
    broken = copy.deepcopy(RAY_TEMPLATES["RayJob/gpu"])
    changed(broken["spec"], path, value)
    with pytest.raises(AssertionError):
        check_safe(broken)


@pytest.mark.parametrize("kind", CLUSTERS)
def test_every_process_of_ray_asks_for_a_token(kind: str) -> None:
    assert CLUSTERS[kind]["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("kind", CLUSTERS)
def test_the_autoscalers_container_is_as_safe_and_can_write_its_logs(kind: str) -> None:
    options = CLUSTERS[kind]["autoscalerOptions"]
    check_safe_container(options)
    volumes = {each["name"] for each in CLUSTERS[kind]["headGroupSpec"]["template"]["spec"]["volumes"]}
    assert [mount["mountPath"] for mount in options["volumeMounts"] if mount["name"] in volumes] == ["/tmp"]


def test_workers_have_no_rights_over_kubernetes() -> None:
    accounts = {each["metadata"]["name"]: each for each in ALL if each["kind"] == "ServiceAccount"}
    assert accounts["ray-worker"]["automountServiceAccountToken"] is False
    for name, template in RAY_TEMPLATES.items():
        head = name.endswith("/head")
        assert template["spec"]["serviceAccountName"] == ("ray-head" if head else "ray-worker")
        assert template["spec"].get("automountServiceAccountToken") is (None if head else False)


def test_buckets_are_reached_by_role_and_no_key_is_written_down() -> None:
    for account in (each for each in ALL if each["kind"] == "ServiceAccount"):
        assert account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].startswith("arn:aws:iam::")
    for path in MANIFESTS.iterdir():
        assert re.search(r"AKIA[0-9A-Z]{16}|aws_secret|ACCESS_KEY", path.read_text()) is None


def test_no_work_runs_on_a_head() -> None:
    for cluster in CLUSTERS.values():
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert SERVICE["spec"]["excludeHeadPodFromServeSvc"] is True


# --- the network -----------------------------------------------------------------------------------------------------

RAY_POD = {"ray.io/is-ray-node": "yes", "ray.io/originated-from-crd": "RayService"}
HEAD = RAY_POD | {"ray.io/node-type": "head", "ray.io/serve": "false"}
WORKER = RAY_POD | {"ray.io/node-type": "worker", "ray.io/serve": "true"}
SUBMITTER = {"ray.io/originated-from-crd": "RayJob"}
OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}
OURS = "dynamic-rnn"


def selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    assert selector is None or selector.keys() <= {"matchLabels"}
    return selector is None or selector.get("matchLabels", {}).items() <= labels.items()


def allowed(namespace: str, source: Mapping[str, str], target: Mapping[str, str], port: int) -> bool:
    """Whether a pod of `namespace` reaches a port of a pod of ours, by the rules of Kubernetes' network policies."""
    policies = [each["spec"] for each in ALL if each["kind"] == "NetworkPolicy"]
    assert all(each["policyTypes"] == ["Ingress"] for each in policies)
    ours = [each for each in policies if selects(each["podSelector"], target)]
    return not ours or any(lets_in(rule, namespace, source, port) for each in ours for rule in each.get("ingress", []))


def lets_in(rule: Mapping[str, Any], namespace: str, source: Mapping[str, str], port: int) -> bool:
    if "ports" in rule and port not in [each["port"] for each in rule["ports"]]:
        return False
    if "from" not in rule:
        return True
    return any(
        (
            selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": namespace})
            if "namespaceSelector" in peer
            else namespace == OURS
        )
        and selects(peer.get("podSelector"), source)
        for peer in rule["from"]
    )


RAYS_PORTS = [6379, 8265, 10001, 52365, 30000, 23456]


@pytest.mark.parametrize("port", [*RAYS_PORTS, 8000, 22])
@pytest.mark.parametrize("target", [HEAD, WORKER, SUBMITTER], ids=["head", "worker", "submitter"])
@pytest.mark.parametrize(
    ("namespace", "source"),
    [("default", {}), ("default", RAY_POD), (OURS, {}), (OURS, {"app": "notebook"}), ("other", OPERATOR)],
    ids=["stranger", "another namespace's Ray", "ours without a label", "a notebook of ours", "a false operator"],
)
def test_strangers_reach_nothing(namespace: str, source: dict[str, str], target: dict[str, str], port: int) -> None:
    assert not allowed(namespace, source, target, port)


@pytest.mark.parametrize("port", RAYS_PORTS)
def test_rays_pods_reach_each_other(port: int) -> None:
    assert allowed(OURS, WORKER, HEAD, port)
    assert allowed(OURS, HEAD, WORKER, port)


def test_submitter_and_operator_reach_the_job_server_alone() -> None:
    for namespace, source in ((OURS, SUBMITTER), ("kuberay-system", OPERATOR)):
        assert [port for port in [*RAYS_PORTS, 8000] if allowed(namespace, source, HEAD, port)] == [8265]
        assert not any(allowed(namespace, source, WORKER, port) for port in [*RAYS_PORTS, 8000])
    assert not allowed("kuberay-system", {"app": "other"}, HEAD, 8265)


def test_the_ingress_reaches_the_service_alone() -> None:
    assert [port for port in [*RAYS_PORTS, 8000] if allowed("ingress-nginx", {}, WORKER, port)] == [8000]
    assert not any(allowed("ingress-nginx", {}, HEAD, port) for port in [*RAYS_PORTS, 8000])


def test_all_is_in_one_namespace_that_refuses_unsafe_pods() -> None:
    (namespace,) = (each for each in ALL if each["kind"] == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {each["metadata"]["namespace"] for each in ALL if each is not namespace} == {namespace["metadata"]["name"]}


# --- the image -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dockerfile() -> list[list[str]]:
    """Its instructions, as words."""
    text = re.sub(r"^#.*\n", "", (MANIFESTS / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def project() -> Document:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_image_holds_a_ray_and_a_python_within_our_ranges(dockerfile: list[list[str]], project: Document) -> None:
    (base,) = (words[1].removeprefix("BASE=") for words in dockerfile if words[0] == "ARG" and "BASE=" in words[1])
    version, python, _ = base.partition(":")[2].split("-")
    requirement = next(each for each in map(Requirement, project["project"]["dependencies"]) if each.name == "ray")
    assert version in requirement.specifier
    assert f"{python[2]}.{python[3:]}" in SpecifierSet(project["project"]["requires-python"])
    assert {cluster["rayVersion"] for cluster in CLUSTERS.values()} == {version}


def test_its_processes_start_as_our_own_do(dockerfile: list[list[str]]) -> None:
    (given,) = (words[1:] for words in dockerfile if words[0] == "ENV")
    assert {f"{name}={value}" for name, value in ENVIRONMENT.items()} <= set(given)


def test_the_image_holds_what_a_wheel_needs(dockerfile: list[list[str]], project: Document) -> None:
    copied = {word for words in dockerfile if words[0] == "COPY" for word in words[1:-1]}
    assert all((ROOT / name).exists() for name in copied)
    packages = set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert copied == packages | {"pyproject.toml", "README.md", "LICENSE"}


def test_the_image_runs_as_the_user_that_the_pods_name(dockerfile: list[list[str]]) -> None:
    user = [words[1] for words in dockerfile if words[0] == "USER"][-1]
    for template in TEMPLATES.values():
        context = template["spec"]["securityContext"]
        assert user == f"{context['runAsUser']}:{context['runAsGroup']}"


def test_the_pods_run_this_version(project: Document) -> None:
    images = {container["image"] for each in TEMPLATES.values() for container in each["spec"]["containers"]}
    version = project["project"]["version"]
    assert images == {f"REGISTRY/dynamic-rnn:{version}", f"REGISTRY/dynamic-rnn:{version}-gpu"}

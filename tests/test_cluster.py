"""cluster.yaml and the manifest for Kubernetes, checked without an account: by Ray, by AWS's own model, and by us."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline.config import InferJob
from pipeline.jobfile import load_job

ROOT = Path(__file__).parents[1]
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())

INSTANCES = {"m6i.xlarge": (4, 0), "g5.2xlarge": (8, 1)}
"""vCPUs and GPUs, from AWS's list of instance types."""


def pinned(package: str) -> str:
    found = re.search(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert found, package
    return found[1]


def rays_complaint(cluster: dict[str, Any]) -> str:
    """What Ray's own check says, empty where it is content."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(copy.deepcopy(cluster)))
    except Exception as error:
        return str(error) or repr(error)
    return ""


def complaints(cluster: dict[str, Any]) -> list[str]:
    """What Ray's check lets pass and AWS or a user would find out later."""
    from botocore.session import Session
    from botocore.validate import ParamValidator

    shape = Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    types = dict(cluster["available_node_types"])
    found = []
    for name, node in types.items():
        config = node["node_config"]
        report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **config}, shape)
        found += [f"{name}: {report.generate_report()}"] if report.has_errors() else []
        instance = config["InstanceType"]
        if instance not in shape.members["InstanceType"].enum or instance not in INSTANCES:
            found.append(f"{name}: {instance} is not known")
            continue
        if (
            name != cluster["head_node_type"]
            and (node["resources"]["CPU"], node["resources"]["GPU"]) != INSTANCES[instance]
        ):
            found.append(f"{name}: resources {node['resources']} are not those of {instance}")
        market = config.get("InstanceMarketOptions", {}).get("MarketType")
        if market is not None and market not in shape.members["InstanceMarketOptions"].members["MarketType"].enum:
            found.append(f"{name}: market {market}")
    head = types.pop(cluster["head_node_type"])
    found += [] if head["max_workers"] == 0 and set(head["resources"].values()) == {0} else ["head runs tiles"]
    if any(node["max_workers"] > cluster["max_workers"] for node in types.values()):
        found.append("a type may have more machines than the cluster")
    if sum(node["max_workers"] for node in types.values()) != cluster["max_workers"]:
        found.append("max_workers of the types do not add up to that of the cluster")
    version, python = pinned("ray"), "py311"
    if cluster["docker"]["image"] != f"rayproject/ray:{version}-{python}-gpu":
        found.append(f"image {cluster['docker']['image']} is not of Ray {version}")
    return found


def test_ray_takes_it() -> None:
    assert rays_complaint(CLUSTER) == ""


def test_aws_would_take_it() -> None:
    assert complaints(CLUSTER) == []


def spot(cluster: dict[str, Any]) -> dict[str, Any]:
    node: dict[str, Any] = cluster["available_node_types"]["gpu_spot"]
    return node


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: spot(c)["node_config"].update(InstanceTyp="g5.2xlarge"),
        lambda c: spot(c)["node_config"].update(InstanceType="g5.2xlrage"),
        lambda c: spot(c)["node_config"]["InstanceMarketOptions"].update(MarketType="sport"),
        lambda c: spot(c)["node_config"]["InstanceMarketOptions"]["SpotOptions"].update(MaxPrize="1"),
        lambda c: spot(c)["node_config"].update(BlockDeviceMappings=[{"DeviceName": 1}]),
        lambda c: spot(c)["resources"].update(GPU=4),
        lambda c: spot(c).update(max_workers=100),
        lambda c: c.update(max_workers=3),
        lambda c: c["docker"].update(image="rayproject/ray:2.59.0-py311-gpu"),
        lambda c: c["available_node_types"]["head"]["resources"].update(CPU=4),
    ],
)
def test_what_ray_lets_pass_is_found(spoil: Callable[[dict[str, Any]], None]) -> None:
    cluster = copy.deepcopy(CLUSTER)
    spoil(cluster)
    assert rays_complaint(cluster) == "" and complaints(cluster)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c.update(max_worker=3),
        lambda c: spot(c).update(idle_timeout=3),
        lambda c: spot(c)["resources"].update(GPU=0.5),
        lambda c: c.update(head_node_type="haed"),
        lambda c: c["docker"].pop("container_name"),
    ],
)
def test_rays_check_checks(spoil: Callable[[dict[str, Any]], None]) -> None:
    cluster = copy.deepcopy(CLUSTER)
    spoil(cluster)
    assert rays_complaint(cluster)


def test_spot_is_preferred_on_demand_the_fallback_and_both_start_at_none() -> None:
    types = CLUSTER["available_node_types"]
    on_demand = types["gpu_on_demand"]
    assert spot(CLUSTER)["priority"] > on_demand["priority"]
    assert [spot(CLUSTER)["min_workers"], on_demand["min_workers"]] == [0, 0]
    assert "InstanceMarketOptions" in spot(CLUSTER)["node_config"]
    assert "InstanceMarketOptions" not in on_demand["node_config"]
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    assert all("IamInstanceProfile" in node["node_config"] for node in types.values())


def test_every_node_asks_for_the_token_and_the_dashboard_stays_on_loopback() -> None:
    head, worker = (" ".join(CLUSTER[f"{which}_start_ray_commands"]) for which in ("head", "worker"))
    assert "/home/ray/.ray/auth_token" in CLUSTER["file_mounts"]
    for command in (head, worker):
        assert re.search(r"export RAY_AUTH_MODE=token;.* ray start ", command) and "ulimit -n 65536" in command
    assert "--dashboard-host=127.0.0.1" in head and "--autoscaling-config" in head and "$RAY_HEAD_IP" in worker
    assert CLUSTER["provider"].get("security_group") is None  # Ray's own opens port 22 alone


def test_shared_memory_holds_the_object_store() -> None:
    assert "--shm-size=2g" in CLUSTER["docker"]["run_options"]
    for which in ("head", "worker"):
        stated = re.findall(r"--object-store-memory=(\d+)", " ".join(CLUSTER[f"{which}_start_ray_commands"]))
        assert stated and int(stated[0]) < 2 * 2**30


def test_what_it_mounts_is_there() -> None:
    local = [path for path in CLUSTER["file_mounts"].values() if not path.startswith("~")]
    assert local and [path for path in local if not (ROOT / path).exists()] == []


def test_an_image_of_our_own_holds_what_is_mounted_and_the_jobs_and_no_more() -> None:
    """By the rules of .dockerignore: nothing, but for what is named with a !, less what is named after that."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    mounted = {path for path in CLUSTER["file_mounts"].values() if not path.startswith("~")}
    assert lines[0] == "*" and lines[-1] == "**/__pycache__"
    assert set(lines[1:-1]) == {f"!{path}" for path in mounted | {"jobs"}}


JOB = yaml.safe_load((ROOT / "docs" / "kuberay-rayjob.yaml").read_text())


def group(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object", "additionalProperties": False, "required": required.split(), "properties": properties,
    }  # fmt: skip


TEXT, WHOLE, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
CONTAINER = group(
    "name image resources",
    name=TEXT,
    image=TEXT,
    resources=group("requests limits", requests={"type": "object"}, limits={"type": "object"}),
    volumeMounts={"type": "array", "items": group("name mountPath", name=TEXT, mountPath=TEXT)},
)
POD = group(
    "containers",
    restartPolicy={"enum": ["Always", "OnFailure", "Never"]},
    serviceAccountName=TEXT,
    tolerations={
        "type": "array",
        "items": group("key operator effect", key=TEXT, operator={"enum": ["Exists", "Equal"]},
                       effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]}),
    },
    containers={"type": "array", "items": CONTAINER, "minItems": 1},
    volumes={
        "type": "array",
        "items": group("name emptyDir", name=TEXT,
                       emptyDir=group("", medium={"enum": ["", "Memory"]}, sizeLimit=TEXT)),
    },
)  # fmt: skip
SCHEMA = group(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=group("name", name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,46}[a-z0-9])?$"}),
    spec=group(
        "entrypoint rayClusterSpec",
        entrypoint=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=WHOLE,
        backoffLimit=WHOLE,
        activeDeadlineSeconds=WHOLE,
        rayClusterSpec=group(
            "headGroupSpec",
            rayVersion=TEXT,
            authOptions=group("mode", mode={"enum": ["disabled", "token"]}),
            enableInTreeAutoscaling=FLAG,
            autoscalerOptions=group("", version={"enum": ["v1", "v2"]}, idleTimeoutSeconds=WHOLE),
            headGroupSpec=group("template", rayStartParams=TEXTS, template=group("spec", spec=POD)),
            workerGroupSpecs={
                "type": "array",
                "items": group("groupName template maxReplicas minReplicas", groupName=TEXT, replicas=WHOLE,
                               minReplicas=WHOLE, maxReplicas=WHOLE, rayStartParams=TEXTS,
                               template=group("spec", spec=POD)),
            },
        ),
    ),
)  # fmt: skip
"""Of KubeRay's definition of a RayJob (and Kubernetes' of a pod), what our manifest uses."""


def test_kubernetes_would_take_the_job() -> None:
    jsonschema.validate(JOB, SCHEMA)
    spoiled = copy.deepcopy(JOB)
    spoiled["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(spoiled, SCHEMA)


def test_the_kubernetes_job_is_the_same_cluster() -> None:
    cluster = JOB["spec"]["rayClusterSpec"]
    head, workers = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    pods = [g["template"]["spec"] for g in (head, *workers)]
    assert cluster["rayVersion"] == pinned("ray") and cluster["authOptions"] == {"mode": "token"}
    for pod in pods:
        (container,) = pod["containers"]
        assert f":{pinned('ray')}-" in container["image"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
        assert pod["restartPolicy"] == "Never"  # autoscaler v2 replaces pods itself
    assert head["rayStartParams"]["num-cpus"] == "0" and JOB["spec"]["shutdownAfterJobFinishes"]
    assert all(g["minReplicas"] == 0 and g["replicas"] == 0 for g in workers)


def test_the_kubernetes_job_runs_a_job_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    python, script, file, *overrides = JOB["spec"]["entrypoint"].split()
    where = {path: ROOT / path.removeprefix("/home/ray/source/") for path in (script, file)}
    assert python == "python" and where[script].is_file()
    assert load_job(InferJob, where[file], overrides).worker_gpus == 1


def test_documents_name_the_image_of_the_pinned_ray() -> None:
    versions = re.findall(r"rayproject/ray:([\d.]+)-", (ROOT / "docs" / "cluster.md").read_text())
    assert set(versions) == {pinned("ray")}

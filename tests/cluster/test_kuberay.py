"""The Kubernetes manifests against what KubeRay's resource definitions (v1, operator 1.5.1) and pods allow.

The schemas below were written by hand from KubeRay's API reference, for the fields that are used here: an unknown field
fails, as the API server would refuse it under strict validation.
"""

import shlex
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

FOLDER = Path(__file__).parents[2] / "cluster" / "kuberay"


def closed(required=(), **properties):
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def array(items):
    return {"type": "array", "items": items, "minItems": 1}


TEXT, COUNT, FLAG = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITY = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[KMGT]i?)?$"}
RESOURCES = closed(
    ("requests", "limits"),
    **{kind: {"type": "object", "additionalProperties": QUANTITY} for kind in ("requests", "limits")},
)
CONTAINER = closed(
    ("name", "image", "resources", "securityContext"),
    name=TEXT,
    image={"type": "string", "pattern": r"^[^:]+:[^:]+$", "not": {"pattern": ":latest$"}},
    resources=RESOURCES,
    volumeMounts=array(closed(("name", "mountPath"), name=TEXT, mountPath={"type": "string", "pattern": "^/"})),
    securityContext=closed(
        ("allowPrivilegeEscalation",),
        allowPrivilegeEscalation={"const": False},
        capabilities=closed(drop={"const": ["ALL"]}),
    ),
)
VOLUME = closed(
    ("name",),
    name=TEXT,
    persistentVolumeClaim=closed(("claimName",), claimName=TEXT),
    emptyDir=closed(medium={"enum": ["", "Memory"]}, sizeLimit=QUANTITY),
)
POD = closed(
    ("containers", "securityContext"),
    containers=array(CONTAINER),
    volumes=array(VOLUME),
    automountServiceAccountToken=FLAG,
    restartPolicy={"enum": ["Never", "OnFailure"]},
    securityContext=closed(("runAsNonRoot",), runAsNonRoot={"const": True}, runAsUser=COUNT, fsGroup=COUNT),
    tolerations=array(
        closed(key=TEXT, operator={"enum": ["Exists", "Equal"]}, value=TEXT, effect={"enum": ["NoSchedule"]})
    ),
)
TEMPLATE = closed(("metadata", "spec"), metadata=closed(("labels",), labels=STRINGS), spec=POD)
SPEC = closed(
    ("rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"),
    rayVersion={"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
    authOptions=closed(("mode",), mode={"enum": ["token", "disabled"]}),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=closed(
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        idleTimeoutSeconds=COUNT,
        version={"enum": ["v1", "v2"]},
    ),
    headGroupSpec=closed(
        ("rayStartParams", "template"),
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        rayStartParams=STRINGS,
        template=TEMPLATE,
    ),
    workerGroupSpecs=array(
        closed(
            ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            numOfHosts=COUNT,
            rayStartParams=STRINGS,
            template=TEMPLATE,
        )
    ),
)
JOB = closed(
    ("entrypoint", "rayClusterSpec"),
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    backoffLimit=COUNT,
    submitterPodTemplate=TEMPLATE,
    rayClusterSpec=SPEC,
)
NAMED = {"type": "object", "properties": {"name": TEXT, "generateName": TEXT}, "additionalProperties": False}


def resource(kind, spec):
    return closed(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=NAMED,
        spec=spec,
    )


def read(name):
    return yaml.safe_load((FOLDER / name).read_text())


def problems(manifest, schema):
    return [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(manifest)]


CASES = [("raycluster.yaml", resource("RayCluster", SPEC)), ("rayjob.yaml", resource("RayJob", JOB))]


@pytest.mark.parametrize(("name", "schema"), CASES)
def test_manifests_fit_the_definitions(name, schema):
    manifest = read(name)
    assert not problems(manifest, schema)
    cluster = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0  # must be text
    cluster["authOption"] = {}
    assert len(problems(manifest, schema)) == 2


@pytest.mark.parametrize(("name", "schema"), CASES)
def test_pods_are_of_one_image_share_the_folder_and_ask_for_a_token(name, schema):
    spec = read(name)["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    head, worker = (group["template"] for group in (cluster["headGroupSpec"], cluster["workerGroupSpecs"][0]))
    submitter = [spec["submitterPodTemplate"]] if "submitterPodTemplate" in spec else []
    assert len({pod["spec"]["containers"][0]["image"] for pod in (head, worker, *submitter)}) == 1
    policy = list(yaml.safe_load_all((FOLDER / "shared.yaml").read_text()))[1]
    assert all(policy["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
               for pod in (head, worker, *submitter))  # fmt: skip
    claim = next(iter(yaml.safe_load_all((FOLDER / "shared.yaml").read_text())))
    for pod in (head, worker):
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        assert mounts.keys() == volumes.keys() and mounts["shm"] == "/dev/shm"
        assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert "nvidia.com/gpu" in worker["spec"]["containers"][0]["resources"]["limits"]
    assert "nvidia.com/gpu" not in head["spec"]["containers"][0]["resources"]["limits"]


def test_the_standing_cluster_shows_its_dashboard_to_itself_alone():
    assert read("raycluster.yaml")["spec"]["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "127.0.0.1"


def test_the_job_asks_for_the_gpus_that_its_cluster_has_and_ends_it(script):
    from mantra_ray.sweep.options import parse

    spec = read("rayjob.yaml")["spec"]
    words = shlex.split(spec["entrypoint"])
    cut = len(words) - words[::-1].index("--")
    assert words[:2] == ["python", "cluster/with_nodes.py"] and words[cut : cut + 2][1] == "sweeps/cam_geometry.py"
    group = spec["rayClusterSpec"]["workerGroupSpecs"][0]
    each = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert int(words[words.index("--gpus") + 1]) == group["minReplicas"] * each == group["maxReplicas"] * each
    options = [word if word != "/runs" else "runs" for word in words[cut + 2 :]]
    assert parse(options, "").address == "auto"
    assert spec["shutdownAfterJobFinishes"] and spec["activeDeadlineSeconds"] > 0

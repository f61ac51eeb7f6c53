"""The manifests: by Kubernetes' own schemas, and the words in them by our own commands and configuration.

RayCluster has no schema in that package: its fields are checked against those of KubeRay's CRD and Go types (v1), and
the pods in it as pods.
"""

import shlex
from pathlib import Path

import click
import kubernetes_validate
import pytest
import yaml
from test_configs import AnyKey
from test_docs import parse

from proxy.config import load_config
from seedproof import check_contracts, cli

FOLDER = Path(__file__).parents[1] / "configs" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
RESOURCES = [one for name in KUSTOMIZATION["resources"] for one in yaml.safe_load_all((FOLDER / name).read_text())]
BY_KIND = {(one["kind"], one["metadata"]["name"]): one for one in RESOURCES}
RAY = BY_KIND["RayCluster", "seedproof"]["spec"]

# properties of kuberay's helm-chart/kuberay-operator/crds/ray.io_rayclusters.yaml, version v1, as read in November 2026
CLUSTER_FIELDS = {
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
    "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "workerGroupSpecs",
}  # fmt: skip
AUTOSCALER_FIELDS = {
    "env", "envFrom", "idleTimeoutSeconds", "image", "imagePullPolicy", "resources", "securityContext",
    "upscalingMode", "version", "volumeMounts",
}  # fmt: skip
HEAD_FIELDS = {"enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template"}
GROUP_FIELDS = {
    "groupName", "idleTimeoutSeconds", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams", "replicas",
    "scaleStrategy", "suspend", "template",
}  # fmt: skip


@pytest.mark.parametrize("resource", RESOURCES, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
@pytest.mark.parametrize("version", ["1.33", "1.37"])
def test_a_manifest_is_what_kubernetes_accepts(resource, version):
    if resource["kind"] == "RayCluster":
        resource = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "head"},
                    "template": RAY["headGroupSpec"]["template"]}  # fmt: skip
    kubernetes_validate.validate(resource, version, strict=True)


def test_a_misspelt_field_is_refused():
    broken = {**BY_KIND["Deployment", "seedproof-worker"], "specs": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.37", strict=True)


def test_the_ray_cluster_has_the_fields_that_kuberay_knows():
    assert BY_KIND["RayCluster", "seedproof"]["apiVersion"] == "ray.io/v1"
    assert set(RAY) <= CLUSTER_FIELDS
    assert set(RAY["autoscalerOptions"]) <= AUTOSCALER_FIELDS
    assert set(RAY["headGroupSpec"]) <= HEAD_FIELDS
    assert {"rayStartParams", "template"} <= set(RAY["headGroupSpec"])
    for group in RAY["workerGroupSpecs"]:
        assert set(group) <= GROUP_FIELDS
        assert {"groupName", "maxReplicas", "minReplicas", "template"} <= set(group)
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        pods = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "w"}, "template": group["template"]}
        kubernetes_validate.validate(pods, "1.37", strict=True)


def test_every_node_has_the_ray_that_is_locked():
    lock = (FOLDER.parents[1] / "requirements.lock").read_text()
    assert f"ray=={RAY['rayVersion']} " in lock
    groups = [RAY["headGroupSpec"], *RAY["workerGroupSpecs"]]
    images = {one["image"] for group in groups for one in group["template"]["spec"]["containers"]}
    assert images == {containers("Deployment", "seedproof-worker")[0]["image"]} == {"seedproof-ray"}
    assert {image["name"] for image in KUSTOMIZATION["images"]} == {"seedproof-proxy", "seedproof-ray"}


def pod(kind, name):
    spec = BY_KIND[kind, name]["spec"]
    return (spec["jobTemplate"]["spec"] if kind == "CronJob" else spec)["template"]["spec"]


def containers(kind, name):
    return pod(kind, name)["containers"]


COMMANDS = [
    ("StatefulSet", "seedproof-proxy"), ("Deployment", "seedproof-worker"), ("CronJob", "seedproof-purge"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), COMMANDS)
def test_the_commands_in_pods_parse(kind, name):
    for container in containers(kind, name):
        with pytest.raises(click.UsageError):
            parse(cli, [*container["args"], "--no-such-option"])
        parse(cli, shlex.split(shlex.join(container["args"])))


def test_pods_cannot_become_more_than_they_are():
    for kind, name in COMMANDS:
        assert pod(kind, name)["securityContext"]["runAsNonRoot"]
        assert not pod(kind, name)["automountServiceAccountToken"]
        for container in containers(kind, name):
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_the_configuration_loads_and_agrees_with_the_pods(tmp_path):
    path = tmp_path / "seedproof.toml"
    path.write_text(BY_KIND["ConfigMap", "seedproof"]["data"]["seedproof.toml"])
    config = load_config(path, AnyKey())
    check_contracts(config)
    secret = BY_KIND["Secret", "seedproof"]["stringData"]
    assert config.store == secret["SEEDPROOF_STORE"]
    assert {"SEEDPROOF_SEED_SECRET", "UPSTREAM_API_KEY", "PGPASSWORD"} <= secret.keys()
    (proxy,) = containers("StatefulSet", "seedproof-proxy")
    assert {port["containerPort"] for port in proxy["ports"]} == {config.port, config.metrics.port}
    (volume,) = [one for one in proxy["volumeMounts"] if one["name"] == "journal"]
    assert str(config.journal.directory).startswith(volume["mountPath"])
    grace = pod("StatefulSet", "seedproof-proxy")["terminationGracePeriodSeconds"]
    assert grace >= config.limits.drain_seconds + config.limits.shutdown_seconds + 10
    (claim,) = BY_KIND["StatefulSet", "seedproof-proxy"]["spec"]["volumeClaimTemplates"]
    assert int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi")) * 2**30 > config.journal.max_bytes
    models = {model.reference for upstream in config.upstreams for model in upstream.models.values()}
    assert all(name.startswith("/models/") for name in models)


def test_services_and_the_autoscaler_name_what_exists():
    hpa = BY_KIND["HorizontalPodAutoscaler", "seedproof-proxy"]["spec"]["scaleTargetRef"]
    assert (hpa["kind"], hpa["name"]) in BY_KIND
    labels = BY_KIND["StatefulSet", "seedproof-proxy"]["spec"]["template"]["metadata"]["labels"]
    for name in ("seedproof-proxy", "seedproof-proxy-pods"):
        assert BY_KIND["Service", name]["spec"]["selector"].items() <= labels.items()
    assert ("Service", BY_KIND["StatefulSet", "seedproof-proxy"]["spec"]["serviceName"]) in BY_KIND
    (worker,) = containers("Deployment", "seedproof-worker")
    # KubeRay names the head's service after the cluster
    assert "ray://seedproof-head-svc:10001" in worker["args"]

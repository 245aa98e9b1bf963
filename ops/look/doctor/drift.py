"""What a container was started with, compared with what is configured now.

Compose's own hash of a service does not serve: `config --hash` leaves out what `env_file` gives, and with a service to
build, `up --dry-run` tells nothing.
"""

from collections.abc import Mapping
from typing import Any

from ...config.units import seconds
from ...engine import capacity

SECRETS = "/run/secrets/"


def differences(
    container: Mapping[str, Any], service: str, model: Mapping[str, Any], image: Mapping[str, Any] | None
) -> list[str]:
    """Return the names of what differs: variables of the environment, keys of the service.

    :param container: as ``docker inspect`` has it
    :param model: the merged configuration
    :param image: the service's present image as ``docker image inspect`` has it, or None if it is not here
    """
    asked, there = configured(service, model), started_with(container)
    if image:
        asked["image"] = image["Id"]
        # A variable that left the files is still in the container. Proxies come from Docker's own configuration.
        asked["environment"] = dict(_pairs(image["Config"]["Env"])) | asked["environment"]
        more = {name for name in there["environment"] if not name.lower().endswith("_proxy")}
        names = asked["environment"].keys() | more
    else:
        names = set(asked["environment"])
    variables = [name for name in names if asked["environment"].get(name) != there["environment"].get(name)]
    keys = [key for key, value in asked.items() if key != "environment" and value != there[key]]
    return sorted(keys) + sorted(variables)


def configured(name: str, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the merged configuration asks of a container of a service, in the terms of ``started_with``."""
    service = model["services"][name]
    limits = capacity.limits(service)
    variables = service.get("environment", {})
    asked: dict[str, Any] = {
        "environment": {key: _plain(value) for key, value in variables.items() if value is not None},
        "cpus": round(float(limits.get("cpus", 0)) * 1e9),
        "memory": int(limits.get("memory", 0)),
        "pids": int(limits.get("pids", 0)),
        "restart": service.get("restart", "no"),
        "read_only": bool(service.get("read_only")),
        "cap_drop": {capability.removeprefix("CAP_") for capability in service.get("cap_drop", [])},
        "oom_score_adj": service.get("oom_score_adj", 0),
        "networks": {model["networks"][network]["name"] for network in service.get("networks", {})},
        "ports": {
            (f"{port['target']}/{port.get('protocol', 'tcp')}", port.get("host_ip", ""), str(port["published"]))
            for port in service.get("ports", [])
            if port.get("published")
        },
        "volumes": _mounts(service, model),
    }
    # What a service does not say has a default of the engine's or the image's own.
    if_any = {
        "command": [_plain(word) for word in service.get("command") or ()],
        "logging": service.get("logging", {}).get("options"),
        "user": service.get("user"),
        "stop_grace_period": (grace := service.get("stop_grace_period")) and seconds(grace),
        "healthcheck": (interval := service.get("healthcheck", {}).get("interval")) and seconds(interval),
    }
    return asked | {key: value for key, value in if_any.items() if value or value == 0}


def started_with(container: Mapping[str, Any]) -> dict[str, Any]:
    config, host = container["Config"], container["HostConfig"]
    return {
        "image": container["Image"],
        "environment": dict(_pairs(config["Env"])),
        "cpus": host["NanoCpus"],
        "memory": host["Memory"],
        "pids": host["PidsLimit"] or 0,
        "restart": host["RestartPolicy"]["Name"] or "no",
        "logging": host["LogConfig"]["Config"],
        "read_only": host["ReadonlyRootfs"],
        "cap_drop": {capability.removeprefix("CAP_") for capability in host["CapDrop"] or []},
        "oom_score_adj": host["OomScoreAdj"],
        "networks": set(container["NetworkSettings"]["Networks"]),
        "ports": {
            (target, binding["HostIp"], binding["HostPort"])
            for target, bindings in (host["PortBindings"] or {}).items()
            for binding in bindings
        },
        "volumes": {
            # Docker Desktop has the host's files in a folder of its own.
            mount["Destination"]: mount.get("Name") or mount["Source"].removeprefix("/host_mnt")
            for mount in container["Mounts"]
            if mount["Type"] in ("bind", "volume")
        },
        "command": config["Cmd"],
        "user": config["User"],
        "stop_grace_period": config.get("StopTimeout"),
        "healthcheck": (config.get("Healthcheck") or {}).get("Interval", 0) / 1e9,
    }


def _mounts(service: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for volume in service.get("volumes", []):
        if volume["type"] in ("bind", "volume"):
            named = volume["type"] == "volume" and volume.get("source")
            found[volume["target"]] = model["volumes"][named]["name"] if named else volume.get("source", "")
    for secret in service.get("secrets", []):
        target = secret.get("target") or secret["source"]
        found[target if target.startswith("/") else SECRETS + target] = model["secrets"][secret["source"]]["file"]
    return found


def _pairs(variables: list[str] | None) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (each.partition("=") for each in variables or [])]


def _plain(value: str) -> str:
    # Compose prints a $ as it would be written in a file.
    return value.replace("$$", "$")

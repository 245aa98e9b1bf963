"""A service for each queue, with replicas and limits of its own, and the media queue with its extra."""

from __future__ import annotations

import json

import pytest

from tests.stack.conftest import MakeStack, Stack, inspect

LAYERS = "compose/base.yml:compose/prod.yml:compose/secure-network.yml:compose/tls.yml:compose/queues.yml"
#: Those that are here from the beginning; a team has more.
SERVICES = {"worker-system": "system", "worker-load-test": "load_test", "worker-media": "media"}

PICTURE = """
from pathlib import Path
from PIL import Image
Image.new("RGB", (800, 600), "teal").save("/data/photo.jpg")
"""


@pytest.fixture(scope="module")
def queues(make_stack: MakeStack) -> Stack:
    stack = make_stack("prod", COMPOSE_FILE=LAYERS)
    stack.make("up")
    return stack


def test_each_service_serves_its_own_queue(queues: Stack) -> None:
    assert {"redis", *SERVICES} <= set(queues.compose("ps", "--services").split())
    assert dict.fromkeys(SERVICES.values(), 1).items() <= queues.app("health", "probe")["live_replicas"].items()
    for service, queue in SERVICES.items():
        assert f"WORKER_QUEUES={queue}" in queues.inspect(service)["Config"]["Env"]


def test_each_has_limits_of_its_own(queues: Stack) -> None:
    facts = [queues.inspect(service)["HostConfig"] for service in SERVICES]
    assert [host["Memory"] for host in facts] == [512 << 20, 1 << 30, 4 << 30]
    assert [host["NanoCpus"] for host in facts] == [10**9, 2 * 10**9, 2 * 10**9]
    assert [host["OomScoreAdj"] for host in facts] == [500] * 3  # they go before Redis


def test_one_queue_is_scaled_and_the_others_are_left_alone(queues: Stack) -> None:
    others = {service: queues.containers(service) for service in SERVICES if service != "worker-media"}
    queues.make("scale", "N=2", "QUEUE=media")
    media = queues.containers("worker-media")
    assert len(media) == 2
    queues.make("up")
    assert queues.containers("worker-media") == media
    assert {service: queues.containers(service) for service in others} == others
    queues.make("scale", "N=1", "QUEUE=media")


def test_scaling_what_is_not_there_says_what_is(queues: Stack) -> None:
    done = queues.make("scale", "N=2", "QUEUE=nope", check=False)
    assert done.returncode != 0
    said, _, services = done.stderr.splitlines()[0].partition(", but: ")
    assert said == "there is no service worker-nope in ENV=prod"
    assert all(service in services for service in SERVICES)


def test_pictures_are_resized_in_the_data_volume(queues: Stack) -> None:
    media = queues.container("worker-media")
    queues.run("docker", "exec", media, "python", "-c", PICTURE)
    job = queues.app("job", "enqueue", "resize_images", json.dumps(["photo.jpg"]), "--queue", "media", "--wait")
    assert job["success"], job
    assert queues.host("worker-media").file("/data/resized/photo-320.jpg").size > 500


def test_the_media_queue_without_its_extra_says_what_to_do(queues: Stack) -> None:
    done = queues.compose(
        "run", "--rm", "--no-deps", "--env", "WORKER_QUEUES=media", "worker-system", "worker", check=False
    )
    assert "APP_EXTRA=media" in done


def test_the_small_image_has_no_media_libraries(queues: Stack) -> None:
    small, large = (queues.inspect(service)["Image"] for service in ("worker-system", "worker-media"))
    sizes = [inspect(image)["Size"] for image in (small, large)]
    assert sizes[0] < 170 * 10**6 < sizes[1]

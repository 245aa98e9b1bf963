"""The worker's arguments, and what a ``WorkerSettings`` class may say."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import arq.worker
import pytest
from arq.connections import RedisSettings

from aegis_worker import Worker, create_worker
from aegis_worker.project import Project, current
from aegis_worker.worker.options import attributes, parameters


async def task(ctx: dict[Any, Any]) -> None: ...


def parameters_of(cls: type) -> dict[str, inspect.Parameter]:
    return dict(list(inspect.signature(cls.__init__).parameters.items())[1:])  # type: ignore[misc]


def test_the_worker_takes_each_of_arqs_arguments_by_name_and_default() -> None:
    ours, arqs = parameters_of(Worker), parameters_of(arq.worker.Worker)
    assert all(parameter.kind is not parameter.VAR_KEYWORD for parameter in ours.values())
    assert list(ours)[: len(arqs)] == list(arqs)
    for name, parameter in arqs.items():
        assert (name, ours[name].kind, ours[name].default) == (name, parameter.kind, parameter.default)
        assert ours[name].annotation is not parameter.empty


async def test_each_argument_reaches_arqs_worker() -> None:
    other: dict[str, Any] = {
        name: not default if isinstance(default, bool) else default + 7
        for name, parameter in parameters_of(arq.worker.Worker).items()
        if isinstance(default := parameter.default, bool | int | float) and name != "handle_signals"
    }
    other |= {"queue_name": "q", "health_check_key": "k", "ctx": {"a": 1}, "queue_read_limit": 3}
    ours, arqs = (cls([task], handle_signals=False, **other) for cls in (Worker, arq.worker.Worker))
    for name, value in vars(arqs).items():
        if isinstance(value, bool | int | float | str | dict) and name not in ("loop", "functions"):
            assert getattr(ours, name) == value, name


def test_what_a_subclass_takes_counts_also_where_it_passes_the_rest_on() -> None:
    class Own(Worker):
        def __init__(self, *args: Any, colour: str = "red", **options: Any) -> None:
            super().__init__(*args, **options)

    class Closed(Worker):
        def __init__(self, functions: Any, colour: str = "red") -> None:
            super().__init__(functions)

    assert parameters(Own) == parameters(Worker) | {"colour"}
    assert parameters(Closed) == {"functions", "colour"}


async def test_attributes_that_are_inherited_count_and_those_no_worker_knows_do_not() -> None:
    class Base:
        max_jobs = 4
        job_timeout = 9

    class WorkerSettings(Base):
        MY_CONST = 3
        functions = [task]  # noqa: RUF012
        max_jobs = 5
        handle_signals = False

    assert attributes(WorkerSettings)["job_timeout"] == 9
    worker = create_worker(WorkerSettings, max_tries=2)
    assert (worker.max_jobs, worker.job_timeout_s, worker.max_tries) == (5, 9, 2)


async def test_settings_may_be_a_dict_as_arqs() -> None:
    assert create_worker({"functions": [task], "max_jobs": 3, "handle_signals": False}).max_jobs == 3


@pytest.fixture
def project() -> Project:
    """The project at hand, with nothing noted yet."""
    project = Project(settings="", queues="")
    vars(project)["config"] = current().config
    return project


async def test_a_queue_runs_with_what_its_class_inherits(project: Project) -> None:
    class Base:
        max_jobs = 4
        functions = [task]  # noqa: RUF012

    class WorkerSettings(Base):
        MY_CONST = 3
        handle_signals = False

    worker = project.make_worker("photos", WorkerSettings)
    assert worker.max_jobs == 4
    assert arq.worker.get_kwargs(WorkerSettings)["max_jobs"] == 4  # type: ignore[arg-type]


async def test_what_has_no_effect_is_said_once(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    class WorkerSettings:
        MY_CONST = 3
        max_job = 30
        functions = [task]  # noqa: RUF012
        handle_signals = False
        redis_settings = RedisSettings(host="elsewhere")
        health_check_key = "worker:health:photos"

    with caplog.at_level(logging.WARNING):
        project.make_worker("photos", WorkerSettings)
        said = sorted(record.getMessage() for record in caplog.records)
        project.make_worker("photos", WorkerSettings)
    assert [text.removeprefix("WorkerSettings of photos: ") for text in said] == [
        "health_check_key 'worker:health:photos' has no effect, since each replica has a key of its own",
        "max_job is no option of a worker and is ignored; is max_jobs meant?",
        "redis_settings has no effect, since REDIS_URL says where the workers connect",
    ]
    assert len(caplog.records) == len(said)


async def test_the_projects_own_address_is_no_news(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    ours = project.config.redis_settings

    class WorkerSettings:
        functions = [task]  # noqa: RUF012
        handle_signals = False
        redis_settings = RedisSettings(host=ours.host, port=ours.port)  # the guide's, without a password

    with caplog.at_level(logging.WARNING):
        project.make_worker("photos", WorkerSettings)
    assert not caplog.records

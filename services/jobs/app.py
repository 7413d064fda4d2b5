"""The bare Celery object: queues, acknowledgement, redelivery. Messages carry ids and are hints; rows are the truth."""

from celery import Celery, signals
from kombu.entity import Queue
from redis._parsers.base import BaseParser
from redis.exceptions import ConnectionError as BrokerAway

from services.jobs.shares import Shares
from services.runtime import alive, logs
from services.runtime.settings import Settings


class BrokerFull(BrokerAway):
    """The broker refuses writes because its disk is full; treated as an unavailable broker."""


BaseParser.EXCEPTION_CLASSES["MISCONF"] = BrokerFull  # else it would be an error of the command, which ends the worker

LESSONS_QUEUE = "lessons"
"""Wakes the trainer; read with kombu, not by workers."""

_settings = Settings()
shares = Shares(num_draws=_settings.max_groups_in_flight)
app = Celery("preceptor", broker=_settings.redis_url)
app.conf.update(
    include=[
        "services.jobs.sample",
        "services.jobs.consult",
        "services.jobs.maintain",
        "services.jobs.effects",
        "services.jobs.readmit",
        "services.jobs.retain",
    ],
    task_queues=[Queue("sample"), Queue("consult"), Queue("maintain")],
    task_default_queue="maintain",
    task_routes={"sample": "sample", "consult": "consult", "maintain": "maintain", "measure": "maintain"},
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    worker_concurrency=shares.num_threads,
    worker_consumer="services.jobs.consumer:LastingConsumer",
    worker_soft_shutdown_timeout=20,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_transport_options={
        "visibility_timeout": 300,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "socket_timeout": 5,
        "socket_connect_timeout": 5,
    },
    task_publish_retry_policy={"max_retries": 2, "interval_start": 0.1, "interval_step": 0.2, "interval_max": 0.5},
    beat_schedule={
        "maintain": {"task": "maintain", "schedule": 1.0, "options": {"expires": 5}},
        "readmit": {"task": "readmit", "schedule": 5.0, "options": {"expires": 5}},
        "retain": {"task": "retain", "schedule": 3600.0},
    },
    beat_max_loop_interval=1,
    beat_scheduler="celery.beat:Scheduler",  # without a file: the schedule is here, and a full disk is harmless
)


@signals.setup_logging.connect
def set_up_logging(**_: object) -> None:
    """Make worker and beat log like our other processes: a receiver of this signal replaces Celery's own logging."""
    logs.configure()


@signals.task_success.connect
def note_done(**_: object) -> None:
    """A worker is alive while tasks succeed: the sweep runs every second, through the broker and the database."""
    alive.touch()


@signals.beat_init.connect
def watch_beat(**_: object) -> None:
    """Beat is alive while the broker accepts its messages."""
    signals.after_task_publish.connect(note_sent, weak=False)


def note_sent(**_: object) -> None:
    """One message is with the broker."""
    alive.touch()

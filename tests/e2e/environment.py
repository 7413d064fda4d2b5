"""The settings under which a random policy of a few thousand weights goes through the loop in seconds."""

import os

SETTINGS = {
    "PRECEPTOR_GROUP_SIZE": "4",
    "PRECEPTOR_MAX_NEW_TOKENS": "12",
    "PRECEPTOR_MAX_BACKLOG_LESSONS": "24",
    "PRECEPTOR_MAX_STALENESS": "100",
    "PRECEPTOR_TRAINER_PUBLISH_EVERY": "1",
    "PRECEPTOR_TRAINER_LORA_R": "4",
    "PRECEPTOR_TRAINER_PATIENCE_SECONDS": "3",
    "PRECEPTOR_TRAINER_GATE_LENGTH_RATIO": "1000",  # a random policy's lengths say nothing
    "PRECEPTOR_TRAINER_GATE_MAX_KL_BASE": "1000",
    "PRECEPTOR_TRAINER_GATE_MAX_KL_PREVIOUS": "1000",
    "OMP_NUM_THREADS": "1",
}


def loop_environment() -> dict[str, str]:
    """This process's environment without any Preceptor of its own, and with these settings."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("PRECEPTOR_") and not k.endswith("_URL")}
    return {**own, **SETTINGS}

"""What the sandbox's HTTP interface may answer instead of a result; one handler renders each as a problem document."""


class SandboxError(Exception):
    """Base of them; `status_code` and `title` belong to the class, the message says what to do."""

    status_code = 500
    title = "The sandbox failed"
    retry_after_seconds: int | None = None


class IsolationRefused(SandboxError):
    """This machine does not allow the isolation that the settings ask for. Raised at start; the process then ends."""

    title = "Cannot isolate runs on this machine"


class SandboxBusy(SandboxError):
    status_code = 429
    title = "All slots are taken and the queue is full"
    retry_after_seconds = 1


class BatchTooLarge(SandboxError):
    status_code = 422
    title = "The batch has more runs than can ever be admitted together"


class SandboxStopping(SandboxError):
    status_code = 503
    title = "The sandbox is stopping or starting"
    retry_after_seconds = 2


class LanguageUnavailable(SandboxError):
    status_code = 422
    title = "This machine has no toolchain for the language"

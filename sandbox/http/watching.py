"""What the ASGI middlewares of the sandbox share."""

from starlette.types import Message, Send


class StatusWatch:
    """Sends messages on and keeps the status of the answer. status: None until there is an answer."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

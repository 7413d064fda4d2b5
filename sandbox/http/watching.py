"""The status of an answer, for ASGI middlewares that count or log requests."""

from starlette.types import Message, Send


class StatusWatch:
    """Sends messages on and keeps the status of the answer: 500 until it begins, since then the application raised."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 500

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

"""Asks experts over HTTP, trusting nothing they send.

The address is checked where the connection is made, so neither a literal address, a mapped one nor a name that changes
its mind reaches a network that is not allowed. Redirects are not followed, replies are read up to a limit, parsed
strictly and compared with the consultation. What comes out is one of four typed outcomes, or ExpertUnavailable: never a
made-up score.
"""

import asyncio
import contextlib
import io
import ipaddress
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from types import TracebackType
from typing import Final, Self, TypeAlias, TypeVar
from uuid import uuid4
from weakref import WeakSet

import aiohttp
from aiohttp.abc import ResolveResult
from pydantic import BaseModel, TypeAdapter, ValidationError
from yarl import URL

from services.contracts.answers import AnswerKind, SamplesDistribution, check_against_rollout
from services.contracts.consultations import InvalidAnswer
from services.contracts.experts import (
    ConsultAbstain,
    ConsultLater,
    ConsultRequest,
    ConsultResponse,
    ConsultResult,
    Descriptor,
)
from services.contracts.strict_json import NotStrictJson, parse_json
from services.experts.protocol import signatures
from services.runtime.errors import InvalidInput, ServiceUnavailable

MAX_REPLY_BYTES: Final = 8 * 1024 * 1024
LARGE_BODY_BYTES: Final = 256 * 1024
CONNECT_SECONDS: Final = 5.0
CLOSING_TURNS: Final = 100  # of the event loop, which needs two or three to notice that a connection has ended
KEEPALIVE_SECONDS: Final = 2.0  # shorter than servers keep theirs (uvicorn: 5), or a request meets a closing socket
DESCRIBE_SECONDS: Final = 10.0
MAX_RETRY_AFTER: Final = 3600.0
ASK_AGAIN: Final = frozenset({401, 403, 404, 405, 407, 408, 425, 429})
"""Refusals that are not about the consultation itself: a person or time can fix them, so it stays open."""
NAT64: Final = ipaddress.ip_network("64:ff9b::/96")

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Outcome: TypeAlias = ConsultResult | ConsultAbstain | ConsultLater | InvalidAnswer

M = TypeVar("M", bound=BaseModel)
_RESPONSE: Final[TypeAdapter[ConsultResult | ConsultAbstain]] = TypeAdapter(ConsultResponse)


class EndpointRefused(InvalidInput):
    """The address given is not an expert's that may be asked; the detail says why."""

    title = "Endpoint refused"
    hint = "`preceptor experts check URL` shows every case an expert must pass."


class ExpertUnavailable(ServiceUnavailable):
    """The expert gave no answer this time: away, slow, busy or failing.

    retry_after: seconds, only when the expert is well but busy (429).
    """

    title = "Expert unavailable"

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after


class BrokenReply(Exception):
    """What came back is not a reply of the protocol."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def check_address(host: str, allowed: Iterable[Network]) -> None:
    """Pass when a connection to this literal address may be made: it is public, or in an allowed network.

    Addresses that carry an IPv4 address (mapped, NAT64, 6to4) are judged by that one. Errors: EndpointRefused (422).
    """
    address = _unwrap(ipaddress.ip_address(host))
    if any(address.version == network.version and address in network for network in allowed):
        return
    if not address.is_global or address.is_multicast or address.is_reserved:
        raise EndpointRefused(f"the endpoint is at {address}, which is neither public nor in an allowed network")


def _unwrap(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


class NotingResolver(aiohttp.ThreadedResolver):
    """Looks names up, and keeps the addresses that the names it was told to note have now."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self._addresses: dict[str, frozenset[str]] = {name.lower(): frozenset() for name in names}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of a host."""
        found = await super().resolve(host, port, family)
        if host.lower() in self._addresses:
            self._addresses[host.lower()] = frozenset(one["host"] for one in found)
        return found

    def has_noted(self, address: str) -> bool:
        """Whether a noted name had this address when it was last looked up."""
        return any(address in addresses for addresses in self._addresses.values())


def is_network(allowed: str) -> bool:
    """Whether an allowed place is written as a network or an address, and not as a host's name."""
    return "/" in allowed or ":" in allowed or allowed.replace(".", "").isdigit()


class ExpertClient:
    """Connections to experts; lives on one event loop. Use as an async context manager or close it.

    allowed_networks: where experts may be besides public addresses: networks, or hosts' names. Errors: ValueError for
    what looks like a network and is none.
    trace_configs: aiohttp's hooks into every request.
    """

    def __init__(
        self,
        allowed_networks: Iterable[str],
        *,
        max_reply_bytes: int = MAX_REPLY_BYTES,
        trace_configs: Sequence[aiohttp.TraceConfig] = (),
    ) -> None:
        places = list(allowed_networks)
        self._allowed = [ipaddress.ip_network(place) for place in places if is_network(place)]
        self._allowed_names = [place for place in places if not is_network(place)]
        self._resolver: NotingResolver | None = None
        self._max_reply_bytes = max_reply_bytes
        self._trace_configs = list(trace_configs)
        self._session: aiohttp.ClientSession | None = None
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._closed = False
        self._ahead = timedelta(0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections, including those with a half-read request; no consultation is possible afterwards."""
        self._closed = True
        if self._session is None:
            return
        session, self._session = self._session, None
        # By themselves they would wait for the rest to be taken, and outlive us.
        for one in self._open_sockets():
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        await session.close()
        for _ in range(CLOSING_TURNS):
            if not self._open_sockets():
                break
            await asyncio.sleep(0)

    def set_clock(self, now: datetime) -> None:
        """Go by a clock that shows this time now, whatever this machine's own says: the one that sets deadlines."""
        self._ahead = datetime.now(UTC) - now

    def _now(self) -> datetime:
        return datetime.now(UTC) - self._ahead

    async def describe(self, endpoint: str, secret: str | None = None) -> Descriptor:
        """What the expert says of itself. With a secret its signature must hold.

        Errors: EndpointRefused (422) when something else answers there, or at an address that is not allowed;
        ExpertUnavailable (503).
        """
        message_id = f"msg_{uuid4().hex}"
        headers = signatures.sign(secret, message_id, b"", self._now()) if secret is not None else {}
        try:
            reply = await self.send("GET", endpoint, "/v1/expert", headers=headers, timeout=DESCRIBE_SECONDS)
            _raise_if_unavailable(reply, self._now())
            if reply.status != 200:
                raise BrokenReply(f"answers {reply.status} to GET /v1/expert")
            _check_json(reply)
            if secret is not None:
                _check_signature(reply, secret, message_id, self._now())
            return _parse(Descriptor, reply.body)
        except BrokenReply as error:
            raise EndpointRefused(f"{endpoint} {error}") from None

    async def check_health(self, endpoint: str) -> None:
        """Return when the expert says it is up. Errors: EndpointRefused (422), ExpertUnavailable (503)."""
        try:
            reply = await self.send("GET", endpoint, "/healthz", timeout=DESCRIBE_SECONDS)
        except BrokenReply as error:
            raise EndpointRefused(f"{endpoint} {error}") from None
        _raise_if_unavailable(reply, self._now())
        if reply.status != 200:
            raise EndpointRefused(f"{endpoint} answers {reply.status} to GET /healthz")

    async def consult(
        self,
        endpoint: str,
        request: ConsultRequest,
        secret: str | None,
        timeout: float,
        vocab_size: int | None = None,
    ) -> Outcome:
        """The expert's answer to a consultation, or that it broke the contract (InvalidAnswer, with the reason).

        timeout: seconds for the whole exchange, whatever the expert does, cut at the consultation's deadline.
        Errors: ExpertUnavailable (503) for failures that are not about the rollout: no connection, no answer in time,
        429, 5xx, a clock that differs.
        """
        seconds = min(timeout, (request.deadline - self._now()).total_seconds())
        if seconds <= 0:
            raise ExpertUnavailable("the consultation's deadline has passed")
        body = request.model_dump_json(exclude_none=True).encode()
        message_id = str(request.consultation_id)
        headers = {"Content-Type": "application/json"}
        if secret is not None:
            headers |= signatures.sign(secret, message_id, body, self._now())
        try:
            reply = await self.send("POST", endpoint, "/v1/consult", headers=headers, body=body, timeout=seconds)
            read = partial(_read_outcome, reply, request, secret, message_id, vocab_size, self._now())
            # megabytes take a while to parse, and other experts' answers wait for the loop
            return await asyncio.to_thread(read) if len(reply.body) >= LARGE_BODY_BYTES else read()
        except BrokenReply as error:
            return InvalidAnswer(reason=str(error)[:2000])
        except EndpointRefused as error:
            raise ExpertUnavailable(error.detail) from None

    async def send(
        self,
        method: str,
        endpoint: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout: float,
    ) -> Reply:
        """One exchange, whatever its status. Raises BrokenReply for a redirect, an encoded or too large reply.

        Errors: EndpointRefused (422) for an address that may not be asked; ExpertUnavailable (503).
        """
        url = _build_url(endpoint, path)
        try:
            async with asyncio.timeout(timeout):
                try:
                    return await self._exchange(method, url, headers, body)
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                    if isinstance(error, aiohttp.ClientConnectorError):
                        raise
                    # most likely a kept connection that the server closed meanwhile; asking twice changes nothing
                    return await self._exchange(method, url, headers, body)
        except aiohttp.InvalidURL as error:
            raise EndpointRefused(f"{endpoint} is not an address that can be asked: {error}") from None
        except TimeoutError:
            raise ExpertUnavailable(f"no answer from {url.host} within {timeout:.3g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise ExpertUnavailable(f"{url.host}: {type(error).__name__}: {error}"[:500]) from None

    async def _exchange(self, method: str, url: URL, headers: Mapping[str, str] | None, body: bytes | None) -> Reply:
        # aiohttp writes a stream piece by piece; large bytes at once would hold up the loop
        data = io.BytesIO(body) if body is not None and len(body) >= LARGE_BODY_BYTES else body
        async with self._open().request(method, url, data=data, headers=headers, allow_redirects=False) as response:
            if 300 <= response.status < 400:
                raise BrokenReply(f"redirects (status {response.status}); register the address it redirects to")
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise BrokenReply("answers in a content encoding that was not offered")
            received = await self._read(response)
            return Reply(response.status, {k.lower(): v for k, v in response.headers.items()}, received)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        received = bytearray()
        async for chunk in response.content.iter_any():
            received += chunk
            if len(received) > self._max_reply_bytes:
                raise BrokenReply(f"answers with more than {self._max_reply_bytes} bytes")
        return bytes(received)

    def _open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise ExpertUnavailable("the client was closed")
        if self._session is None:
            self._resolver = NotingResolver(self._allowed_names)
            connector = aiohttp.TCPConnector(
                resolver=self._resolver,
                limit=0,  # how many are asked at a time is the caller's business
                keepalive_timeout=KEEPALIVE_SECONDS,
                socket_factory=self._make_socket,
                happy_eyeballs_delay=None,  # one address after the other, so that a refusal is seen and not raced past
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "preceptor"},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                trust_env=False,
                trace_configs=self._trace_configs,
            )
        return self._session

    def _make_socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        """A socket for the very address that is about to be connected to, if it is allowed."""
        family, kind, protocol, _, where = info
        if self._resolver is None or not self._resolver.has_noted(str(where[0])):
            check_address(str(where[0]), self._allowed)
        made = socket.socket(family, kind, protocol)
        self._sockets.add(made)
        return made

    def _open_sockets(self) -> list[socket.socket]:
        return [one for one in self._sockets if one.fileno() >= 0]


def _build_url(endpoint: str, path: str) -> URL:
    try:
        url = URL(endpoint.rstrip("/") + path)
    except ValueError as error:
        raise EndpointRefused(f"{endpoint} is not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise EndpointRefused(f"{endpoint} is not an http or https URL")
    if url.user or url.password or url.query_string or url.fragment:
        raise EndpointRefused("an endpoint has no user, query or fragment; use a signing secret instead")
    return url


def _read_outcome(
    reply: Reply,
    request: ConsultRequest,
    secret: str | None,
    message_id: str,
    vocab_size: int | None,
    now: datetime,
) -> Outcome:
    _raise_if_unavailable(reply, now)
    if reply.status not in (200, 202):
        raise BrokenReply(f"refuses the consultation with {reply.status}: {_quote(reply.body)}")
    _check_json(reply)
    if secret is not None:
        _check_signature(reply, secret, message_id, now)
    if reply.status == 202:
        return _parse(ConsultLater, reply.body)
    outcome = _parse_response(reply.body)
    if isinstance(outcome, ConsultResult):
        _check_fit(outcome, request, vocab_size)
    return outcome


def _check_fit(result: ConsultResult, request: ConsultRequest, vocab_size: int | None) -> None:
    unasked = result.kinds() - set(request.ask.kinds) - {AnswerKind.EVIDENCE}
    if unasked:
        raise BrokenReply(f"gives {', '.join(sorted(unasked))}, which was not asked for")
    rollout = request.rollout
    try:
        check_against_rollout(
            result, num_tokens=len(rollout.token_ids), tokenizer_hash=rollout.tokenizer_hash, vocab_size=vocab_size
        )
    except ValueError as error:
        raise BrokenReply(f"does not fit the rollout: {error}") from None
    distribution = result.distribution
    if isinstance(distribution, SamplesDistribution) and request.ask.prefixes:
        unasked_prefixes = set(distribution.prefixes) - set(request.ask.prefixes)
        if unasked_prefixes:
            raise BrokenReply(f"continues prefixes that were not asked for: {sorted(unasked_prefixes)[:5]}")


def _read_wish(header: str, now: datetime) -> float:
    """The seconds of a Retry-After header, given as a number or as a date; 1 if it cannot be read."""
    if header.isascii() and header.isdecimal():
        seconds = float(header)
    else:
        try:
            seconds = (parsedate_to_datetime(header) - now).total_seconds()
        except (ValueError, TypeError):  # no date, or one without a time zone
            return 1.0
    return min(max(seconds, 1.0), MAX_RETRY_AFTER)


def _raise_if_unavailable(reply: Reply, now: datetime) -> None:
    if reply.status >= 500 or reply.status in ASK_AGAIN:
        retry_after = None
        if reply.status == 429:
            retry_after = _read_wish(reply.headers.get("retry-after", ""), now)
        raise ExpertUnavailable(f"answers {reply.status}: {_quote(reply.body)}", retry_after)


def _check_json(reply: Reply) -> None:
    content_type = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "text/html":
        raise BrokenReply("answers HTML; this looks like a web page, not an expert")
    if content_type != "application/json":
        raise BrokenReply(f"answers with the content type {content_type[:100] or 'missing'}, not application/json")


def _check_signature(reply: Reply, secret: str, message_id: str, now: datetime) -> None:
    try:
        signed_id = signatures.verify(secret, reply.headers, reply.body, now)
    except signatures.ClockDiffers as error:
        raise ExpertUnavailable(f"its signature does not hold: {error}") from None
    except signatures.SignatureInvalid as error:
        raise BrokenReply(f"does not sign its answer: {error}") from None
    if signed_id != message_id:
        raise BrokenReply("signs its answer for another consultation")


def _parse(contract: type[M], body: bytes) -> M:
    try:
        parse_json(body)
        return contract.model_validate_json(body, strict=True)
    except NotStrictJson as error:
        raise BrokenReply(f"does not answer JSON that can be kept: {error}") from None
    except ValidationError as error:
        raise BrokenReply(f"does not answer a {contract.__name__}: {_first_errors(error)}") from None


def _parse_response(body: bytes) -> ConsultResult | ConsultAbstain:
    try:
        parse_json(body)
        return _RESPONSE.validate_json(body, strict=True)
    except NotStrictJson as error:
        raise BrokenReply(f"does not answer JSON that can be kept: {error}") from None
    except ValidationError as error:
        raise BrokenReply(f"does not answer a result or an abstention: {_first_errors(error)}") from None


def _first_errors(error: ValidationError) -> str:
    shown = [f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in error.errors(include_url=False)[:3]]
    return "; ".join(shown)[:1500]


def _quote(body: bytes) -> str:
    """The start of a body for a person to read, on one line."""
    return " ".join(body[:400].decode(errors="replace").replace("\0", "").split())[:300]


__all__ = ["EndpointRefused", "ExpertClient", "ExpertUnavailable", "Outcome", "check_address"]

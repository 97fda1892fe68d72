"""Rendezvous of the ranks of a run, and the check that their start values are equal. Sockets, JSON, no torch.

Rank 0 listens. Every other rank sends one line of JSON: the run, its rank, its world size and its start
values. When all have arrived, rank 0 compares the lines and answers each with the port of torch's store or
with the error. Every step has a deadline. Torch's own client has none: it waits forever for a port that
accepts connections and sends nothing.
"""

from __future__ import annotations

import json
import secrets
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ham.agreement import SAME_START, Identity, PeerLostError, StartError, compare
from ham.endpoint import Endpoint

_REPLY_SECONDS = 3.0  # a rank 0 that is alive acknowledges at once
_LINGER_SECONDS = 2.0  # after an error rank 0 also answers ranks that start late
_LONGEST = 2**20  # bytes of a line
_CURE = "start all ranks with torchrun or srun, see docs/clusters.md"


class Listener:
    """Rank 0's end of the rendezvous: collects the start values of the other ranks.

    Args:
        endpoint: address to listen on. Port 0 is any free port.
        world_size: number of ranks.

    Raises:
        PeerLostError: no port is free.
    """

    def __init__(self, endpoint: Endpoint, world_size: int) -> None:
        self.endpoint, self.world_size = endpoint, world_size
        self._server = _listen(endpoint)
        self._server.setblocking(False)
        self.port: int = self._server.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._arrived: dict[int, _Connection] = {}
        self._disconnected: dict[int, float] = {}
        self._error: PeerLostError | StartError | None = None

    def collect(self, own: Identity, timeout: float) -> None:
        """Wait for all ranks and compare them with `own`.

        Raises:
            PeerLostError: a rank did not arrive in time.
            StartError: a rank was started differently; its message is sent to all.
        """
        deadline = time.monotonic() + timeout
        while len(self._arrived) < self.world_size - 1 and not self._error:
            self._serve(min(deadline, time.monotonic() + _REPLY_SECONDS))
            self._check_disconnected()
            if time.monotonic() >= deadline and not self._error:
                raise self._refuse(PeerLostError(self._missing(timeout)))
        identities = [own, *(self._arrived[rank].line["identity"] for rank in sorted(self._arrived))]
        error = self._error
        if error is None and (problem := compare(identities)):
            error = StartError(problem)
        if error is not None:
            raise self._refuse(error)

    def answer(self, store_port: int) -> None:
        """Send the port of torch's store to all ranks."""
        for connection in self._arrived.values():
            connection.send({"store": store_port})
        self.close()

    def close(self) -> None:
        """Stop listening."""
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
        self._selector.close()

    def _refuse(self, error: PeerLostError | StartError) -> PeerLostError | StartError:
        """Send the error to all ranks, also to those that arrive a moment later; return it."""
        self._error = error
        for connection in self._arrived.values():
            connection.refuse(error)
        deadline = time.monotonic() + _LINGER_SECONDS
        while len(self._arrived) < self.world_size - 1 and self._serve(deadline):
            pass
        self.close()
        return error

    def _missing(self, timeout: float) -> str:
        missing = [str(rank) for rank in range(1, self.world_size) if rank not in self._arrived]
        ranks = f"rank {missing[0]}" if len(missing) == 1 else f"ranks {', '.join(missing)}"
        where = f"at {self.endpoint.address}:{self.port} within {timeout:g} s (compute.timeout)"
        return f"{ranks} of {self.world_size} did not arrive {where}: {_CURE}"

    def _serve(self, deadline: float) -> bool:
        """Handle the next connection or line; return False after the deadline."""
        events = self._selector.select(max(deadline - time.monotonic(), 0))
        for key, _ in events:
            if key.fileobj is self._server:
                client = self._server.accept()[0]
                client.settimeout(_REPLY_SECONDS)
                self._selector.register(client, selectors.EVENT_READ, _Connection(client))
            elif (connection := key.data).receive():
                self._admit(connection)
            elif connection.closed:
                self._drop(connection)
        return bool(events) or time.monotonic() < deadline

    def _drop(self, connection: _Connection) -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()
        if connection not in self._arrived.values():
            return
        rank = connection.line["rank"]
        del self._arrived[rank]
        self._disconnected[rank] = time.monotonic()

    def _check_disconnected(self) -> None:
        """Raise PeerLostError for a rank whose connection ended, unless it connects again at once."""
        for rank, since in self._disconnected.items():
            if rank not in self._arrived and time.monotonic() - since > 2 * _REPLY_SECONDS:
                problem = f"rank {rank} ended before all ranks had arrived, see the end of its log"
                self._error = PeerLostError(problem)

    def _admit(self, connection: _Connection) -> None:
        """Acknowledge a rank of this run, or reject it with the reason; ignore other connections."""
        line = connection.line
        rank, size = line.get("rank"), line.get("world_size")
        connection.send({"run": self.endpoint.run})
        if line.get("run") != self.endpoint.run or not isinstance(line.get("identity"), dict):
            return
        if size != self.world_size:
            counts = f"rank {rank} counts {size} ranks, rank 0 counts {self.world_size}"
            self._error = StartError(f"{counts}: {SAME_START}")
        elif rank not in range(1, size):
            connection.send({"refused": f"rank {rank} of {size} does not exist: {SAME_START}"})
        elif rank in self._arrived and self._arrived[rank].line.get("token") != line.get("token"):
            problem = f"another process already is rank {rank}: two runs share one MASTER_PORT"
            connection.send({"refused": problem})
        else:
            self._arrived[rank] = connection
        if self._error:
            connection.refuse(self._error)


@dataclass(eq=False)
class _Connection:
    """A connection to rank 0 and the line received over it."""

    socket: socket.socket
    text: bytes = b""
    line: dict[str, Any] = field(default_factory=dict)
    closed: bool = False

    def receive(self) -> bool:
        """Read the available bytes; return True once, when the line is complete."""
        try:
            part = self.socket.recv(_LONGEST)
        except OSError:
            part = b""
        self.text += part
        self.closed = not part or len(self.text) > _LONGEST
        if self.line or b"\n" not in self.text:
            return False
        self.line = _parse(self.text)
        self.closed = not self.line
        return bool(self.line)

    def refuse(self, error: PeerLostError | StartError) -> None:
        """Send an error, which `connect` raises."""
        self.send({"lost" if isinstance(error, PeerLostError) else "error": str(error)})

    def send(self, content: dict[str, Any]) -> None:
        """Send one line. The first collective detects a rank that has ended."""
        try:
            self.socket.sendall(json.dumps(content).encode() + b"\n")
        except OSError:
            self.closed = True


def _listen(endpoint: Endpoint) -> socket.socket:
    local = endpoint.address in ("127.0.0.1", "localhost")
    dual = not local and socket.has_dualstack_ipv6()
    options = {"family": socket.AF_INET6, "dualstack_ipv6": True} if dual else {"family": socket.AF_INET}
    for port in endpoint.ports:
        try:
            return socket.create_server(("127.0.0.1" if local else "", port), backlog=1024, **options)
        except OSError as error:
            reason = error.strerror
    ports = ", ".join(map(str, endpoint.ports[:3]))
    raise PeerLostError(f"rank 0 cannot listen on port {ports} ({reason}): set another MASTER_PORT")


def connect(
    find: Callable[[], Endpoint], rank: int, world_size: int, own: Identity, timeout: float
) -> tuple[Endpoint, int]:
    """Announce a rank other than 0 to rank 0; return rank 0's endpoint and the port of torch's store.

    `find` returns rank 0's endpoint. It is called before each try: its first result may be of an earlier
    start.

    Raises:
        PeerLostError: rank 0 was not found, or ended.
        StartError: rank 0's answer is an error.
    """
    deadline = time.monotonic() + timeout
    line = {"rank": rank, "world_size": world_size, "identity": own}
    line["token"] = secrets.token_hex(8)  # of this process, which may have to connect again
    failure = "nothing listens there"
    endpoint = find()
    while time.monotonic() < deadline:
        for port in endpoint.ports:
            try:
                with socket.create_connection((endpoint.address, port), _REPLY_SECONDS) as client:
                    if client.getsockname() == client.getpeername():  # Linux connected it to itself
                        continue
                    client.sendall(json.dumps(line | {"run": endpoint.run}).encode() + b"\n")
                    replies = client.makefile("rb")
                    acknowledged = _parse(replies.readline(_LONGEST))
                    if acknowledged.get("run") == endpoint.run:
                        client.settimeout(max(deadline - time.monotonic(), 0) + 2 * _LINGER_SECONDS)
                        return endpoint, _store_port(_parse(replies.readline(_LONGEST)))
                    failure = f"another program listens on port {port}"
            except ConnectionRefusedError:
                continue
            except OSError as error:
                failure = str(error.strerror or error)
        time.sleep(0.1)
        endpoint = find()
    where = f"at {endpoint.address}:{endpoint.ports[0]} within {timeout:g} s (compute.timeout; {failure})"
    raise PeerLostError(f"rank {rank} of {world_size} did not find rank 0 {where}: {_CURE}")


def _store_port(answer: dict[str, Any]) -> int:
    if "error" in answer:
        error = StartError(answer["error"])
        error.shared = True
        raise error
    if "refused" in answer:  # only this rank
        raise StartError(answer["refused"])
    if "lost" in answer:
        raise PeerLostError(answer["lost"])
    if "store" not in answer:
        raise PeerLostError("rank 0 ended before all ranks had arrived, see the end of its log")
    return answer["store"]


def _parse(text: bytes) -> dict[str, Any]:
    """The object in a line of JSON; {} for any other text."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}

"""How ranks find each other and compare what they were started with: threads take the place of processes."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from ham import rendezvous
from ham.agreement import PeerLostError, StartError, compare, difference
from ham.endpoint import Endpoint, endpoint_of, first_node
from ham.rendezvous import Listener, connect

STEP = {
    "SLURM_STEP_NODELIST": "gpu3",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_JOB_ID": "41234",
    "SLURM_STEP_ID": "0",
}
OWN = {"seed": 1, "optimizer.lr": 0.1}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_REPLY_SECONDS", 0.3)
    monkeypatch.setattr(rendezvous, "_LINGER_SECONDS", 0.4)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def held(answer: bytes = b"") -> Iterator[int]:
    """A port that another program holds: it accepts connections, and sends `answer`."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as pool:
        open_ = []

        def accept() -> None:
            try:
                while True:
                    open_.append(server.accept()[0])
                    open_[-1].sendall(answer)
            except OSError:
                return

        pool.submit(accept)
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        for client in open_:
            client.close()


def lead(endpoint: Endpoint, size: int, own: dict, timeout: float) -> int:
    listener = Listener(endpoint, size)
    listener.collect(own, timeout)
    listener.answer(4242)
    return listener.port


def join(endpoint: Endpoint, rank: int, size: int, own: dict, timeout: float) -> int:
    """The port of the store that a rank other than 0 learns."""
    return connect(lambda: endpoint, rank, size, own, timeout)[1]


def meet(identities: list[dict | None], *, ports: tuple[int, ...] = (), timeout: float = 10.0) -> list:
    """Each rank's port of the store (of rank 0: where it listens) or its error; None never starts."""
    endpoint = Endpoint("127.0.0.1", ports or (free_port(),), "run 7")
    size = len(identities)
    with ThreadPoolExecutor() as pool:
        ends = [pool.submit(lead, endpoint, size, identities[0], timeout)]
        for rank, own in enumerate(identities[1:], start=1):
            if own is not None:
                ends.append(pool.submit(join, endpoint, rank, size, own, timeout))
        return [end.exception() or end.result() for end in ends]


def test_ranks_that_were_started_alike_get_the_port_of_the_store() -> None:
    assert meet([OWN, OWN, OWN, OWN])[1:] == [4242] * 3


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (OWN | {"seed": 2}, "rank 2 differs from rank 0: seed is 2 there and 1 on rank 0"),
        (OWN | {"optimizer.lr": 0.2}, "optimizer.lr is 0.2 there and 0.1 on rank 0"),
        ({"seed": 1}, "optimizer.lr is missing there and 0.1 on rank 0"),
        (OWN | {"ham.alpha": 5}, "ham.alpha is 5 there and missing on rank 0"),
        ({"error": "unknown option 'lr'"}, "rank 2 of 3: unknown option 'lr'"),
    ],
)
def test_one_that_differs_ends_all_with_the_same_line(other: dict, words: str) -> None:
    ends = meet([OWN, OWN, other])
    assert all(isinstance(end, StartError) and words in str(end) for end in ends), ends
    assert len({str(end) for end in ends}) == 1


def test_the_error_that_all_ranks_have_is_stated_as_it_is() -> None:
    ends = meet([{"error": "unknown option 'lr'"}] * 3)
    assert [str(end) for end in ends] == ["unknown option 'lr'"] * 3


def test_a_rank_that_does_not_come_is_named_in_time() -> None:
    since = time.monotonic()
    ends = meet([OWN, OWN, None, None], timeout=1.0)
    assert all("ranks 2, 3 of 4 did not arrive at 127.0.0.1" in str(end) for end in ends), ends
    assert isinstance(ends[0], PeerLostError) and time.monotonic() - since < 8


def test_without_rank_0_the_others_end_in_time() -> None:
    with pytest.raises(PeerLostError, match=r"rank 1 of 2 did not find rank 0 at .* nothing listens there"):
        join(Endpoint("127.0.0.1", (free_port(),)), 1, 2, OWN, 0.5)


@pytest.mark.parametrize("listens", [False, True])
def test_a_rank_asks_again_where_rank_0_listens(listens: bool) -> None:
    """What it hears first is of an earlier start: nothing listens there, or another run's rank 0."""
    other = Listener(Endpoint("127.0.0.1", (0,), "run 6"), 2)
    own = Listener(Endpoint("127.0.0.1", (0,), "run 7"), 2)
    if not listens:
        other.close()
    with ThreadPoolExecutor() as pool:
        ends = [pool.submit(listener.collect, OWN, 1.5) for listener in ([other] if listens else [])]
        early, right = (
            Endpoint("127.0.0.1", (o.port,), run) for o, run in ((other, "run 5"), (own, "run 7"))
        )
        answers = iter([early, early])
        end = pool.submit(connect, lambda: next(answers, right), 1, 2, OWN, 10.0)
        own.collect(OWN, 10.0)
        own.answer(4242)
        assert end.result() == (right, 4242)
        assert all("rank 1 of 2 did not arrive" in str(e.exception()) for e in ends)


@pytest.mark.parametrize(
    "answer", [b"", b"220 mail ready\r\n", b'{"run": "run 8"}\n', b"[]\n", b"\xff\xfe\n"]
)
def test_a_port_that_another_program_holds_is_passed_over(answer: bytes) -> None:
    with held(answer) as taken:
        free = free_port()
        assert meet([OWN, OWN], ports=(taken, free)) == [free, 4242]
        with pytest.raises(PeerLostError, match=r"another program listens|timed out"):
            join(Endpoint("127.0.0.1", (taken,), "run 7"), 1, 2, OWN, 0.5)
        with pytest.raises(PeerLostError, match=r"cannot listen on port .* set another MASTER_PORT"):
            Listener(Endpoint("127.0.0.1", (taken,)), 2)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00\xff\n",
        b"[" * 5000 + b"\n",
        b'{"run": "run 8", "rank": 1, "world_size": 2, "identity": {}}\n',
        b'{"run": "run 7", "rank": 1, "world_size": 2, "identity": []}\n',
        b'{"run": "run 7", "rank": "1", "world_size": 2, "identity": {}}\n',
        b'{"run": "run 7", "rank": 0, "world_size": 2, "identity": {}}\n',
    ],
)
def test_strangers_at_the_port_of_rank_0_do_no_harm(text: bytes) -> None:
    listener = Listener(Endpoint("127.0.0.1", (0,), "run 7"), 2)
    with ThreadPoolExecutor() as pool, socket.create_connection(("127.0.0.1", listener.port)) as stranger:
        collected = pool.submit(listener.collect, OWN, 10.0)
        stranger.sendall(text)
        port = pool.submit(join, Endpoint("127.0.0.1", (listener.port,), "run 7"), 1, 2, OWN, 10.0)
        collected.result()
        listener.answer(99)
        assert port.result() == 99


def test_a_second_process_of_one_rank_is_refused_and_the_first_stays() -> None:
    listener = Listener(Endpoint("127.0.0.1", (0,)), 3)
    endpoint = Endpoint("127.0.0.1", (listener.port,))
    with ThreadPoolExecutor() as pool:
        collected = pool.submit(listener.collect, OWN, 10.0)
        ends = [pool.submit(join, endpoint, 1, 3, OWN, 10.0) for _ in range(2)]
        while not any(end.done() for end in ends):
            time.sleep(0.01)
        refused = next(end for end in ends if end.done())
        assert "another process already is rank 1" in str(refused.exception())
        ends.append(pool.submit(join, endpoint, 2, 3, OWN, 10.0))
        collected.result()
        listener.answer(7)
        assert [end.result() for end in ends if end is not refused] == [7, 7]


@pytest.mark.parametrize("sizes", [(2, 3), (3, 2)])
def test_ranks_that_count_differently_end_with_both_numbers(sizes: tuple[int, int]) -> None:
    endpoint = Endpoint("127.0.0.1", (free_port(),))
    with ThreadPoolExecutor() as pool:
        first = pool.submit(lead, endpoint, sizes[0], OWN, 10.0)
        second = pool.submit(join, endpoint, 1, sizes[1], OWN, 10.0)
        words = f"rank 1 counts {sizes[1]} ranks, rank 0 counts {sizes[0]}"
        assert words in str(first.exception()) and words in str(second.exception())


def test_a_rank_that_dies_while_others_are_awaited_is_named() -> None:
    listener = Listener(Endpoint("127.0.0.1", (0,)), 3)
    with ThreadPoolExecutor() as pool:
        collected = pool.submit(listener.collect, OWN, 10.0)
        with socket.create_connection(("127.0.0.1", listener.port)) as client:
            line = {"run": "", "rank": 2, "world_size": 3, "identity": OWN}
            client.sendall(json.dumps(line).encode() + b"\n")
            client.makefile("rb").readline()
        assert "rank 2 ended before all ranks had arrived" in str(collected.exception())


def test_the_ports_of_steps_jobs_and_restarts_differ() -> None:
    steps = [
        STEP,
        STEP | {"SLURM_STEP_ID": "1"},  # two steps of one job
        STEP | {"SLURM_JOB_ID": "61234"},  # two jobs on one node
        STEP | {"SLURM_RESTART_COUNT": "1"},  # the job before it was requeued
    ]
    endpoints = [endpoint_of(step) for step in steps]
    assert len({endpoint.run for endpoint in endpoints}) == 4
    assert len({port for endpoint in endpoints for port in endpoint.ports}) > 60
    assert all(20000 <= port < 32000 for endpoint in endpoints for port in endpoint.ports)
    assert endpoint_of(dict(STEP)) == endpoints[0] and endpoints[0].address == "127.0.0.1"
    given = endpoint_of(STEP | {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"})
    assert given == Endpoint("10.0.0.7", (29500,), endpoints[0].run)
    assert endpoint_of(STEP | {"MASTER_ADDR": "10.0.0.7"}).ports == endpoints[0].ports
    nodes = STEP | {"SLURM_STEP_NODELIST": "gpu[3-4]", "SLURM_STEP_NUM_NODES": "2"}
    assert endpoint_of(nodes).address == "gpu3"


@pytest.mark.parametrize("port", [None, "", "no", "0", "65536", "-1", "29500.0"])
def test_outside_of_slurm_a_port_must_be_given(port: str | None) -> None:
    with pytest.raises(StartError, match=r"MASTER_PORT.* start all ranks with torchrun or srun"):
        endpoint_of({} if port is None else {"MASTER_PORT": port})
    for good in (1, 29500, 65535):
        assert endpoint_of({"MASTER_PORT": str(good)}) == Endpoint("127.0.0.1", (good,))


def test_two_steps_with_the_same_first_port_both_start() -> None:
    ports = (free_port(), free_port())
    endpoints = [Endpoint("127.0.0.1", ports, run) for run in ("9.0.0", "9.1.0")]
    with ThreadPoolExecutor() as pool:
        ends = [pool.submit(join, endpoint, 1, 2, OWN, 10.0) for endpoint in endpoints]
        listeners = [Listener(endpoint, 2) for endpoint in endpoints]
        assert tuple(listener.port for listener in listeners) == ports

        def serve(number: int) -> None:
            listeners[number].collect(OWN, 10.0)
            listeners[number].answer(number)

        for leader in [pool.submit(serve, number) for number in (0, 1)]:
            leader.result()
        assert [end.result() for end in ends] == [0, 1]


def test_a_connection_of_a_socket_to_itself_is_not_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux makes one where nobody listens on a port of the range from which it takes those of clients."""
    create_connection, selves = socket.create_connection, list[socket.socket]()

    def connect_to_itself(address: tuple[str, int], timeout: float) -> socket.socket:
        if selves:
            return create_connection(address, timeout)
        client = socket.socket()
        selves.append(client)
        client.settimeout(timeout)
        client.bind(("127.0.0.1", 0))
        client.connect(client.getsockname())
        return client

    monkeypatch.setattr(rendezvous.socket, "create_connection", connect_to_itself)
    listener = Listener(Endpoint("127.0.0.1", (0,)), 2)
    endpoint = Endpoint("127.0.0.1", (listener.port,))
    with ThreadPoolExecutor() as pool:
        end = pool.submit(join, endpoint, 1, 2, OWN, 2.0)
        listener.collect(OWN, 2.0)
        listener.answer(7)
        assert end.result() == 7
    assert selves[0].fileno() == -1, "it is closed"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n0", "n0"),
        ("n0,n1", "n0"),
        ("n[0-1]", "n0"),
        ("a100-[003-006,010],b1", "a100-003"),
        ("gpu[7,9-12]", "gpu7"),
        ("rack[1-2]node[03-04].site", "rack1node03.site"),
    ],
)
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_long_values_are_shortened_and_order_does_not_matter() -> None:
    assert difference({"a": 1, "b": 2}, {"b": 2, "a": 1}) is None
    assert compare([{"a": 1}]) is None and compare([{"a": 1}] * 5) is None
    text = difference({"code": "x" * 99}, {"code": "y" * 99})
    assert len(text) < 110 and "yyy..." in text


# parts of the talk


@pytest.fixture
def pair() -> Iterator[tuple[rendezvous._Connection, socket.socket]]:
    """Rank 0's end of a connection, and the other rank's socket."""
    ours, theirs = socket.socketpair()
    yield rendezvous._Connection(ours), theirs
    ours.close()
    theirs.close()


def test_a_line_is_complete_with_its_end_and_counts_once(pair: tuple) -> None:
    connection, theirs = pair
    theirs.sendall(b'{"rank"')
    assert not connection.receive() and not connection.closed and connection.line == {}
    theirs.sendall(b": 1}\n")
    assert connection.receive() and not connection.closed and connection.line == {"rank": 1}
    theirs.sendall(b'{"rank": 2}\n')
    assert not connection.receive() and connection.line == {"rank": 1} and not connection.closed
    theirs.close()
    assert not connection.receive() and connection.closed


@pytest.mark.parametrize("text", [b"no json\n", b"[]\n", b"{}\n"])
def test_a_line_that_says_nothing_ends_the_connection(pair: tuple, text: bytes) -> None:
    connection, theirs = pair
    theirs.sendall(text)
    assert not connection.receive() and connection.closed


def test_a_line_without_an_end_is_given_up_above_a_megabyte(pair: tuple) -> None:
    connection, theirs = pair
    connection.text = b"x" * (2**20 - 1)
    for closed in (False, True):
        theirs.sendall(b"x")
        assert not connection.receive() and connection.closed is closed


def test_a_connection_that_broke_is_closed(pair: tuple) -> None:
    connection, theirs = pair
    theirs.close()
    connection.send({"a": 1})
    connection.closed = False
    connection.send({"a": 1})
    assert connection.closed
    connection.socket.close()
    connection.closed = False
    assert not connection.receive() and connection.closed


@pytest.mark.parametrize(
    ("error", "key"), [(PeerLostError("gone"), "lost"), (StartError("gone"), "error")], ids=["lost", "start"]
)
def test_a_refusal_is_raised_as_the_same_error(pair: tuple, error: Exception, key: str) -> None:
    connection, theirs = pair
    connection.refuse(error)
    answer = json.loads(theirs.recv(100))
    assert answer == {key: "gone"}
    with pytest.raises(type(error), match=r"^gone$") as caught:
        rendezvous._store_port(answer)
    assert getattr(caught.value, "shared", None) is (True if key == "error" else None), "rank 0 prints it"


def test_the_answer_of_rank_0_is_a_port_or_why_this_rank_has_none() -> None:
    assert rendezvous._store_port({"store": 7}) == 7
    with pytest.raises(StartError, match=r"^not you$") as caught:
        rendezvous._store_port({"refused": "not you"})
    assert caught.value.shared is False, "this rank alone has it, and prints it"
    with pytest.raises(
        PeerLostError, match=r"^rank 0 ended before all ranks had arrived, see the end of its"
    ):
        rendezvous._store_port({})


def test_missing_ranks_are_named_with_place_and_time() -> None:
    listener = Listener(Endpoint("127.0.0.1", (0,), "run 7"), 4)
    end = f"at 127.0.0.1:{listener.port} within 1.5 s (compute.timeout): {rendezvous._CURE}"
    assert listener._missing(1.5) == f"ranks 1, 2, 3 of 4 did not arrive {end}"
    listener._arrived = {1: None, 2: None}
    assert listener._missing(1.5) == f"rank 3 of 4 did not arrive {end}"
    listener.close()


def test_a_rank_that_is_gone_has_twice_the_time_of_an_answer_to_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rendezvous, "_REPLY_SECONDS", 4.0)
    listener = Listener(Endpoint("127.0.0.1", (0,), "run 7"), 4)
    listener._disconnected = {1: 100.0, 2: 96.0}
    listener._arrived = {2: None}
    for now, named in ((108.0, False), (108.5, True)):
        monkeypatch.setattr(rendezvous.time, "monotonic", lambda now=now: now)
        listener._check_disconnected()
        assert (listener._error is not None) is named
    assert str(listener._error) == "rank 1 ended before all ranks had arrived, see the end of its log"
    listener.close()


@pytest.mark.parametrize(
    ("line", "answers", "arrived"),
    [
        ({}, [{"run": "run 7"}], True),
        ({"run": "run 8"}, [{"run": "run 7"}], False),
        ({"identity": None}, [{"run": "run 7"}], False),
        ({"rank": 0}, [{"run": "run 7"}, {"refused": "rank 0 of 3 does not exist: SAME"}], False),
        ({"rank": 3}, [{"run": "run 7"}, {"refused": "rank 3 of 3 does not exist: SAME"}], False),
        ({"rank": 2}, [{"run": "run 7"}], True),
        (
            {"world_size": 2},
            [{"run": "run 7"}, {"error": "rank 1 counts 2 ranks, rank 0 counts 3: SAME"}],
            False,
        ),
    ],
)
def test_who_arrives_is_acknowledged_and_admitted_or_refused_with_a_reason(
    pair: tuple, line: dict, answers: list[dict], arrived: bool
) -> None:
    connection, theirs = pair
    listener = Listener(Endpoint("127.0.0.1", (0,), "run 7"), 3)
    connection.line = {"run": "run 7", "rank": 1, "world_size": 3, "identity": {}} | line
    listener._admit(connection)
    text = json.dumps(answers).replace("SAME", rendezvous.SAME_START)
    assert [json.loads(sent) for sent in theirs.recv(1000).splitlines()] == json.loads(text)
    assert listener._arrived == ({connection.line["rank"]: connection} if arrived else {})
    listener.close()


def test_a_process_may_connect_again_and_another_one_of_its_rank_may_not(pair: tuple) -> None:
    connection, theirs = pair
    listener = Listener(Endpoint("127.0.0.1", (0,), ""), 3)
    line = {"run": "", "rank": 1, "world_size": 3, "identity": {}, "token": "a"}
    for token, count in (("a", 1), ("a", 1), ("b", 2)):
        listener._admit(rendezvous._Connection(connection.socket, line=line | {"token": token}))
        answers = theirs.recv(1000).splitlines()
        assert len(answers) == count
    what = "another process already is rank 1: two runs share one MASTER_PORT"
    assert json.loads(answers[1]) == {"refused": what}
    listener.close()


def test_a_port_that_cannot_be_had_names_the_first_three(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple] = []

    def create_server(address: tuple[str, int], **options: object) -> None:
        tried.append((address, options["family"], options.get("dualstack_ipv6", False)))
        raise OSError(98, "Address already in use")

    monkeypatch.setattr(socket, "create_server", create_server)
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: True)
    message = r"^rank 0 cannot listen on port 1, 2, 3 \(Address already in use\): set another MASTER_PORT$"
    for address in ("localhost", "127.0.0.1", "node0"):
        with pytest.raises(PeerLostError, match=message):
            rendezvous._listen(Endpoint(address, (1, 2, 3, 4)))
    local = [(("127.0.0.1", port), socket.AF_INET, False) for port in (1, 2, 3, 4)]
    assert tried == local * 2 + [(("", port), socket.AF_INET6, True) for port in (1, 2, 3, 4)]
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with pytest.raises(PeerLostError):
        rendezvous._listen(Endpoint("node0", (5,)))
    assert tried[-1] == (("", 5), socket.AF_INET, False)


def test_a_rank_that_finds_nobody_says_where_it_looked_and_for_how_long() -> None:
    port = free_port()
    with pytest.raises(PeerLostError) as caught:
        join(Endpoint("127.0.0.1", (port, free_port()), "run 7"), 2, 3, OWN, 0.15)
    assert str(caught.value) == (
        f"rank 2 of 3 did not find rank 0 at 127.0.0.1:{port} within 0.15 s "
        f"(compute.timeout; nothing listens there): {rendezvous._CURE}"
    )


@pytest.mark.parametrize("text", [b'{"a": 1}', b'{"a": 1}\n'])
def test_a_line_of_json_is_an_object_or_nothing(text: bytes) -> None:
    assert rendezvous._parse(text) == {"a": 1}
    for wrong in (b"", b"1", b"[1]", b"{", b"[" * 100_000):
        assert rendezvous._parse(wrong) == {}

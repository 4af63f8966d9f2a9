"""Scheduler: what the engine's worker thread runs next.

The worker owns the device and everything here except what is said to be called from elsewhere. Work
comes in by one inbox. It waits in several queues: two per model, for the hops of its live streams,
which are stepped together in lanes, and for first steps, some of which are made together; and one
for all that runs alone: ends, snapshots, streams of several hops a step. Each turn serves the queue
that has waited longest, a tick of all hops that are there, some first steps or one call, so that
no model and no burst of new streams holds up the others; a session has one hop in a turn, however
many it has sent. All answers of a turn go to each outlet at once.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import torch

from streamenc.engine.exchange import outputs
from streamenc.engine.exchange.door import Answer, Outlet
from streamenc.engine.exchange.staging import Timing
from streamenc.engine.group import NEVER, Group, Result
from streamenc.engine.seats import Request, Seat
from streamenc.engine.statistics import Meter
from streamenc.errors import UsageError
from streamenc.models.model import Model
from streamenc.models.signal import is_signal


class Scheduler:
    """See the module. All but `run` is for other threads to call.

    open     The seats of all open sessions.
    closed   Whether the worker has ended or is about to.
    process  The one whose thread the worker is.
    """

    def __init__(
        self, max_sessions: int, max_wait_ms: float, idle_timeout_seconds: float | None
    ) -> None:
        self.open: set[Seat] = set()
        self.closed = False
        self.meter = Meter()
        self.process = os.getpid()
        self._lock = threading.Lock()
        self._max_sessions = max_sessions
        self._max_wait_ns = round(max_wait_ms * 1e6)
        self._idle_timeout_seconds = idle_timeout_seconds
        self._next_expiry_ns = 0 if idle_timeout_seconds is not None else NEVER
        self._inbox: SimpleQueue[Request | list[Request] | Seat | None] = SimpleQueue()
        self._groups: dict[Model, Group] = {}
        self._alone: deque[Request] = deque()
        self._alone_served_ns = 0
        self._answers: dict[Outlet, list[Answer]] = {}
        self._latencies_ns: list[int] = []  # of this turn's answers
        self._late = 0

    def submit(self, requests: Request | list[Request]) -> None:
        """Sends the worker a request, or several. Raises UsageError once it has ended."""
        self.check_process()
        with self._lock:
            self.check_open()
            self._inbox.put(requests)

    def check_open(self) -> None:
        """Raises UsageError once the worker has ended."""
        if self.closed:
            raise UsageError("this engine is closed; open another one")

    def check_process(self) -> None:
        """Raises UsageError in a fork of the worker's process: no thread comes along there."""
        if os.getpid() != self.process:
            raise UsageError(
                f"this engine works in process {self.process}, and process {os.getpid()} is a fork "
                "of it, which its thread did not come along to: open another engine after the "
                "fork, or start processes by spawn (multiprocessing.get_context('spawn'))"
            )

    def end(self) -> None:
        """Lets the worker end after the turn in hand; may be called twice, and in a fork."""
        if os.getpid() != self.process:
            return
        with self._lock:
            self.closed = True
            self._inbox.put(None)

    def close(self, seat: Seat, why: str) -> None:
        """Closes a seat, from any thread, a finalizer's too: its place is free at once."""
        seat.closed = seat.closed or why
        # In this order: who takes the place comes to the worker after the lane is free.
        self._inbox.put(seat)
        self.open.discard(seat)

    def run(self) -> None:
        """The worker's whole life."""
        try:
            while self._receive():
                turn = self._next_turn()
                if turn is not None:
                    turn()
                self._send_answers()
        finally:
            with self._lock:
                self.closed = True
            self._tell_the_rest()

    def _receive(self) -> bool:
        """Takes in what has come, and waits where there is nothing to do; False at the end."""
        closed: list[Seat] = []
        try:
            message = self._inbox.get(timeout=self._seconds_to_wait())
            while message is not None:
                if isinstance(message, Request):
                    self._admit(message)
                elif isinstance(message, Seat):
                    closed.append(message)
                else:
                    for request in message:
                        self._admit(request)
                message = self._inbox.get_nowait()
            return False
        except Empty:
            pass
        if closed:
            self._remove(closed)
        if (now_ns := time.perf_counter_ns()) >= self._next_expiry_ns:
            self._expire(now_ns)
        return True

    def _seconds_to_wait(self) -> float | None:
        if self._alone or self._answers:
            return 0
        until_ns = self._next_expiry_ns
        for group in self._groups.values():
            if group.joining:
                return 0
            if group.ready:
                until_ns = min(until_ns, _due_ns(group))
        return None if until_ns == NEVER else max(0, until_ns - time.perf_counter_ns()) / 1e9

    def _next_turn(self) -> Callable[[], None] | None:
        """What has waited longest since it could run."""
        now_ns = time.perf_counter_ns()
        longest_ns, turn = NEVER, None
        if self._alone:
            # A tick takes all that are ready; of these calls one runs, and the next waits anew.
            longest_ns = max(_since_ns(self._alone[0]), self._alone_served_ns)
            turn = self._run_alone
        for group in self._groups.values():
            if group.ready and _due_ns(group) <= now_ns:
                since_ns = _since_ns(next(iter(group.ready)).requests[0])
                if since_ns < longest_ns:
                    longest_ns, turn = since_ns, partial(self._tick, group)
            if group.joining:
                first = next(iter(group.joining)).requests[0]
                since_ns = max(_since_ns(first), group.joined_ns)
                if since_ns < longest_ns:
                    longest_ns, turn = since_ns, partial(self._join, group)
        return turn

    def _admit(self, request: Request) -> None:
        seat = request.seat
        if seat is None:
            self._alone.append(request)
            return
        if seat.closed:
            self._answer(request, None, UsageError(seat.closed))
            return
        if seat.group is None:
            seat.group = self._group(seat)
            seat.group.seats.add(seat)
        seat.requests.append(request)
        if len(seat.requests) == 1:
            self._advance(seat)

    def _advance(self, seat: Seat) -> None:
        """Brings a seat's first request to the queue for what it needs next, or answers it."""
        stream, group = seat.stream, seat.group
        assert group is not None
        while seat.requests:
            request = seat.requests[0]
            if request.call is None:
                if not request.begun:
                    try:
                        self._begin(request, seat)
                    except Exception as error:  # whatever the chunk is, its sender hears of it
                        self._finish(seat, request, None, error)
                        continue
                if seat.row is None and not stream.ready:
                    self._finish(seat, request, self._output(seat, request))
                    continue
                if seat in group.started:
                    group.ready[seat] = None
                    due_ns = request.arrived_ns + self._max_wait_ns
                    if due_ns < group.due_ns:
                        group.due_ns = due_ns
                    return
                if stream.hops == 1 and not stream.started:
                    group.joining[seat] = None
                    return
                if seat.row is not None:
                    stream.put(group.staging.to_device(group.staging.matrix([seat.row])))
                    seat.row = None
            self._alone.append(request)
            return

    @staticmethod
    def _begin(request: Request, seat: Seat) -> None:
        """Takes a call's chunk in: as it was staged, where it is what the next step takes."""
        stream, staged = seat.stream, request.staged
        if (
            staged is not None
            and stream.hops == 1
            and not stream.pending
            and staged[1] == stream.size
            and stream.has_room(staged[1])
        ):
            seat.row = staged[0]
        else:
            chunk = request.chunk
            if staged is not None:
                assert seat.group is not None
                chunk = seat.group.staging.matrix([staged[0]])
            with torch.inference_mode():
                stream.take(chunk)
        request.begun, request.chunk, request.staged = True, None, None
        request.codebooks = stream.codebooks  # one number for the whole call

    def _output(self, seat: Seat, request: Request) -> outputs.Output:
        """What came of a call's steps, one after the other."""
        if request.outputs:
            return outputs.cat(request.outputs)
        assert seat.group is not None
        return seat.group.staging.to_host(seat.stream.joined([], request.codebooks))

    def _tick(self, group: Group) -> None:
        """One hop of all that are ready."""
        seats, group.ready, group.due_ns = list(group.ready), {}, NEVER
        self._run(group, seats, group.hop)

    def _join(self, group: Group) -> None:
        """Some first steps."""
        self._run(group, group.newcomers(), group.begin)
        group.joined_ns = time.perf_counter_ns()

    def _run(
        self,
        group: Group,
        seats: list[Seat],
        step: Callable[[Sequence[Seat]], tuple[list[Result], Timing]],
    ) -> None:
        """Steps of some seats in a batch, and what follows from them."""
        begin_ns, ran = time.perf_counter_ns(), group.lanes.ran
        timing = Timing(group.device)
        results: list[Result]
        try:
            results, timing = step(seats)
        except Exception as error:  # out of memory, say: the callers hear of it, the engine goes on
            results = [error] * len(seats)
        end_ns = time.perf_counter_ns()
        self.meter.waited([begin_ns - _since_ns(seat.requests[0]) for seat in seats])
        self.meter.ran(
            group.lanes.model,
            timing.duration_ns or end_ns - begin_ns,
            len(seats),
            group.lanes.ran - ran or (len(seats) if step == group.begin else 1),
            by_events=timing.by_events,
        )
        for seat, result in zip(seats, results, strict=True):
            seat.served_ns = end_ns
            request = seat.requests[0]
            if isinstance(result, Exception):
                self._finish(seat, request, None, result)
            elif result is not None:
                if request.outputs is None:
                    request.outputs = [result]
                else:
                    request.outputs.append(result)
                if not seat.stream.pending:
                    self._finish(seat, request, self._output(seat, request))
        if step == group.begin:
            group.settle(seats)
        for seat in seats:
            if seat.requests:
                self._advance(seat)
        self._count_answers()

    def _run_alone(self) -> None:
        """One call, or one step of a stream that is in no lane."""
        request = self._alone.popleft()
        seat = request.seat
        if seat is not None and seat.closed:
            return
        result, failure = None, None
        begin_ns, since_ns = time.perf_counter_ns(), _since_ns(request)
        try:
            if request.call is not None:
                result = request.call()
                if seat is not None and is_signal(result):
                    result = seat.staging.to_host(result)
            elif seat is not None and seat.group is not None:
                request.outputs = [*(request.outputs or ()), seat.group.by_itself(seat)]
        except BaseException as error:  # whatever it is, it belongs to the caller
            failure = error
        end_ns = self._alone_served_ns = time.perf_counter_ns()
        if seat is None:
            self._answer(request, result, failure)
            return
        assert seat.group is not None
        seat.served_ns = end_ns
        if request.call is None:
            self.meter.ran(seat.group.lanes.model, end_ns - begin_ns, 1, 1)
            self.meter.waited([begin_ns - since_ns])
        if request.call is not None or failure is not None:
            self._finish(seat, request, result, failure)
        seat.group.settle([seat])
        self._advance(seat)
        self._count_answers()

    def warm(self, model: Model, codebooks: int | None, sessions: int | None) -> list[int]:
        """For the worker to call; see Group.warm."""
        return self._group_of(model).warm(codebooks, sessions or self._max_sessions)

    def warm_lanes(self, model: Model, lanes: int, codebooks: int | None) -> None:
        """For the worker to call; see Group.warm_lanes."""
        self._group_of(model).warm_lanes(lanes, codebooks)

    def _group(self, seat: Seat) -> Group:
        return self._group_of(seat.stream.model)

    def _group_of(self, model: Model) -> Group:
        if model not in self._groups:
            self._groups[model] = Group(model, self._max_sessions, self.meter)
        return self._groups[model]

    def _remove(self, seats: list[Seat]) -> None:
        """Forgets seats that were closed."""
        groups: dict[Group, list[Seat]] = {}
        for seat in seats:
            for request in seat.requests:
                self._answer(request, None, UsageError(seat.closed))
            seat.requests.clear()
            if seat.group is not None:
                groups.setdefault(seat.group, []).append(seat)
        for group, closed in groups.items():
            group.settle(closed)
            if not group.seats and not group.warmed:
                group.close()
                self._groups.pop(group.lanes.model, None)

    def _expire(self, now_ns: int) -> None:
        """Closes the seats that nobody has called for too long."""
        assert self._idle_timeout_seconds is not None
        timeout_ns = round(self._idle_timeout_seconds * 1e9)
        self._next_expiry_ns = now_ns + timeout_ns
        closed: list[Seat] = []
        for seat in list(self.open):
            expiry_ns = seat.active_ns + timeout_ns
            if seat.requests:
                continue
            if expiry_ns <= now_ns:
                self.meter.timed_out += 1
                seat.closed = (
                    f"this session was closed after {self._idle_timeout_seconds:g} s without a "
                    "call, and its place given back; open another one, or open the engine with a "
                    "longer idle_timeout_seconds"
                )
                closed.append(seat)
            else:
                self._next_expiry_ns = min(self._next_expiry_ns, expiry_ns)
        self._remove(closed)
        self.open.difference_update(closed)

    def _finish(
        self, seat: Seat, request: Request, result: Any, error: BaseException | None = None
    ) -> None:
        """Answers a seat's first request."""
        assert seat.requests[0] is request
        seat.requests.popleft()
        seat.active_ns = now_ns = time.perf_counter_ns()
        if request.outputs:
            latency_ns = now_ns - request.arrived_ns
            self._latencies_ns.append(latency_ns)
            self._late += latency_ns > len(request.outputs) * seat.stream.hops * seat.hop_ns
        self._answer(request, result, error)

    def _answer(self, request: Request, result: Any, error: BaseException | None) -> None:
        answer = (request.seat, request.tag, result, error)
        answers = self._answers.get(request.outlet)
        if answers is None:
            self._answers[request.outlet] = [answer]
        else:
            answers.append(answer)

    def _count_answers(self) -> None:
        if self._latencies_ns:
            self.meter.answered(self._latencies_ns, self._late)
            self._latencies_ns, self._late = [], 0

    def _send_answers(self) -> None:
        """Brings each outlet all of its answers at once."""
        if self._answers:
            answers, self._answers = self._answers, {}
            for outlet, its in answers.items():
                outlet.deliver(its)

    def _tell_the_rest(self) -> None:
        """Nobody waits for an answer that never comes."""
        waiting = [r for r in self._alone if r.seat is None]
        for seat in {s for group in self._groups.values() for s in group.seats}:
            waiting += seat.requests
        while not self._inbox.empty():
            message = self._inbox.get()
            if isinstance(message, Request):
                waiting.append(message)
            elif isinstance(message, list):
                waiting += message
        for request in waiting:
            error = UsageError("this engine was closed before it came to this step")
            self._answer(request, None, error)
        self._send_answers()
        self._groups.clear()


def _due_ns(group: Group) -> int:
    return 0 if len(group.ready) == len(group.started) else group.due_ns


def _since_ns(request: Request) -> int:
    """Since when a request could run: it was there, and the session's last step was done."""
    served_ns = 0 if request.seat is None else request.seat.served_ns
    return max(request.arrived_ns, served_ns)

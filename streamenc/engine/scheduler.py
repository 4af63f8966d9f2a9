"""Scheduler: what the engine's worker thread runs next.

The worker owns the device and everything here except what is said to be called from elsewhere. Work
comes in by one inbox. It waits in several queues: one per model for the hops of its live streams,
which are stepped together in lanes, and one for all that runs alone: first steps, ends, snapshots,
streams of several hops a step. Each turn serves the queue that has waited longest, a tick of all
hops that are there or one call, so that no model and no burst of new streams holds up the others;
a session has one hop in a turn, however many it has sent.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import torch

from streamenc.engine.group import NEVER, Group
from streamenc.engine.seats import Request, Seat
from streamenc.engine.statistics import Meter
from streamenc.errors import UsageError
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.stream import Stream


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
        self._inbox: SimpleQueue[Request | Seat | None] = SimpleQueue()
        self._groups: dict[Model, Group] = {}
        self._alone: deque[Request] = deque()
        self._alone_served_ns = 0
        self._answers: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = {}

    def submit(self, request: Request) -> None:
        """Sends the worker a request. Raises UsageError once it has ended."""
        self.check_process()
        with self._lock:
            self.check_open()
            self._inbox.put(request)

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
        try:
            message = self._inbox.get(timeout=self._seconds_to_wait())
            while message is not None:
                if isinstance(message, Seat):
                    self._remove(message)
                else:
                    self._admit(message)
                message = self._inbox.get_nowait()
            return False
        except Empty:
            pass
        if (now_ns := time.perf_counter_ns()) >= self._next_expiry_ns:
            self._expire(now_ns)
        return True

    def _seconds_to_wait(self) -> float | None:
        if self._alone or self._answers:
            return 0
        until_ns = self._next_expiry_ns
        for group in self._groups.values():
            if group.ready:
                until_ns = min(until_ns, _due_ns(group))
        return None if until_ns == NEVER else max(0, until_ns - time.perf_counter_ns()) / 1e9

    def _next_turn(self) -> Callable[[], None] | None:
        """What has waited longest since it could run."""
        now_ns = time.perf_counter_ns()
        turns: list[tuple[int, Callable[[], None]]] = []
        if self._alone:
            # A tick takes all that are ready; of these calls one runs, and the next waits anew.
            since_ns = max(_since_ns(self._alone[0]), self._alone_served_ns)
            turns.append((since_ns, self._run_alone))
        for group in self._groups.values():
            if group.ready and _due_ns(group) <= now_ns:
                since_ns = _since_ns(next(iter(group.ready)).requests[0])
                turns.append((since_ns, partial(self._tick, group)))
        return min(turns, key=lambda turn: turn[0])[1] if turns else None

    def _admit(self, request: Request) -> None:
        seat = request.seat
        if seat is None:
            self._alone.append(request)
            return
        if seat.closed:
            self._answer(request, error=UsageError(seat.closed))
            return
        self._group(seat).seats.add(seat)
        seat.requests.append(request)
        if len(seat.requests) == 1:
            self._advance(seat)

    def _advance(self, seat: Seat) -> None:
        """Brings a seat's first request to the queue for what it needs next, or answers it."""
        while seat.requests:
            request = seat.requests[0]
            if request.call is None:
                try:
                    self._begin(request, seat.stream)
                except Exception as error:  # whatever the chunk is, its sender hears of it
                    self._finish(request, error=error)
                    continue
                if not seat.stream.ready:
                    output = seat.stream.joined(request.outputs, request.codebooks)
                    self._finish(request, output)
                    continue
                group = self._group(seat)
                if seat in group.started:
                    group.ready[seat] = None
                    group.due_ns = min(group.due_ns, request.arrived_ns + self._max_wait_ns)
                    return
            self._alone.append(request)
            return

    @staticmethod
    def _begin(request: Request, stream: Stream) -> None:
        if not request.begun:
            with torch.inference_mode():
                stream.take(request.chunk)
            request.begun, request.chunk = True, None
            request.codebooks = stream.codebooks  # one number for the whole call

    def _tick(self, group: Group) -> None:
        """One hop of all that are ready."""
        seats, group.ready, group.due_ns = list(group.ready), {}, NEVER
        requests = {seat.stream: seat.requests[0] for seat in seats}
        wanted = {stream: request.codebooks for stream, request in requests.items()}
        begin_ns, ran = time.perf_counter_ns(), group.lanes.ran
        outputs: dict[Stream, Signal | Exception] = {}
        failure: Exception | None = None
        try:
            if group.alone:
                ((stream, codebooks),) = wanted.items()
                outputs[stream] = _step(stream, codebooks)
            else:
                for stream in list(wanted):
                    if stream in group.lanes:
                        continue
                    if group.lanes.fits(stream):
                        group.lanes.join(stream)
                    else:  # frames of another size
                        outputs[stream] = _step(stream, wanted.pop(stream))
                if wanted:
                    outputs |= group.lanes.step(wanted)
        except Exception as error:  # out of memory, say: the callers hear of it, the engine goes on
            failure = error
        end_ns = time.perf_counter_ns()
        self.meter.ran(end_ns - begin_ns, len(seats), group.lanes.ran - ran or 1)
        for seat, request in zip(seats, requests.values(), strict=True):
            self.meter.waited(begin_ns - _since_ns(request))
            seat.served_ns = end_ns
            output = failure or outputs[seat.stream]
            if isinstance(output, Exception):
                self._finish(request, error=output)
            else:
                request.outputs.append(output)
            self._advance(seat)

    def _run_alone(self) -> None:
        """One call, or one step of a stream that is in no lane."""
        request = self._alone.popleft()
        seat = request.seat
        if request.done.cancelled() if seat is None else seat.closed:
            return
        result, failure = None, None
        begin_ns, since_ns = time.perf_counter_ns(), _since_ns(request)
        try:
            if request.call is not None:
                result = request.call()
            elif seat is not None:
                request.outputs.append(_step(seat.stream, request.codebooks))
        except BaseException as error:  # whatever it is, it belongs to the caller
            failure = error
        end_ns = self._alone_served_ns = time.perf_counter_ns()
        if seat is None:
            self._answer(request, result, failure)
            return
        seat.served_ns = end_ns
        if request.call is None:
            self.meter.ran(end_ns - begin_ns, 1, 1)
            self.meter.waited(begin_ns - since_ns)
        if request.call is not None or failure is not None:
            self._finish(request, result, failure)
        self._group(seat).settle(seat)
        self._advance(seat)

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

    def _remove(self, seat: Seat) -> None:
        """Forgets a seat that was closed."""
        for request in seat.requests:
            self._answer(request, error=UsageError(seat.closed))
        seat.requests.clear()
        group = self._groups.get(seat.stream.model)
        if group is not None:
            group.settle(seat)
            if not group.seats and not group.warmed:
                group.close()
                del self._groups[seat.stream.model]

    def _expire(self, now_ns: int) -> None:
        """Closes the seats that nobody has called for too long."""
        assert self._idle_timeout_seconds is not None
        timeout_ns = round(self._idle_timeout_seconds * 1e9)
        self._next_expiry_ns = now_ns + timeout_ns
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
                self._remove(seat)
                self.open.discard(seat)
            else:
                self._next_expiry_ns = min(self._next_expiry_ns, expiry_ns)

    def _finish(
        self, request: Request, result: Any = None, error: BaseException | None = None
    ) -> None:
        """Answers a seat's first request."""
        seat = request.seat
        assert seat is not None and seat.requests[0] is request
        seat.requests.popleft()
        seat.active_ns = time.perf_counter_ns()
        if request.outputs:
            latency_ns = seat.active_ns - request.arrived_ns
            hops = len(request.outputs) * seat.stream.hops
            self.meter.answered(latency_ns, hops * seat.hop_ns)
        self._answer(request, result, error)

    def _answer(
        self, request: Request, result: Any = None, error: BaseException | None = None
    ) -> None:
        answers = self._answers.setdefault(request.loop, [])
        answers.append(partial(request.settle, result, error))

    def _send_answers(self) -> None:
        """Wakes each event loop once for all of its answers."""
        answers, self._answers = self._answers, {}
        for loop, calls in answers.items():
            try:
                loop.call_soon_threadsafe(_call_all, calls)
            except RuntimeError:  # the loop was closed: nobody waits any more
                pass

    def _tell_the_rest(self) -> None:
        """Nobody waits for an answer that never comes."""
        waiting = [r for r in self._alone if r.seat is None]
        for seat in {s for group in self._groups.values() for s in group.seats}:
            waiting += seat.requests
        while not self._inbox.empty():
            message = self._inbox.get()
            if isinstance(message, Request):
                waiting.append(message)
        for request in waiting:
            error = UsageError("this engine was closed before it came to this step")
            self._answer(request, error=error)
        self._send_answers()
        self._groups.clear()


def _step(stream: Stream, codebooks: int | None) -> Signal:
    with torch.inference_mode():
        return stream.step(codebooks)


def _due_ns(group: Group) -> int:
    return 0 if len(group.ready) == len(group.started) else group.due_ns


def _since_ns(request: Request) -> int:
    """Since when a request could run: it was there, and the session's last step was done."""
    served_ns = 0 if request.seat is None else request.seat.served_ns
    return max(request.arrived_ns, served_ns)


def _call_all(calls: Iterable[Callable[[], None]]) -> None:
    for call in calls:
        call()

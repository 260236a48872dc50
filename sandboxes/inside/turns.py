"""Sessions, as the worker sees them: which process holds the state, which ones are checkpoints, what a turn came to.

A turn with a checkpoint runs in a fork of the process that holds the state. If it goes well the fork is the state from
then on; if not, the fork is killed and the process it came from goes on as if nothing had been. The next turn's fork is
made while the caller looks at the outcome of the last. What these processes
say is the program's word (they hold its memory); that they live or died, and what they used, is not.
"""

from __future__ import annotations

import contextlib
import os
import select
import struct
import time

from gymrl.sandboxes.inside import files, protocol
from gymrl.sandboxes.inside import syscalls as sc
from gymrl.sandboxes.inside.between import Between, Held
from gymrl.sandboxes.inside.protocol import Socket
from gymrl.sandboxes.inside.questions import Questions
from gymrl.sandboxes.inside.zygote import INSPECT_EVERY, Outcome, Request, Zygote

MOST = 64
"""Snapshots of one session."""
PATIENCE = 5.0
"""Seconds that a process may take to fork itself."""


class Lost(Exception):
    """The process that held the state does not do as it is told: the program has tampered with it."""


class Turns(Between):
    """The session of one worker."""

    def __init__(self, zygote: Zygote) -> None:
        super().__init__(zygote)
        self.asking: list[Questions] = []
        self.first: Request | None = None
        self.made = 0
        self.buffer = memoryview(bytearray(2**16))
        self.done: Held | None = None

    def carry_out(self, request: Request) -> tuple[Outcome, bytes]:
        """Any request but for a program to run; what came of it, and the nonce."""
        self.watching = True
        self.shut()
        if request.kind != protocol.ATTEND:
            self.cause = b""
        if request.kind in (protocol.TURN, protocol.ATTEND):
            return self.turn(request)
        nonce = self.zygote.exactly(protocol.NONCE)
        try:
            if request.kind == protocol.SESSION:
                if len(request.fds) > 2:
                    self.page = request.fds.pop()
                self.first = request
                self.restart()
            elif request.kind == protocol.SNAPSHOT:
                return self.snapshot(), nonce
            elif request.kind == protocol.RESTORE:
                self.restore(int(request.code))
            elif request.kind == protocol.FORGET:
                held = self.snapshots.pop(int(request.code), None)
                if held is not None:
                    held.channel.close()
                    self.end()
        except (Lost, OSError) as error:
            return self.start_again(str(error)), nonce
        return Outcome(protocol.DONE, 0), nonce

    # -- turns -----------------------------------------------------------------------------------------

    def turn(self, request: Request) -> tuple[Outcome, bytes]:
        """Run the code. Its first byte says whether a checkpoint is taken; there is none where the caller has begun."""
        checkpoint, code = request.code[:1] == b"c", memoryview(request.code)[1:]
        base = self.current
        assert base is not None
        runs = base
        try:
            if checkpoint:
                base, runs = self.branch(base)
            else:
                self.thaw(base.pid)
                self.drop_spare()
            if request.kind == protocol.TURN:
                self.order(runs.channel, protocol.RUN, len(code), code, request.timeout)
            code.release()
            protocol.forget(request.code)
        except (Lost, OSError) as error:
            return self.start_again(str(error)), self.zygote.exactly(protocol.NONCE)
        nonce = self.zygote.exactly(protocol.NONCE)
        keep = self.snapshot_pids()
        if checkpoint:
            keep.add(base.pid)
        end = time.monotonic() + request.timeout
        cause = self.zygote.attend(runs.channel.fileno(), end, request, keep, runs.questions)
        reply = self.reply(runs.channel, request.output, end) if cause == protocol.ENDED else None
        if cause == protocol.ENDED and self.watch.struck():
            cause, reply = protocol.MEMORY, None
        if self.cause:
            cause, reply, self.cause = self.cause, None, b""
        if reply is not None and (reply.cause == protocol.DONE or not checkpoint):
            self.current = runs
            if checkpoint:
                base.channel.close()
                self.done = base
            self.untidy = True  # the caller need not wait for that
            return reply, nonce
        if reply is not None:
            cause, status = reply.cause, reply.status
        else:
            status = self.fate(runs, base if checkpoint else None, cause)
        if not checkpoint:
            return self.start_again("")._replace(cause=cause, status=status), nonce
        runs.channel.close()
        self.current = base
        self.end()
        self.current = base._replace(files=self.put(base))
        self.drain(base.channel)
        return Outcome(cause, status), nonce

    def branch(self, base: Held) -> tuple[Held, Held]:
        """The process that holds the state, with the files that belong to it, and its fork for a turn. Raises Lost."""
        spare, self.spare = self.spare, None
        self.thaw(base.pid)
        if spare is not None:
            self.thaw(spare.pid)
            return base._replace(files=spare.files), spare
        base = base._replace(files=self.contents(base.files))
        return base, self.fork(base)

    def drop_spare(self) -> None:
        """Whatever is done next is not done to the state that the spare fork is of."""
        if self.spare is not None:
            self.spare.channel.close()
            self.spare = None

    def fork(self, held: Held) -> Held:
        """Have the process fork; the child, which waits. Raises Lost."""
        return self.born(held, self.ask(held))

    def ask(self, held: Held) -> Socket:
        """Tell the process to fork; what the child will be spoken to by."""
        self.thaw(held.pid)
        ours, theirs = protocol.pair()
        try:
            protocol.send_fds(held.channel, protocol.ORDER.pack(protocol.FORK, 0), [theirs.fileno()])
        finally:
            theirs.close()
        return ours

    def born(self, held: Held, ours: Socket) -> Held:
        """The child of a process that was told to fork. Raises Lost."""
        deadline = time.monotonic() + PATIENCE
        allowed = 1
        poller = select.poll()
        poller.register(ours, select.POLLIN)
        if held.questions is not None:
            poller.register(held.questions.listener, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            ready = {fd for fd, _ in poller.poll(min(left, INSPECT_EVERY) * 1000 + 1)}
            if not ready and self.first and self.zygote.inspect(self.first, {held.pid, *self.kept()}):
                break  # what the program wants called at a fork is no turn, but has limits too
            if ours.fileno() in ready:
                data = ours.recv(protocol.REPLY.size)
                if len(data) == protocol.REPLY.size:
                    kind, pid, _ = protocol.REPLY.unpack(data)
                    if kind == protocol.READY:
                        return held._replace(pid=pid, channel=ours)
                break
            if held.questions is not None and held.questions.listener in ready:
                held.questions.answer(allow=allowed > 0)
                allowed -= 1
        ours.close()
        raise Lost("the session's process cannot be forked")

    def order(
        self,
        channel: Socket,
        kind: bytes,
        size: int,
        body: bytes | memoryview = b"",
        timeout: float = 5.0,
    ) -> None:
        """Raises OSError where the process does not read."""
        head = protocol.ORDER.pack(kind, size)
        try:
            sent = channel.sendmsg([head, body], [], protocol.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        if sent < len(head) + len(body):
            channel.settimeout(min(timeout, PATIENCE))
            channel.sendall(head[sent:])
            channel.sendall(body[max(0, sent - len(head)) :])
            channel.settimeout(None)

    def reply(self, channel: Socket, most: int, end: float) -> Outcome | None:
        """The reply to a turn; None where the process died or says what it should not."""
        length, there, buffer = protocol.REPLY.size, 0, self.buffer
        try:
            there = channel.recv_into(buffer, 0, protocol.MSG_DONTWAIT)
            if 0 < there < length:
                channel.settimeout(max(0.01, end - time.monotonic()))
                there = length if protocol.receive_into(channel, buffer[there:length]) else 0
            if there < length:
                return None
            kind, status, size = protocol.REPLY.unpack_from(buffer)
            if kind not in (protocol.DONE, protocol.LEFT) or size > protocol.LONGEST:
                return None
            have = min(size, there - length)  # what comes after was not asked for
            value = protocol.Passing(size)
            value[:have] = buffer[length : length + have]
            if have < size:
                channel.settimeout(max(0.01, end - time.monotonic()))
                with memoryview(value)[have:] as rest:
                    if not protocol.receive_into(channel, rest):
                        return None
            if channel.gettimeout() is not None:
                channel.settimeout(None)
        except OSError:
            return None
        finally:
            protocol.forget(buffer[:there])
        if size > most:
            value[most:] = bytes(size - most)
            del value[most:]
        return Outcome(kind, status, False, value)

    def fate(self, runs: Held, base: Held | None, cause: bytes) -> int:
        """Kill the process of a turn if it lives; its exit status, by the word of its parent where it is not ours."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if cause != protocol.ENDED or not self._dying(runs.pid):
                os.kill(runs.pid, sc.SIGKILL)
        try:
            if base is None:
                return os.waitstatus_to_exitcode(os.waitpid(runs.pid, 0)[1])
            self.order(base.channel, protocol.WAIT, runs.pid)
            self.listen(base)
            base.channel.settimeout(PATIENCE)
            head = protocol.receive(base.channel, protocol.REPLY.size)
            kind, status, _ = protocol.REPLY.unpack(head)
            return os.waitstatus_to_exitcode(status) if kind == protocol.ENDED else -sc.SIGKILL
        except (OSError, ValueError, struct.error):
            return -sc.SIGKILL

    def listen(self, held: Held) -> None:
        """Wait until a process that holds a state says something, and end what its signal handlers start meanwhile
        where that is too much. Raises OSError."""
        assert self.first is not None
        poller = select.poll()
        poller.register(held.channel, select.POLLIN)
        deadline, keep = time.monotonic() + PATIENCE, {held.pid, *self.snapshot_pids()}
        while not poller.poll(INSPECT_EVERY * 1000):
            if self.zygote.inspect(self.first, keep):
                self.watch.end(keep)
            if time.monotonic() > deadline:
                raise TimeoutError

    def _dying(self, pid: int) -> bool:
        """Whether the process has ended, or does within a moment: its channel is closed already."""
        for _ in range(200):
            if self.watch.ended(pid):
                return True
            time.sleep(0.0005)
        return False

    # -- the state -------------------------------------------------------------------------------------

    def restart(self) -> None:
        """An interpreter with nothing in it, in empty folders. Snapshots stay."""
        assert self.first is not None
        self.drop_spare()
        if self.current is not None:
            self.current.channel.close()
            self.current = None
        self.end()
        if self.snapshots:  # which work in these very folders
            self.put(Held(0, self.zygote.control))
        else:
            self.tier.used()
            self.tier.prepare(self.first.disk)
        still = [held.questions for held in self.snapshots.values()]
        for questions in self.asking:
            if questions not in still:
                questions.close()
        self.asking = [questions for questions in self.asking if questions in still]
        ours, theirs = protocol.pair()
        try:
            pid = self.zygote.spawn(self.first, [*self.first.fds, theirs.fileno()], keeps=MOST + 3)
        finally:
            theirs.close()
        self.only = 0 if self.snapshots else pid
        ours.settimeout(PATIENCE)
        head, fds = protocol.receive_fds(ours, protocol.REPLY.size, 1)
        self.zygote.check_child()
        if len(head) < protocol.REPLY.size:
            raise Lost("the session's process does not start")
        self.asking += map(Questions, fds)
        self.current = Held(pid, ours, self.asking[-1] if fds else None)

    def start_again(self, why: str) -> Outcome:
        """The state is lost."""
        self.restart()
        return Outcome(protocol.ENDED, -sc.SIGKILL, True, why.encode())

    def snapshot(self) -> Outcome:
        """Keep a copy of the state; its number is the value."""
        assert self.current is not None
        if len(self.snapshots) >= MOST:
            return Outcome(protocol.ASKED, 0)
        self.made += 1
        here = self.current._replace(files=self.contents(self.current.files))
        self.snapshots[self.made] = self.fork(here)
        return Outcome(protocol.DONE, 0, False, str(self.made).encode())

    def restore(self, number: int) -> None:
        """Go on from a snapshot (0: from nothing)."""
        if number == 0:
            return self.restart()
        held = self.snapshots[number]
        self.drop_spare()
        if self.current is not None:
            self.current.channel.close()
            self.current = None
        self.end()
        held = self.snapshots[number] = held._replace(files=self.put(held))
        self.current = self.fork(held)

    def contents(self, before: tuple[files.Tree, files.Tree]) -> tuple[files.Tree, files.Tree]:
        return files.take(self.tier.work, before[0]), files.take(self.tier.temporary, before[1])

    def put(self, held: Held) -> tuple[files.Tree, files.Tree]:
        """Put the files of a state back; the same as what the folders hold now."""
        work, temporary = held.files
        own = self.tier.own
        return files.put(self.tier.work, work, own), files.put(self.tier.temporary, temporary, own)

    def tidy(self) -> None:
        """What is left to do of a turn that went well, once its outcome is sent."""
        self.watch.struck()  # whatever was killed since is no matter of the next turn
        self.end_turn()
        if self.current is not None and self.current.channel is self.given and self.nothing_new():
            self.shut(False)

    def end_turn(self) -> None:
        done, self.done = self.done, None
        if not self.untidy:
            return
        if done is None or self.current is None:
            if self.nothing_new():
                self.untidy = False
                return None
            return self.end()
        kept = self.kept()
        if strays := [pid for pid in self.watch.processes() if pid not in kept and pid != done.pid]:
            self.end()
        else:
            self.untidy = False
        try:
            here = self.current._replace(files=self.contents(self.current.files))
            ours = self.ask(here)
            if not strays:  # the process before this one ends by itself as its channel is closed, meanwhile
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(done.pid, sc.SIGKILL)
                    os.waitpid(done.pid, 0)
            self.spare = self.born(here, ours)
        except (Lost, OSError):  # the next turn tries again
            self.end()

    def drain(self, channel: Socket) -> None:
        """Throw away what a turn that was undone has said in its parent's name."""
        channel.setblocking(False)
        with contextlib.suppress(OSError):
            while channel.recv(65536):
                pass
        channel.setblocking(True)

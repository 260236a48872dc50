# ruff: noqa: E501  (the lines are programs)
"""Attacks on other processes, and on the end of a run."""

from typing import Any

ATTACKS: dict[str, dict[str, Any]] = {
    "send signals to others": {"code": """
        for pid in (VICTIM, -VICTIM, CALLER):
            for number in (signal.SIGSTOP, signal.SIGKILL, signal.SIGTERM) if pid != CALLER else (signal.SIGURG,):
                attempt(os.kill, pid, number)
                attempt(os.killpg, abs(pid), number)
                syscall(200, 130, pid, int(number))
                syscall(234, 131, pid, pid, int(number))
                syscall(129, 138, pid, int(number), ctypes.create_string_buffer(struct.pack("<iii", number, 0, -1) + bytes(128)))
                fd, _ = syscall(434, 434, pid, 0)
                if fd >= 0:
                    syscall(424, 424, fd, int(number), None, 0)
    """, "limits": None},
    "kill the sandbox's own processes": {"code": """
        for pid in (os.getppid(), 1) if os.getppid() == 1 else (os.getppid(),):
            for number in (signal.SIGSTOP, signal.SIGKILL):
                if pid:
                    attempt(os.kill, pid, number)
                    syscall(129, 138, pid, int(number), ctypes.create_string_buffer(struct.pack("<iii", number, 0, -1) + bytes(128)))
    """, "timeout": 2.0},
    "send signals by way of descriptors": {"code": """
        import fcntl
        pair = attempt(socket.socketpair)
        for end in pair or ():
            for pid in (VICTIM, os.getppid()):
                attempt(fcntl.fcntl, end, 10, 9)
                attempt(fcntl.fcntl, end, 8, pid)
                attempt(fcntl.fcntl, end, 15, struct.pack("ii", 1, pid))
                attempt(fcntl.ioctl, end, 0x8901, struct.pack("i", pid))
                attempt(fcntl.ioctl, end, 0x8902, struct.pack("i", pid))
                attempt(fcntl.fcntl, end, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
                attempt(fcntl.ioctl, end, 0x5452, struct.pack("i", 1))
                for other in pair:
                    attempt(other.send, b"x")
    """},
    "trace others": {"code": """
        for pid in (VICTIM, CALLER, os.getppid(), 1):
            for request in (0x4206,):  # without stopping it
                result, number = syscall(101, 117, request, pid, 0, 0)
                if number not in (errno.EPERM, errno.ENOSYS):
                    got("ptrace", request, pid, number)
            local = (ctypes.c_uint64 * 2)(ctypes.addressof(ctypes.create_string_buffer(8)), 8)
            result, number = syscall(311, 271, pid, ctypes.byref(local), 1, ctypes.byref(local), 1, 0)
            if number not in (errno.EPERM, errno.ENOSYS):
                got("process_vm_writev", pid, number)
    """},
    "change limits and priorities of others": {"code": """
        import resource
        for pid in (VICTIM, CALLER, os.getppid()):
            attempt(resource.prlimit, pid, resource.RLIMIT_NOFILE, (64, 64)) if pid != CALLER else None
            attempt(os.setpriority, os.PRIO_PROCESS, pid, 19) if pid == VICTIM else None
            attempt(os.sched_setaffinity, pid, {0}) if pid == VICTIM else None
        syscall(251, 30, 1, VICTIM, 0x6007)
        if attempt(resource.prlimit, os.getppid(), resource.RLIMIT_NPROC):
            got("limits of the parent")
    """},
    "raise its own limits": {"code": """
        import resource
        for kind in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_CPU):
            soft, hard = resource.getrlimit(kind)
            if hard == resource.RLIM_INFINITY:
                got("no limit", kind)
            for wanted in (hard + 1, resource.RLIM_INFINITY):
                if attempt(lambda: resource.setrlimit(kind, (wanted, wanted)) or True):
                    got("raised", kind)
        if attempt(lambda: os.nice(-5)) is not None or attempt(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1)) is None and os.sched_getscheduler(0):
            got("priority")
    """},
    "leave a daemon behind": {"code": """
        def daemon():
            libc.prctl(15, MARKER.encode(), 0, 0, 0)
            os.setsid()
            for number in range(1, 65):
                attempt(signal.signal, number, signal.SIG_IGN)
            if os.fork() == 0:
                os.setsid()
                for fd in range(3):
                    attempt(os.close, fd)
                time.sleep(60)
            os._exit(0)
        spread(3, daemon)
    """},
    "leave a daemon that holds the output open": {"code": """
        def daemon():
            libc.prctl(15, MARKER.encode(), 0, 0, 0)
            os.setsid()
            time.sleep(60)
        spread(1, daemon)
        print("done", flush=True)
        os._exit(0)
    """},
    "leave daemons that fork without end": {"code": """
        def daemon():
            libc.prctl(15, MARKER.encode(), 0, 0, 0)
            os.setsid()
            while True:
                try:
                    if os.fork():
                        os._exit(0)
                    os.setsid()
                except OSError:
                    pass
        spread(4, daemon)
        time.sleep(0.3)
        os._exit(0)
    """},
    "spin": {"code": "while True: pass", "ends": ("timeout",), "timeout": 0.5},
    "sleep": {"code": "time.sleep(100)", "ends": ("timeout",), "timeout": 0.5},
    "ignore every signal": {"code": """
        libc.prctl(15, MARKER.encode(), 0, 0, 0)
        for number in range(1, 65):
            attempt(signal.signal, number, signal.SIG_IGN)
        attempt(signal.pthread_sigmask, signal.SIG_BLOCK, range(1, 65))
        while True:
            try: time.sleep(100)
            except BaseException: pass
    """, "ends": ("timeout",), "timeout": 0.5},
    "stop itself": {"code": "os.kill(os.getpid(), signal.SIGSTOP)", "ends": ("timeout", "signal"), "timeout": 0.5},
    "spin in many children of other sessions": {"code": """
        def spin():
            libc.prctl(15, MARKER.encode(), 0, 0, 0)
            attempt(os.setsid)
            while True: pass
        spread(8, spin)
        spin()
    """, "ends": ("timeout", "signal"), "timeout": 0.5},
    "hold the interpreter in C": {"code": """
        libc.prctl(15, MARKER.encode(), 0, 0, 0)
        "a" * 10 == "b"; import re
        re.match("(a+)+$", "a" * 60 + "b")
    """, "ends": ("timeout",), "timeout": 0.5},
    "a fork bomb": {"code": """
        libc.prctl(15, MARKER.encode(), 0, 0, 0)
        started = time.monotonic()
        count = 0
        while time.monotonic() < started + 1:
            try:
                os.fork()
            except OSError:
                time.sleep(0.01)
            count += 1
    """, "timeout": 5.0},
    "a bomb of threads": {"code": """
        libc.prctl(15, MARKER.encode(), 0, 0, 0)
        started = 0
        try:
            for _ in range(5000):
                threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
                started += 1
        except RuntimeError:
            pass
        if started > 2000:
            got(started, "threads")
        os._exit(0)
    """},
    "a bomb of zombies": {"code": """
        libc.prctl(15, MARKER.encode(), 0, 0, 0)
        count = 0
        for _ in range(2000):
            try:
                if os.fork() == 0:
                    os._exit(0)
                count += 1
            except OSError:
                break
        if count > 200:
            got(count, "zombies")
    """},
}  # fmt: skip
ATTACKS["send signals to others"].pop("limits")

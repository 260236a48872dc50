"""Attacks that take too much: memory, disk, output, kernel objects."""

from typing import Any

from gymrl.sandboxes.base import Limits

SMALL = Limits(memory=256 * 2**20, disk=32 * 2**20)

ATTACKS: dict[str, dict[str, Any]] = {
    "one process over the memory limit": {"code": """
        try:
            data = bytearray(400 << 20)
            got(len(data))
        except MemoryError:
            pass
        hoard = []
        try:
            while len(hoard) < 400:
                hoard.append(bytearray(b"x" * (1 << 20)))
        except MemoryError:
            count = len(hoard)
            del hoard
            if count > 300:
                got(count, "MiB")
        else:
            got("400 MiB")
    """, "limits": SMALL},
    "six processes over the memory limit together": {"code": """
        reader, writer = os.pipe()
        def hold():
            data = bytearray(b"x" * (100 << 20))
            time.sleep(1.0)
            os.write(writer, b"+")
            time.sleep(3)
        if spread(6, hold):
            os.close(writer)
            held = b""
            while part := os.read(reader, 100):
                held += part
                if len(held) >= 4:
                    got(len(held), "children held 100 MiB each")
    """, "limits": SMALL},
    "memory that is shared and not mapped any more": {"code": """
        libc.mmap.restype = ctypes.c_void_p
        total = 0
        for i in range(40):
            at = libc.mmap(None, ctypes.c_size_t(20 << 20), 3, 0x21, -1, ctypes.c_long(0))
            if at in (None, ctypes.c_void_p(-1).value):
                break
            ctypes.memset(at, 1, 20 << 20)
            libc.madvise(ctypes.c_void_p(at), ctypes.c_size_t(20 << 20), 4)
            total += 20
            if os.fork() == 0:
                time.sleep(5)
            libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(20 << 20))
            time.sleep(0.05)
        if total > 320:
            got(total, "MiB")
    """, "limits": SMALL},
    "memory of devices that is shared and not mapped any more": {"code": """
        libc.mmap.restype = ctypes.c_void_p
        size, total = 20 << 20, 0
        for path in ("/dev/zero", "/dev/null", "/dev/full", "/dev/random", "/dev/urandom"):
            for i in range(24):
                fd = attempt(os.open, path, os.O_RDWR)
                if fd is None:
                    break
                at = libc.mmap(None, ctypes.c_size_t(size), 3, 1, fd, ctypes.c_long(0))
                os.close(fd)
                if at in (None, ctypes.c_void_p(-1).value):
                    break
                ctypes.memset(at, 1, size)
                libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(size - 4096))  # the rest keeps all of it
                total += size >> 20
                time.sleep(0.02)
        if total > 320:
            got(total, "MiB")
    """, "limits": SMALL},
    "files in memory": {"code": """
        total = 0
        for name in range(60):
            fd = attempt(os.memfd_create, f"f{name}")
            if fd is None:
                fd, number = syscall(447, 447, 0)
                if fd < 0:
                    break
            try:
                while os.fstat(fd).st_size < (10 << 20):
                    total += os.write(fd, bytes(1 << 20))
            except OSError:
                pass
        if total > (300 << 20):
            got(total >> 20, "MiB")
    """, "limits": SMALL},
    "System V and POSIX shared memory and queues": {"code": """
        total = 0
        for key in range(40):
            number, error = syscall(29, 194, 0, 10 << 20, 0o1600)
            if number < 0:
                break
            total += 10
        if total:
            got("shmget", total, "MiB")
        if syscall(68, 186, 0, 0o1600)[0] >= 0 or syscall(64, 190, 0, 4, 0o1600)[0] >= 0:
            got("queues or semaphores")
        if syscall(240, 180, ctypes.c_char_p(b"mine"), 0o102, 0o600, None)[0] >= 0:
            got("mq_open")
    """, "limits": SMALL},
    "locked memory": {"code": """
        libc.mmap.restype = ctypes.c_void_p
        at = libc.mmap(None, ctypes.c_size_t(64 << 20), 3, 0x22, -1, ctypes.c_long(0))
        if libc.mlock(ctypes.c_void_p(at), ctypes.c_size_t(64 << 20)) == 0 or libc.mlockall(7) == 0:
            got("locked")
    """, "limits": SMALL},
    "one large file": {"code": """
        with open("large", "wb") as file:
            for size in (1 << 40, 1 << 34, 1 << 30):
                if attempt(lambda: os.posix_fallocate(file.fileno(), 0, size) or True):
                    got("fallocate", size)
                if attempt(lambda: os.truncate(file.fileno(), size) or True):
                    got("truncate", size)
            attempt(lambda: [file.write(bytes(1 << 20)) for _ in range(100)])
            if os.fstat(file.fileno()).st_size > (20 << 20):
                got(os.fstat(file.fileno()).st_size)
    """, "limits": SMALL},
    "many files": {"code": """
        total = 0
        try:
            for name in range(100):
                for folder in (os.getcwd(), os.environ["TMPDIR"]):
                    with open(f"{folder}/{name}", "wb") as file:
                        total += file.write(bytes(4 << 20))
                time.sleep(0.02)
        except OSError:
            pass
        if total > (200 << 20):
            got(total >> 20, "MiB")
    """, "limits": SMALL},
    "many files without names": {"code": """
        total = 0
        kept = []
        try:
            for name in range(100):
                file = open("file", "wb")
                kept.append(file)
                os.unlink("file")
                total += file.write(bytes(4 << 20))
                file.flush()
                time.sleep(0.02)
        except OSError:
            pass
        if total > (200 << 20):
            got(total >> 20, "MiB")
    """, "limits": SMALL},
    "a hundred thousand empty files": {"code": """
        count = 0
        try:
            for count in range(100_000):
                os.close(os.open(f"f{count}", os.O_CREAT | os.O_WRONLY))
        except OSError:
            pass
        if count > 60_000:
            got(count)
    """, "limits": SMALL, "timeout": 20.0},
    "memory of pipes and sockets": {"code": """
        import fcntl
        kept, total = [], 0
        try:
            while total < (400 << 20):
                reader, writer = os.pipe()
                kept.append((reader, writer))
                os.set_blocking(writer, False)
                attempt(fcntl.fcntl, writer, 1031, 1 << 20)
                try:
                    while True:
                        total += os.write(writer, bytes(65536))
                except BlockingIOError:
                    pass
        except OSError:
            pass
        if total > (64 << 20):
            got(total >> 20, "MiB")
    """, "limits": SMALL},
    "memory of the sockets of many processes": {"code": """
        reader, writer = os.pipe()
        def fill():
            pairs = []
            try:
                while True:
                    pairs.append(socket.socketpair())
            except OSError:
                pass
            total = 0
            for end in (end for pair in pairs for end in pair):
                end.setblocking(False)
                try:
                    while True:
                        total += end.send(bytes(4096))
                except OSError:
                    pass
            time.sleep(0.5)
            os.write(writer, struct.pack("<q", total))
            time.sleep(2)
        if spread(14, fill):
            os.close(writer)
            held = b""
            while part := os.read(reader, 8):
                held += part
                if (total := sum(struct.unpack(f"<{len(held) // 8}q", held))) > (200 << 20):
                    got(total >> 20, "MiB")
    """, "limits": SMALL},
    "memory of file locks": {"code": """
        import fcntl
        files, total, end = [], 0, time.monotonic() + 3
        try:
            while time.monotonic() < end:
                files.append(open(f"{len(files)}", "w"))
                for place in range(4000):
                    fcntl.lockf(files[-1], fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 2 * place)
                    total += 1
                time.sleep(0.02)
        except OSError:
            pass
        if total > 40_000:
            got(total, "locks")
        count = 0
        for number in (37, 38):
            for place in range(1000):
                if attempt(fcntl.fcntl, files[0], number, struct.pack("hhqqixxxx", 1, 0, 2 * place, 1, 0)) is None:
                    break
                count += 1
        if count:
            got(count, "locks of an open file")
    """, "limits": SMALL},
    "memory of timers": {"code": """
        count = 0
        while count < 100_000 and syscall(222, 107, 1, None, ctypes.byref(ctypes.c_int()))[0] >= 0:
            count += 1
        if count > 5000:
            got(count, "timers")
    """, "limits": SMALL},
    "endless output": {"code": """
        line = "x" * 65536
        while True: print(line)
    """, "ends": ("output",)},
    "endless output on stderr": {"code": """
        while True: os.write(2, b"\\xff\\x00" * 32768)
    """, "ends": ("output",)},
    "endless output by many children": {"code": """
        def flood():
            libc.prctl(15, MARKER.encode(), 0, 0, 0)
            while True: os.write(1, b"y" * 65536)
        spread(6, flood)
        flood()
    """, "ends": ("output", "signal")},
    "a hundred megabytes in one write": {"code": """
        sys.stdout.write("z" * (100 << 20))
    """, "ends": ("output",)},
    "an exception with an endless text": {"code": """
        raise ValueError("x" * (50 << 20))
    """, "ends": ("output",)},
    "closed and reopened output": {"code": """
        for fd in range(3):
            os.close(fd)
        time.sleep(0.1)
        os._exit(3)
    """, "exit": 3},
}  # fmt: skip

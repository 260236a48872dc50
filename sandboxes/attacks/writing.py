# ruff: noqa: E501  (the lines are programs)
"""Attacks that change something outside, or talk to someone there."""

from typing import Any

ATTACKS: dict[str, dict[str, Any]] = {
    "write to a file of the host": {"code": """
        for mode in ("w", "a", "r+", "wb"):
            attempt(lambda: open(TARGET, mode).write("x" if "b" not in mode else b"x"))
        attempt(os.truncate, TARGET, 0)
    """},
    "make files outside": {"code": """
        mine = (os.path.realpath(os.environ["TMPDIR"]), os.path.realpath(os.getcwd()))
        for path in OUTSIDE:
            if os.path.dirname(path) not in mine:
                attempt(lambda: open(path, "w").write("x"))
                attempt(os.mkdir, path)
                attempt(os.symlink, "/", path)
                attempt(os.mkfifo, path)
        attempt(os.mkdir, SITE + "/made")
    """},
    "rename and remove files of the host": {"code": """
        attempt(os.rename, TARGET, SITE + "/other")
        attempt(os.rename, SECRET, "stolen")
        attempt(os.replace, TARGET, SECRET)
        attempt(os.unlink, TARGET)
        attempt(os.link, SECRET, SITE + "/linked")
        result = syscall(316, 276, -100, ctypes.c_char_p(TARGET.encode()), -100, ctypes.c_char_p(SECRET.encode()), 2)
    """},
    "change modes, times, owners and attributes of files of the host": {"code": """
        for path in (TARGET, SITE):
            attempt(os.chmod, path, 0o700)
            attempt(os.utime, path, (1, 1))
            attempt(os.chown, path, os.getuid(), os.getgid())
            attempt(os.lchown, path, 12345, 12345)
            attempt(os.setxattr, path, "user.mark", b"1")
            fd = attempt(os.open, path, os.O_RDONLY)
            if fd is not None:
                attempt(os.fchmod, fd, 0o700)
                attempt(os.utime, fd, (1, 1))
                attempt(os.fchown, fd, 12345, 12345)
                attempt(os.setxattr, fd, "user.mark", b"1")
        result, number = syscall(452, 452, -100, ctypes.c_char_p(TARGET.encode()), 0o700, 0)
    """},
    "change the interpreter that other programs use": {"code": """
        place = os.path.dirname(os.__file__)
        for path in (os.__file__, place + "/site.py", sys.executable):
            attempt(lambda: open(path, "ab").write(b"") is not None and got("opened", path))
        for folder in {place, *sys.path, os.path.dirname(sys.executable)}:
            path = os.path.join(folder, MARKER + ".py")
            if attempt(lambda: open(path, "w").write("x")):
                attempt(os.unlink, path)
                got("wrote", folder)
    """},
    "write through a descriptor that is read-only": {"code": """
        fd = attempt(os.open, os.__file__, os.O_RDONLY)
        if fd is not None:
            for path in (f"/proc/self/fd/{fd}", f"/dev/fd/{fd}"):
                if attempt(os.open, path, os.O_RDWR) is not None:
                    got(path)
            if libc.mmap is not None:
                libc.mmap.restype = ctypes.c_void_p
                at = libc.mmap(None, ctypes.c_size_t(4096), 1, 1, fd, ctypes.c_long(0))
                if at not in (None, ctypes.c_void_p(-1).value) and libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(4096), 3) == 0:
                    got("mprotect of a shared mapping")
    """},
    "have the clean-up follow links": {"code": """
        os.symlink(SITE, "a")
        os.symlink(TARGET, "b")
        os.makedirs("c/d")
        os.symlink("../../../../../../.." + SITE, "c/d/e")
        attempt(os.chmod, "c", 0)
        attempt(os.rename, os.getcwd(), os.getcwd() + "2")
        attempt(os.rmdir, os.environ["TMPDIR"])
        attempt(os.symlink, SITE, os.environ["TMPDIR"])
    """},
    "mount and unmount": {"code": """
        for flags in (0, 32, 4096, 16384 | 4096):  # of a kind and at a place that there is not: only the refusal differs
            libc.mount(b"none", b"/nowhere", b"nothing", ctypes.c_ulong(flags), None)
            number = ctypes.get_errno()
            if ctypes.set_errno(0) or number not in (errno.EPERM, errno.ENOSYS):
                if libc.mount(b"none", os.getcwd().encode(), b"tmpfs", ctypes.c_ulong(flags), None) == 0:
                    got("mount", flags)
        if libc.umount2(b"/nowhere", 2) != 0 and ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS, errno.ENOENT):
            got("umount", ctypes.get_errno())
        for place in (os.getcwd(), os.environ["TMPDIR"], os.path.dirname(os.__file__)):
            if libc.mount(None, place.encode(), None, ctypes.c_ulong(32 | 4096), None) == 0:
                got("remount", place)
    """},
    "write to the kernel's settings": {"code": """
        for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger",
                     "/proc/self/oom_score_adj", "/sys/kernel/uevent_helper", "/proc/sys/vm/drop_caches", "/dev/kmsg",
                     "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/memory/release_agent", "/proc/self/uid_map"):
            if attempt(os.open, path, os.O_WRONLY) is not None:
                got(path)
        name = os.uname().nodename.encode()
        if libc.sethostname(name, len(name)) == 0:
            got("sethostname")
    """},
    "connect to a server of the host": {"code": """
        for make in (lambda: socket.create_connection(tuple(TCP), 2), lambda: socket.socket().connect(tuple(TCP)),
                     lambda: socket.socket(socket.AF_INET6).connect(("::1", TCP[1]))):
            attempt(make)
        attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", tuple(UDP)))
        attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).sendto(b"x", 0x20000000, tuple(TCP)))
    """},
    "connect to the Internet": {"code": """
        for address in (("1.1.1.1", 53), ("8.8.8.8", 53), ("169.254.169.254", 80)):
            attempt(lambda: (socket.create_connection(address, 1), got(address)))
            attempt(lambda: (socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", address), got("UDP", address)))
        attempt(lambda: got(socket.getaddrinfo("example.com", 80)))
    """},
    "make a socket of any family": {"code": """
        for family in range(0, 48):
            for kind in (1, 2, 3, 5, 10):
                fd, number = syscall(41, 198, family, kind, 0)
                if fd >= 0:
                    got("family", family, "kind", kind)
    """},
    "connect to Unix sockets": {"code": """
        for place in (SITE + "/stream", "\\0" + MARKER + "s", "/var/run/docker.sock", "/run/dbus/system_bus_socket", "/run/systemd/private"):
            attempt(lambda: (socket.socket(socket.AF_UNIX).connect(place), got(place)))
        for place in (SITE + "/datagram", "\\0" + MARKER + "d", "/dev/log", "/run/systemd/journal/socket"):
            attempt(lambda: (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"x", place), got(place)))
    """},
    "turn a pair of sockets outward": {"code": """
        for kind in (1, 2, 5, 3):
            pair = attempt(socket.socketpair, socket.AF_UNIX, kind)
            for end in pair or ():
                for place in (SITE + "/datagram", "\\0" + MARKER + "d", SITE + "/stream", "\\0" + MARKER + "s"):
                    attempt(lambda: end.sendto(b"x", place))
                    attempt(lambda: end.sendmsg([b"x"], [], 0, place))
                    attempt(lambda: end.connect(place))
                if attempt(lambda: end.bind("\\0" + MARKER + "x")) is None and end.getsockname():
                    got("bound a name")
        for family in (2, 10, 16, 17, 40):
            if attempt(socket.socketpair, family):
                got("pair of family", family)
    """},
    "listen for others": {"code": """
        for place in ("door", "\\0" + MARKER + "l"):
            if attempt(lambda: (lambda s: (s.bind(place), s.listen(1), True))(socket.socket(socket.AF_UNIX))):
                got(place)
        if attempt(lambda: (lambda s: (s.bind(("127.0.0.1", 0)), s.listen(1), True))(socket.socket())):
            got("TCP")
    """},
}  # fmt: skip

# ruff: noqa: E501  (the lines are programs)
"""Attacks that read what they should not."""

from typing import Any

ATTACKS: dict[str, dict[str, Any]] = {
    "read a file of the host": {"code": "got(open(SECRET).read())"},
    "read /etc/shadow": {"code": """
        for path in ("/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/sudoers"):
            if attempt(lambda: open(path).read()):
                got(path)
    """},
    "read keys and histories of users": {"code": """
        import glob
        for home in ("/root", *glob.glob("/home/*"), os.path.expanduser("~")):
            for name in (".ssh", ".bash_history", ".aws", ".netrc", ".config", ".cache", ".bashrc"):
                path = os.path.join(home, name)
                if home != os.getcwd() and (attempt(os.listdir, path) or attempt(lambda: open(path).read())):
                    got(path)
    """},
    "list the host's folders": {"code": """
        for path in (SITE, "/home", "/root", "/etc/ssh", "/var/log", "/var/lib", "/sys/kernel", "/boot"):
            if names := attempt(os.listdir, path):
                if path not in os.path.dirname(os.__file__) and not os.path.dirname(os.__file__).startswith(path):
                    got(path, names)
    """},
    "find out whether a file exists": {"code": """
        for path in (SECRET, SITE):
            for ask in (os.stat, os.lstat, os.readlink, os.statvfs, os.open, os.chdir, os.listxattr, os.scandir):
                try:
                    ask(path, *([os.O_PATH] if ask is os.open else []))
                    got(ask.__name__, "works")
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.EPERM, errno.ENOSYS, errno.EINVAL):
                        got(ask.__name__, "tells by", error)
            if os.access(path, os.F_OK):
                got("access")
    """},
    "read the caller's environment": {"code": """
        import glob
        if "GYMRL_ATTACK_SECRET" in os.environ:
            got("variable")
        for path in glob.glob("/proc/[0-9]*/environ") + [f"/proc/{pid}/environ" for pid in (CALLER, VICTIM, os.getppid())]:
            text = attempt(lambda: open(path, "rb").read())
            if text and b"GYMRL_ATTACK_SECRET" in text:
                got(path)
    """},
    "read the environment that was left in memory": {"code": """
        environ = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
        i = 0
        while environ and environ[i]:
            if b"GYMRL_ATTACK_SECRET" in environ[i]:
                got(environ[i])
            i += 1
        maps = attempt(lambda: open("/proc/self/maps").read()) or ""
        for line in maps.splitlines():
            if "[stack]" in line:
                low, high = (int(part, 16) for part in line.split()[0].split("-"))
                if b"GYMRL_ATTACK_SECRET" in ctypes.string_at(low, high - low):
                    got("stack")
    """},
    "read another process's memory": {"code": """
        for pid in (VICTIM, CALLER, os.getppid(), 1):
            if attempt(lambda: open(f"/proc/{pid}/mem", "rb").read(0)) is not None:
                got("mem", pid)
            if attempt(lambda: open(f"/proc/{pid}/maps").read()):
                got("maps", pid)
            local = (ctypes.c_uint64 * 2)(ctypes.addressof(ctypes.create_string_buffer(8)), 8)
            result, number = syscall(310, 270, pid, ctypes.byref(local), 1, ctypes.byref(local), 1, 0)
            if number not in (errno.EPERM, errno.ENOSYS):
                got("process_vm_readv", pid, number)
    """},
    "read descriptors that were left open": {"code": """
        for fd in range(3, 2048):
            try:
                os.fstat(fd)
            except OSError:
                continue
            data = attempt(os.pread, fd, 100, 0)
            got("descriptor", fd, data)
    """},
    "take descriptors of other processes": {"code": """
        import glob
        for pid in (VICTIM, CALLER, os.getppid(), 1):
            for path in glob.glob(f"/proc/{pid}/fd/*"):
                if attempt(os.readlink, path) or attempt(os.open, path, os.O_RDONLY):
                    got(path)
            fd, number = syscall(434, 434, pid, 0)
            if fd >= 0:
                for i in range(8):
                    if syscall(438, 438, fd, i, 0)[0] >= 0:
                        got("pidfd_getfd", pid, i)
    """},
    "leave by ..": {"code": """
        relative = "../" * 40
        for start in (".", "/", "/tmp"):
            attempt(os.chdir, start)
            attempt(lambda: got(open(relative + SECRET[1:]).read()))
            fd = attempt(os.open, "..", os.O_RDONLY)
            for _ in range(40):
                if fd is not None:
                    fd = attempt(lambda: os.open("..", os.O_RDONLY, dir_fd=fd)) or fd
            if fd is not None:
                attempt(lambda: got(os.read(os.open(SECRET[1:], os.O_RDONLY, dir_fd=fd), 100)))
        os.makedirs("deep", exist_ok=True)
        if attempt(os.chroot, "deep") is None and os.path.exists("deep"):
            for _ in range(40):
                os.chdir("..")
        attempt(lambda: got(open(SECRET[1:]).read()))
    """},
    "leave by links": {"code": """
        os.symlink(SECRET, "link")
        attempt(lambda: got(open("link").read()))
        os.symlink("/", "root")
        attempt(lambda: got(open("root" + SECRET).read()))
        if attempt(os.link, SECRET, "hard") is None and os.path.exists("hard"):
            got("hard link", attempt(lambda: open("hard").read()))
        for path in ("/proc/self/root", "/proc/1/root", f"/proc/{CALLER}/root", f"/proc/{VICTIM}/cwd/..", "/proc/self/cwd/.."):
            attempt(lambda: got(open(path + SECRET).read()))
    """},
    "open files by handle": {"code": """
        handle = ctypes.create_string_buffer(struct.pack("<Ii", 128, 0) + bytes(128))
        mount = ctypes.c_int()
        for path in (b"/", SECRET.encode()):
            result, number = syscall(303, 264, -100, ctypes.c_char_p(path), handle, ctypes.byref(mount), 0)
            if number not in (errno.EPERM, errno.ENOSYS):
                got("name_to_handle_at", path, number)
        result, number = syscall(304, 265, os.open(".", os.O_RDONLY), handle, 0)
        if number not in (errno.EPERM, errno.ENOSYS):
            got("open_by_handle_at", number)
    """},
    "see other processes": {"code": """
        import glob
        for path in glob.glob("/proc/[0-9]*/cmdline"):
            text = attempt(lambda: open(path).read())
            if text and "100000" in text:
                got(path, text)
        for ask in (lambda: os.kill(VICTIM, 0) or True, lambda: os.getpgid(VICTIM), lambda: os.getsid(VICTIM),
                    lambda: os.sched_getaffinity(VICTIM), lambda: os.getpriority(os.PRIO_PROCESS, VICTIM)):
            if VICTIM > 4096 and attempt(ask) is not None:
                got("by its number", VICTIM)
    """},
    "read the kernel's memory and log": {"code": """
        for path in ("/dev/mem", "/dev/kmem", "/dev/port", "/dev/kmsg", "/proc/kcore", "/proc/kallsyms", "/proc/kmsg",
                     "/sys/kernel/notes", "/sys/kernel/debug", "/proc/keys", "/proc/sched_debug", "/proc/config.gz"):
            if attempt(lambda: open(path, "rb").read(1)):
                got(path)
        result, number = syscall(103, 116, 3, ctypes.create_string_buffer(64), 64)
        if number not in (errno.EPERM, errno.ENOSYS):
            got("syslog", number)
    """},
    "read disks and terminals": {"code": """
        import glob
        for path in glob.glob("/dev/[svh]d*") + glob.glob("/dev/nvme*") + ["/dev/tty", "/dev/console", "/dev/ptmx", "/dev/fuse"]:
            if attempt(os.open, path, os.O_RDONLY | os.O_NONBLOCK) is not None:
                got(path)
        for major, minor in ((254, 0), (8, 0), (1, 1), (259, 0), (253, 0)):
            attempt(os.mknod, "device", 0o60600 if major != 1 else 0o20600, os.makedev(major, minor))
            if attempt(os.open, "device", os.O_RDONLY) is not None:
                got("device", major, minor)
            attempt(os.unlink, "device")
    """},
    "watch what happens in a folder of the host": {"code": """
        fd = libc.inotify_init1(0o4000)
        for path in (SITE, "/etc", "/tmp"):
            if path != os.environ["TMPDIR"] and fd >= 0 and libc.inotify_add_watch(fd, path.encode(), 0xFFF) >= 0:
                if path != "/etc" or os.path.exists("/etc/shadow"):
                    got(path)
    """},
    "watch who uses the interpreter": {"code": """
        import fcntl
        folder = os.path.dirname(os.__file__)
        fd = libc.inotify_init1(0o4000)
        if fd >= 0 and libc.inotify_add_watch(fd, folder.encode(), 0xFFF) >= 0:
            got("inotify")
        if attempt(fcntl.fcntl, os.open(folder, os.O_RDONLY), 1026, 0x3F) is not None:
            got("dnotify")
        if attempt(fcntl.fcntl, os.open(os.__file__, os.O_RDONLY), 1024, 0) is not None:
            got("a lease")
    """},
    "read what an earlier program left in memory": {"code": """
        answer = "the answer to the question of another episode: 271828"
        large = ["the answer to the question of another episode: 314159"] * 1000
    """ + "    # and much more\n    " * 20_000, "follow": """
        import gc, re
        libc.sbrk.restype = ctypes.c_void_p
        libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
        wanted = re.compile(rb"the question of " + rb"another episode: ([0-9]+)")
        def look(at):
            if libc.mincore(at, 4096, ctypes.create_string_buffer(1)):
                return False
            if found := wanted.search(ctypes.string_at(at, 4096)):
                got(found[0])
            return True
        at = libc.sbrk(ctypes.c_long(0)) & ~4095
        while look(at - 4096):
            at -= 4096
        for base in {id(thing) & ~0xFFFFF for thing in ([], "a" * 200, b"b" * 200, *gc.get_objects())}:
            for page in range(256):
                look(base + 4096 * page)
        for size in (1 << 18, 1 << 20, 1 << 22):
            at = id(bytes(size)) & ~4095
            for page in range(2048):
                if not look(at + 4096 * page):
                    break
    """},
}  # fmt: skip

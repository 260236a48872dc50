# ruff: noqa: E501  (the lines are programs)
"""Attacks on the kernel's larger doors: each call has to be refused before it does anything."""

from typing import Any

_ASK = """
def ask(**calls):
    for name, (x86, arm, *arguments) in calls.items():
        result, number = syscall(x86, arm, *arguments)
        if result >= 0 or number not in (errno.EPERM, errno.ENOSYS):
            got(name, result, errno.errorcode.get(number, number))
ZERO = ctypes.create_string_buffer(256)
"""

_CALLS = {
    "make namespaces": """
        ask(unshare=(272, 97, 0x10000000), unshare_all=(272, 97, 0x7E020000), setns=(308, 268, 0, 0))
        clone = ctypes.create_string_buffer(struct.pack("<QQQQQQQQ", 0x10000000, 0, 0, 0, 17, 0, 0, 0))
        ask(clone3=(435, 435, clone, 64))
        for flag in (0x10000000, 0x20000000, 0x20000, 0x40000000, 0x80):
            result, number = syscall(56, 220, flag | 17, 0, 0, 0, 0)
            if result == 0: os._exit(0)
            if result > 0: got("clone", hex(flag))
    """,
    "keyrings": """
        ask(add_key=(248, 217, ctypes.c_char_p(b"user"), ctypes.c_char_p(b"mine"), ctypes.c_char_p(b"x"), 1, -3),
            request_key=(249, 218, ctypes.c_char_p(b"user"), ctypes.c_char_p(b"mine"), None, 0),
            keyctl=(250, 219, 0, -3, 1), keyctl_join=(250, 219, 1, 0))
    """,
    "io_uring": """
        ask(io_uring_setup=(425, 425, 8, ZERO), io_uring_enter=(426, 426, 0, 0, 0, 0), io_uring_register=(427, 427, 0, 0, 0, 0),
            io_setup=(206, 0, 8, ZERO))
    """,
    "bpf": "ask(bpf=(321, 280, 0, ZERO, 72), bpf_load=(321, 280, 5, ZERO, 72))",
    "perf events": "ask(perf_event_open=(298, 241, ZERO, 0, -1, -1, 0))",
    "userfaultfd": "ask(userfaultfd=(323, 282, 1), userfaultfd0=(323, 282, 0))",
    "mounts": """
        ask(pivot_root=(155, 41, ctypes.c_char_p(b"."), ctypes.c_char_p(b".")), fsopen=(430, 430, ctypes.c_char_p(b"tmpfs"), 0),
            open_tree=(428, 428, -100, ctypes.c_char_p(b"/"), 1), move_mount=(429, 429, -100, 0, -100, 0, 0),
            mount_setattr=(442, 442, -100, 0, 0, 0, 0), fspick=(433, 433, -100, ctypes.c_char_p(b"/"), 0),
            chroot=(161, 51, ctypes.c_char_p(b".")), swapon=(167, 224, ctypes.c_char_p(b"x"), 0),
            quotactl=(179, 60, 0, 0, 0, 0), statmount=(457, 457, 0, 0, 0, 0))
    """,
    "modules, reboots and clocks": """
        ask(init_module=(175, 105, ZERO, 1, ZERO), finit_module=(313, 273, 0, ZERO, 0), delete_module=(176, 106, ZERO, 0),
            kexec_load=(246, 104, 0, 0, 0, 0), reboot=(169, 142, 1, 2, 3, 0), clock_settime=(227, 112, 99, ZERO),
            settimeofday=(164, 170, None, None, 1), clock_adjtime=(305, 266, 99, ZERO), acct=(163, 89, ctypes.c_char_p(b"/x")))
        if X86:
            ask(iopl=(172, 0, 3), ioperm=(173, 0, 0, 1, 1), modify_ldt=(154, 0, 0, ZERO, 16), uselib=(134, 0, ZERO))
    """,
    "other rare doors": """
        ask(fanotify_init=(300, 262, 0, 0), kcmp=(312, 272, 1, 1, 0, 0, 0), lookup_dcookie=(212, 18, 0, 0, 0),
            move_pages=(279, 239, 0, 0, 0, 0, 0, 0), migrate_pages=(256, 238, 0, 0, 0, 0), process_madvise=(440, 440, 0, 0, 0, 0, 0),
            memfd_secret=(447, 447, 0), pidfd_getfd=(438, 438, 0, 0, 0), remap_file_pages=(216, 234, 0, 0, 0, 0, 0),
            vmsplice=(278, 75, 0, 0, 0, 0), set_mempolicy=(238, 237, 0, 0, 0), seccomp=(317, 277, 1, 0, None),
            quotactl_fd=(443, 443, 0, 0, 0, 0), lsm_self=(459, 459, 0, 0, 0, 0))
        result, number = syscall(135, 92, 0x0040000)
        if result >= 0: got("personality")
    """,
    "calls by their 32-bit numbers": """
        if X86:
            import mmap
            libc.mmap.restype = ctypes.c_void_p
            code = bytes([0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3])  # mov eax, getpid; int 0x80; ret
            at = libc.mmap(None, ctypes.c_size_t(4096), 7, 0x22, -1, ctypes.c_long(0))
            ctypes.memmove(at, code, len(code))
            try:
                child = os.fork()
            except OSError:
                child = 0
            if child == 0:
                result = ctypes.CFUNCTYPE(ctypes.c_int)(at)()
                if result > 0: got("getpid", result)
                os._exit(0)
            os.wait()
    """,
    "calls by their x32 numbers": """
        if X86:
            for number in (39, 41, 272, 321, 425, 520, 545):
                result, error = syscall(0x40000000 | number, 0)
                if result >= 0 or error not in (errno.EPERM, errno.ENOSYS): got(number, result, error)
    """,
    "capabilities and other users": """
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        data = (ctypes.c_uint32 * 6)()
        if libc.capget(header, data) == 0 and any(data[i] for i in (0, 1, 3, 4)):
            got("capabilities", list(data))
        full = (ctypes.c_uint32 * 6)(*[0xFFFFFFFF] * 6)
        if libc.capset(header, full) == 0: got("capset")
        for change in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgid(0), lambda: os.seteuid(0),
                       lambda: os.setgroups([0]), lambda: os.setuid(1)):
            if (os.getuid() or change is not None) and attempt(lambda: change() is None) and libc.capset(header, full) == 0:
                got("changed user and has capabilities")
        if libc.prctl(47, 2, 21, 0, 0) == 0: got("ambient capability")
        if libc.prctl(39, 0, 0, 0, 0) != 1: got("privileges may be gained at exec")
        if os.getuid() == 0 and attempt(lambda: open("/etc/passwd", "a")): got("root")
    """,
    "programs that run as root": """
        import glob, subprocess
        for path in ("/bin/su", "/usr/bin/su", "/usr/bin/passwd", "/usr/bin/mount", "/usr/bin/sudo", "/usr/bin/newuidmap"):
            if attempt(lambda: os.stat(path).st_mode & 0o4000):
                text = attempt(lambda: subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5).stdout)
                if text and attempt(lambda: open("/proc/self/status").read()): got(path, text)
        copy = "tool"
        if attempt(lambda: open(copy, "wb").write(open("/bin/true", "rb").read())):
            attempt(os.chown, copy, 0, 0)
            attempt(os.chmod, copy, 0o6755)
            if os.stat(copy).st_mode & 0o4000 and os.stat(copy).st_uid == 0: got("a file of root's that changes the user")
    """,
    "programs without a name": """
        ask(memfd_create=(319, 279, ctypes.c_char_p(b"x"), 0), memfd_create_exec=(319, 279, ctypes.c_char_p(b"x"), 0x10),
            execveat=(322, 281, -100, ctypes.c_char_p(b"/bin/true"), None, None, 0),
            execveat_fd=(322, 281, 0, ctypes.c_char_p(b""), None, None, 0x1000))
    """,
    "calls that came later": """
        known = {436, 437, 439, 441, 444, 445, 446, 449, 452}  # allowed: files, waiting, and restricting itself further
        for number in set(range(424, 600)) - known - {424, 434}:
            result, error = syscall(number, number, 0, 0, 0, 0, 0, 0)
            if result >= 0 or error not in (errno.EPERM, errno.ENOSYS): got(number, result, error)
    """,
    "settings of a process that let others in": """
        for option, value in ((0x59616D61, -1), (36, 1), (35, 1), (28, 1), (22, 1), (1, 9), (8, 1), (26, 1), (62, 1), (47, 2)):
            ctypes.set_errno(0)
            if libc.prctl(option, ctypes.c_long(value), 0, 0, 0) >= 0: got("prctl", option)
    """,
    "typing into a terminal": """
        import fcntl
        for fd in range(3):
            for request in (0x5412, 0x541C, 0x5423, 0x540E):
                try:
                    fcntl.ioctl(fd, request, b"x")
                    got(fd, hex(request))
                except OSError as error:
                    if error.errno not in (errno.ENOTTY, errno.EPERM, errno.EBADF, errno.EINVAL): got(fd, hex(request), error)
    """,
}

ATTACKS: dict[str, dict[str, Any]] = {
    name: {"code": _ASK + "\n" + __import__("textwrap").dedent(code)} for name, code in _CALLS.items()
}

# ruff: noqa: E501  (the lines are programs)
"""Attacks on what others are told: forged results, and traces that the next run finds."""

from typing import Any

_FORGE = """
from struct import Struct
OUTCOME = Struct("<cid?I16s")
def forgeries():
    import gc
    nonces = {bytes(16), b"x" * 16}
    for thing in gc.get_objects():
        held = attempt(lambda: vars(thing).values()) or ()
        for value in (thing, *held):
            if type(value) is bytes and len(value) == 16:
                nonces.add(value)
    for depth in range(40):
        frame = attempt(sys._getframe, depth)
        for value in (frame.f_locals.values() if frame else ()):
            if type(value) is bytes and len(value) == 16:
                nonces.add(value)
    return [OUTCOME.pack(cause, 0, 0.001, False, 6, nonce) + b"forged" for nonce in nonces for cause in (b"e", b"d")]
"""

ATTACKS: dict[str, dict[str, Any]] = {
    "forge a result on every descriptor": {"code": _FORGE + """
for fd in range(3, 1024):
    for forgery in forgeries() if attempt(os.fstat, fd) else ():
        attempt(os.write, fd, forgery)
        attempt(os.write, fd, b"+")
os._exit(9)
""", "exit": 9},
    "forge a result through the objects left in memory": {"code": _FORGE + """
import gc
for thing in gc.get_objects():
    if isinstance(thing, socket.socket):
        for forgery in forgeries():
            attempt(thing.sendall, forgery)
            attempt(lambda: os.write(thing.fileno(), forgery))
    if attempt(hasattr, thing, "answer") or type(thing).__name__ in ("Zygote", "Turns"):
        for method in ("answer", "leave", "ready", "serve"):
            attempt(lambda: getattr(thing, method)())
os._exit(9)
""", "exit": 9, "ends": ("",)},
    "claim success from an exit handler": {"code": """
        import atexit
        atexit.register(os._exit, 7)
        sys.exit(0)
    """, "exit": 7},
    "claim success by a signal": {"code": """
        signal.alarm(1)
        try: time.sleep(5)
        finally: os._exit(0)
    """, "exit": -14},
    "run on in the worker's code": {"code": """
        frame = sys._getframe()
        while frame.f_back:
            frame = frame.f_back
            for name in list(frame.f_globals):
                if name in ("finish", "flush", "guarded", "os", "protocol", "time"):
                    frame.f_globals[name] = None
        try:
            raise SystemExit(5)
        finally:
            sys.modules.clear()
    """, "ends": ("",)},
    "leave files for the next run": {"code": """
        for folder in (os.getcwd(), os.environ["TMPDIR"], "/dev/shm", "/tmp", "/work", "/run", "/var/tmp"):
            attempt(lambda: open(os.path.join(folder, MARKER), "w").write("x"))
            attempt(os.mkdir, os.path.join(folder, MARKER + "d"))
        attempt(os.setxattr, os.getcwd(), "user.mark", b"1")
        attempt(os.setxattr, os.environ["TMPDIR"], "user.mark", b"1")
        attempt(os.chmod, os.getcwd(), 0o777)
        attempt(os.utime, os.getcwd(), (1, 1))
    """, "follow": """
        for folder in (os.getcwd(), os.environ["TMPDIR"], "/dev/shm", "/tmp", "/work", "/run", "/var/tmp"):
            for name in (MARKER, MARKER + "d"):
                if os.path.lexists(os.path.join(folder, name)):
                    got(folder)
        for folder in (os.getcwd(), os.environ["TMPDIR"]):
            if attempt(os.getxattr, folder, "user.mark") or os.stat(folder).st_mtime == 1:
                got("a mark on", folder)
    """},
    "leave the folder unusable": {"code": """
        os.chmod(".", 0)
        for _ in range(200):
            os.mkdir("d") if os.access(".", os.W_OK) else None
            attempt(os.chdir, "d")
        attempt(os.chmod, os.environ["TMPDIR"], 0)
    """, "follow": "open('works', 'w').close(); os.unlink('works')"},
    "change modules for the next run": {"code": """
        import builtins, json, math
        builtins.print = math.sqrt = json.dumps = os.getpid = lambda *_: 42
        os.environ["MARK"] = "1"
        sys.path.insert(0, "/mark")
        sys.setrecursionlimit(50)
    """, "follow": """
        import json, math
        if math.sqrt(4) != 2 or json.dumps(1) != "1" or "MARK" in os.environ or "/mark" in sys.path or sys.getrecursionlimit() < 100:
            got("modules")
    """},
    "leave a process for the next run": {"code": """
        def wait():
            libc.prctl(15, MARKER.encode(), 0, 0, 0)
            os.setsid()
            while True:
                attempt(lambda: open(os.path.join(os.environ["TMPDIR"], MARKER), "w").write("x"))
                attempt(lambda: open(MARKER, "w").write("x"))
                time.sleep(0.001)
        spread(2, wait)
        time.sleep(0.1)
        os._exit(0)
    """, "follow": """
        time.sleep(0.1)
        if os.path.exists(MARKER) or os.path.exists(os.path.join(os.environ["TMPDIR"], MARKER)):
            got("it lives")
    """},
    "leave a process without a signal at its end for the next run": {"code": """
        for flags in (0, 0x8000, 17):  # without a signal, as a child of the parent's, as usual
            result, _ = syscall(56, 220, flags, 0, 0, 0, 0)
            if result == 0:
                os.setsid()
                while True:
                    attempt(lambda: open(os.path.join(os.environ["TMPDIR"], MARKER), "w").write("x"))
                    attempt(lambda: open(MARKER, "w").write("x"))
        os._exit(0)
    """, "follow": """
        time.sleep(0.1)
        if os.path.exists(MARKER) or os.path.exists(os.path.join(os.environ["TMPDIR"], MARKER)):
            got("it lives")
    """},
    "leave memory and names of the kernel's for the next run": {"code": """
        syscall(29, 194, 4242, 4096, 0o1666)
        syscall(68, 186, 4242, 0o1666)
        syscall(64, 190, 4242, 1, 0o1666)
        syscall(248, 217, ctypes.c_char_p(b"user"), ctypes.c_char_p(MARKER.encode()), ctypes.c_char_p(b"x"), 1, -4)
    """, "follow": """
        for x86, arm, arguments in ((29, 194, (4242, 4096, 0)), (68, 186, (4242, 0)), (64, 190, (4242, 1, 0)),
                                    (249, 218, (ctypes.c_char_p(b"user"), ctypes.c_char_p(MARKER.encode()), None, -4))):
            if syscall(x86, arm, *arguments)[0] >= 0:
                got(x86)
    """},
    "count the runs before": {"code": "", "follow": """
        if os.getpid() > 1000 and os.getppid() == 1:
            got("process id", os.getpid())
    """},
}  # fmt: skip

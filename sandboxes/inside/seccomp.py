"""Seccomp: which system calls a program may make. A list of what is allowed, compiled to BPF; all else is refused."""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from gymrl.sandboxes.inside import numbers, syscalls

LOAD, JEQ, JGE, JSET, JUMP, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x05, 0x54, 0x06
ALLOW, ERRNO, KILL, NOTIFY = 0x7FFF0000, 0x00050000, 0x80000000, 0x7FC00000
Instruction = tuple[int, int, int, int]


class Check(NamedTuple):
    """What an argument (its low 32 bits, and-ed with `mask`) must be: one of `values`, or none of them."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    rule: Literal["among", "not among"] = "among"
    otherwise: int = ERRNO | errno.EPERM


class Policy(NamedTuple):
    """Verdicts by system call: an action, or checks that must all hold for it to be allowed."""

    verdicts: Mapping[str, int | tuple[Check, ...]]
    otherwise: int = ERRNO | errno.EPERM


NEW_NAMESPACES = 0x7E020080
"""The flags of clone that make namespaces."""
CLONE_THREAD = 0x10000
UNKNOWN = 424
"""Calls from this number on are newer than the tables' common ground: "not implemented" makes a library fall back."""


SELF = 0x7FFF5E1F
"""Stands for the program's own process id in a compiled filter, until `install` puts it in."""
PRCTL = (2, 3, 15, 16, 21, 23, 30, 39, 40, 0x53564D41)
"""Names, and questions about oneself."""
IOCTL = (0x5401, 0x540F, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""Questions to terminals (there are none), bytes ready, blocking, closing at exec."""
ABOUT = (
    "getpgid",
    "getsid",
    "sched_getaffinity",
    "sched_getparam",
    "sched_getscheduler",
    "sched_rr_get_interval",
)
"""Questions about a process, by its id."""
FCNTL = (8, 10, 15, 37, 38, 1024, 1026, 1031)
"""Owner, signal and owner again of a descriptor; locks that no count by process shows; leases, and news of a folder,
which may be the host's; size of a pipe."""


def names_and(*options: int) -> tuple[Check, ...]:
    """What `prctl` may be called with: `PRCTL` and more."""
    return (Check(0, (*PRCTL, *options), otherwise=ERRNO | errno.EINVAL),)


def policy(alone: bool, clone: Literal["allow", "deny", "ask"], shared_memory: bool) -> Policy:
    """What a program may do.

    alone: it sees no process and no file but its own, by namespaces. clone: whether it may start processes; "ask" has
    the listener that `install` returns decide. shared_memory: whether it may map anonymous memory that is shared,
    which no sum over processes shows.
    """
    column = numbers.machine()[0]
    groups = [
        numbers.IO, numbers.FILES, numbers.MEMORY, numbers.SIGNALS, numbers.PROCESS, numbers.TIME, numbers.SOCKETS,
    ]  # fmt: skip
    if alone:
        groups += [numbers.MODES, numbers.OWNERS, numbers.NAMES, numbers.OTHERS]
    if clone == "allow":
        groups.append(numbers.CHILDREN)
    verdicts: dict[str, int | tuple[Check, ...]] = {}
    for group in groups:
        verdicts |= dict.fromkeys(numbers.numbers(group, column), ALLOW)
    verdicts |= {
        "socketpair": (
            Check(0, (1,)),
            Check(1, (1, 5), mask=0xF),
        ),  # no datagrams: they can be sent to any name
        "clone": (Check(0, (0,), mask=NEW_NAMESPACES),),
        "clone3": ERRNO | errno.ENOSYS,  # its flags cannot be seen; libraries fall back to clone
        "prctl": names_and(),
        "prlimit64": (Check(0, (0, SELF)),),
        "setpriority": (Check(0, (0,)), Check(1, (0, SELF))),
        "sched_setaffinity": (Check(0, (0, SELF)),),
        "personality": (Check(0, (0, 0xFFFFFFFF)),),
        "ioctl": (Check(1, IOCTL, otherwise=ERRNO | errno.ENOTTY),),
        "fcntl": (Check(1, FCNTL, rule="not among"),),
    }
    if not shared_memory:
        refused = ERRNO | errno.ENOMEM  # for huge pages too, which are the host's and no sum shows either
        verdicts["mmap"] = (
            Check(3, (0x21,), mask=0x21, rule="not among", otherwise=refused),
            Check(3, (0x40000,), mask=0x40000, rule="not among", otherwise=refused),
        )
    if clone != "allow":
        refused = ERRNO | errno.EPERM if clone == "deny" else NOTIFY
        thread = Check(0, (CLONE_THREAD,), mask=CLONE_THREAD, otherwise=refused)
        verdicts["clone"] = (Check(0, (0,), mask=NEW_NAMESPACES), thread)
    if not alone:
        verdicts |= {
            "kill": (Check(0, (SELF,)),),
            "tgkill": (Check(0, (SELF,)),),
            **dict.fromkeys(ABOUT, (Check(0, (0, SELF), otherwise=ERRNO | errno.ESRCH),)),
            "getpriority": (Check(0, (0,)), Check(1, (0, SELF), otherwise=ERRNO | errno.ESRCH)),
            **dict.fromkeys(
                numbers.numbers(numbers.MODES, column), ERRNO
            ),  # says that it was done; nothing is
            **dict.fromkeys(("readlink", "readlinkat"), ERRNO | errno.EINVAL),  # "no symbolic link"
        }
    return Policy(verdicts)


def compiled(rules: Policy) -> bytes:
    """The policy as a BPF program."""
    column, audit = numbers.machine()
    every = "".join(
        value for name, value in vars(numbers).items() if name.isupper() and isinstance(value, str)
    )
    number = numbers.numbers(every, column)
    known = {number[name]: verdict for name, verdict in rules.verdicts.items() if name in number}
    ranges: list[tuple[int, int | tuple[Check, ...]]] = []
    for value in range(max(UNKNOWN, *known) + 2):
        verdict = known.get(value, rules.otherwise if value < UNKNOWN else ERRNO | errno.ENOSYS)
        if not ranges or ranges[-1][1] != verdict:
            ranges.append((value, verdict))
    ranges.append((0x40000000, ERRNO | errno.ENOSYS))  # x32, and nonsense
    program: list[Instruction] = [
        (LOAD, 0, 0, 4), (JEQ, 1, 0, audit), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0), *_tree(ranges),
    ]  # fmt: skip
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def _tree(ranges: Sequence[tuple[int, int | tuple[Check, ...]]]) -> list[Instruction]:
    """A binary search for the range of the number in the accumulator."""
    if len(ranges) == 1:
        return _leaf(ranges[0][1])
    middle = len(ranges) // 2
    low, high = _tree(ranges[:middle]), _tree(ranges[middle:])
    return [(JGE, 0, 1, ranges[middle][0]), (JUMP, 0, 0, len(low)), *low, *high]


def _leaf(verdict: int | tuple[Check, ...]) -> list[Instruction]:
    if isinstance(verdict, int):
        return [(RETURN, 0, 0, verdict)]
    program: list[Instruction] = []
    for check in verdict:
        program.append((LOAD, 0, 0, 16 + 8 * check.argument))
        if check.mask != 0xFFFFFFFF:
            program.append((AND, 0, 0, check.mask))
        count = len(check.values)
        if check.rule == "among":  # a match jumps over the refusal
            program += [(JEQ, count - i, 0, value) for i, value in enumerate(check.values)]
        else:  # a match jumps to the refusal, the end of the list over it
            program += [(JEQ, count - i, 0, value) for i, value in enumerate(check.values)]
            program.append((JUMP, 0, 0, 1))
        program.append((RETURN, 0, 0, check.otherwise))
    return [*program, (RETURN, 0, 0, ALLOW)]


def install(program: bytes, own: int, listen: bool = False) -> int:
    """Put this process under a compiled filter; it has to have `no_new_privs`. Returns the listener, or 0.

    own: the process id that the filter's `SELF` is to mean.
    """
    code = b"".join(
        program[i : i + 4] + struct.pack("<I", own) if program[i + 4 : i + 8] == _SELF else program[i : i + 8]
        for i in range(0, len(program), 8)
    )
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("<H6xQ", len(code) // 8, ctypes.addressof(buffer))
    return syscalls.call("seccomp", 1, 8 if listen else 0, ctypes.c_char_p(header))


_SELF = struct.pack("<I", SELF)

"""System calls by name and group: their numbers on x86-64 and on aarch64, as `name:x86:arm` (a part may be absent)."""

from __future__ import annotations

import os

IO = """
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 preadv:295:69 pwritev:296:70
preadv2:327:286 pwritev2:328:287 lseek:8:62 close:3:57 close_range:436:436 dup:32:23 dup2:33 dup3:292:24 pipe:22
pipe2:293:59 poll:7 ppoll:271:73 select:23 pselect6:270:72 epoll_create:213 epoll_create1:291:20
epoll_ctl:233:21 epoll_wait:232 epoll_pwait:281:22 epoll_pwait2:441:441 eventfd:284 eventfd2:290:19
timerfd_create:283:85 timerfd_settime:286:86 timerfd_gettime:287:87 signalfd:282 signalfd4:289:74 fcntl:72:25
ioctl:16:29 flock:73:32 fsync:74:82 fdatasync:75:83 sync_file_range:277:84 ftruncate:77:46 truncate:76:45
fallocate:285:47 fadvise64:221:223 readahead:187:213 sendfile:40:71 copy_file_range:326:285 splice:275:76
tee:276:77
"""
FILES = """
open:2 openat:257:56 openat2:437:437 creat:85 fstat:5:80 newfstatat:262:79 statx:332:291 access:21
faccessat:269:48 faccessat2:439:439 fstatfs:138:44 getdents:78 getdents64:217:61 getcwd:79:17 chdir:80:49
fchdir:81:50 mkdir:83 mkdirat:258:34 rmdir:84 unlink:87 unlinkat:263:35 rename:82 renameat:264:38
renameat2:316:276 link:86 linkat:265:37 symlink:88 symlinkat:266:36 mknod:133 mknodat:259:33 umask:95:166
getxattr:191:8 lgetxattr:192:9 fgetxattr:193:10 listxattr:194:11 llistxattr:195:12 flistxattr:196:13
"""
MODES = """
chmod:90 fchmod:91:52 fchmodat:268:53 fchmodat2:452:452 utime:132 utimes:235 utimensat:280:88 futimesat:261
"""
OWNERS = """
chown:92 fchown:93:55 lchown:94 fchownat:260:54 setxattr:188:5 lsetxattr:189:6 fsetxattr:190:7
removexattr:197:14 lremovexattr:198:15 fremovexattr:199:16
"""
NAMES = """
readlink:89 readlinkat:267:78 statfs:137:43
"""
NOTIFY = """
inotify_init:253 inotify_init1:294:26 inotify_add_watch:254:27 inotify_rm_watch:255:28
"""
MEMORY = """
mmap:9:222 munmap:11:215 mprotect:10:226 mremap:25:216 madvise:28:233 brk:12:214 msync:26:227 mincore:27:232
mlock:149:228 munlock:150:229 mlock2:325:284 mlockall:151:230 munlockall:152:231 membarrier:324:283
"""
SIGNALS = """
rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136 rt_sigtimedwait:128:137
rt_sigsuspend:130:133 sigaltstack:131:132 pause:34 kill:62:129 tgkill:234:131
"""
OTHERS = """
tkill:200:130 pidfd_open:434:434 pidfd_send_signal:424:424 setpgid:109:154
"""
PROCESS = """
clone:56:220 exit:60:93 exit_group:231:94 wait4:61:260 waitid:247:95 getpid:39:172 getppid:110:173
gettid:186:178 getpgid:121:155 getpgrp:111 getsid:124:156 setsid:112:157 getuid:102:174 geteuid:107:175
getgid:104:176 getegid:108:177 getresuid:118:148 getresgid:120:150 getgroups:115:158 set_tid_address:218:96
set_robust_list:273:99 rseq:334:293 futex:202:98 futex_waitv:449:449 prctl:157:167 arch_prctl:158 capget:125:90
getpriority:140:141 setpriority:141:140 sched_yield:24:124 sched_getaffinity:204:123 sched_setaffinity:203:122
sched_getparam:143:121 sched_getscheduler:145:120 sched_get_priority_max:146:125 sched_get_priority_min:147:126
sched_rr_get_interval:148:127 getrusage:98:165 getrlimit:97:163 setrlimit:160:164 prlimit64:302:261
times:100:153 uname:63:160 sysinfo:99:179 getcpu:309:168 getrandom:318:278 personality:135:92
restart_syscall:219:128
"""
CHILDREN = """
fork:57 vfork:58 execve:59:221
"""
TIME = """
gettimeofday:96:169 time:201 clock_gettime:228:113 clock_getres:229:114 clock_nanosleep:230:115 nanosleep:35:101
alarm:37 getitimer:36:102 setitimer:38:103 timer_create:222:107 timer_settime:223:110 timer_gettime:224:108
timer_getoverrun:225:109 timer_delete:226:111
"""
SOCKETS = """
socketpair:53:199 sendto:44:206 recvfrom:45:207 sendmsg:46:211 recvmsg:47:212 sendmmsg:307:269 recvmmsg:299:243
shutdown:48:210 getsockname:51:204 getpeername:52:205 getsockopt:55:209 setsockopt:54:208
"""
JAIL = """
pivot_root:155:41 seccomp:317:277 mount_setattr:442:442 open_tree:428:428 move_mount:429:429 capset:126:91
landlock_create_ruleset:444:444 landlock_add_rule:445:445 landlock_restrict_self:446:446 unshare:272:97
setns:308:268 mount:165:40 umount2:166:39 clone3:435:435
openat2:437:437 setresuid:117:147 setresgid:119:149 setgroups:116:159
"""
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the tables and the audit number, by the machine's name."""


def machine() -> tuple[int, int]:
    """Column and audit number of this machine. Raises OSError for one that the tables do not know."""
    name = os.uname().machine
    if name not in ARCHITECTURES:
        raise OSError(f"no table of system calls for {name}: x86_64 and aarch64 are known")
    return ARCHITECTURES[name]


def numbers(table: str, column: int) -> dict[str, int]:
    """Number by name; what this machine does not have is left out."""
    found: dict[str, int] = {}
    for entry in table.split():
        name, *columns = entry.split(":")
        if len(columns) > column and columns[column]:
            found[name] = int(columns[column])
    return found

"""Numbers of the system calls that the sandbox names, for both architectures it supports. `policy` decides which of
them a run may make.

Only the standard library; loads under `python -S`.
"""

from typing import Final

ARCHITECTURES: Final = ("x86_64", "aarch64")
"""The columns of NUMBERS, as `uname -m` calls them."""
ABSENT: Final = -1
"""The architecture does not have the call."""

NUMBERS: Final = {
    "access": (21, ABSENT), "alarm": (37, ABSENT), "arch_prctl": (158, ABSENT), "brk": (12, 214), "capget": (125, 90),
    "capset": (126, 91), "chdir": (80, 49), "chmod": (90, ABSENT), "clock_getres": (229, 114),
    "clock_gettime": (228, 113), "clock_nanosleep": (230, 115), "clone": (56, 220), "clone3": (435, 435),
    "close": (3, 57), "close_range": (436, 436), "copy_file_range": (326, 285), "creat": (85, ABSENT), "dup": (32, 23),
    "dup2": (33, ABSENT), "dup3": (292, 24), "epoll_create": (213, ABSENT), "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21), "epoll_pwait": (281, 22), "epoll_pwait2": (441, 441), "epoll_wait": (232, ABSENT),
    "eventfd": (284, ABSENT), "eventfd2": (290, 19), "execve": (59, 221), "execveat": (322, 281), "exit": (60, 93),
    "exit_group": (231, 94), "faccessat": (269, 48), "faccessat2": (439, 439), "fadvise64": (221, 223),
    "fallocate": (285, 47), "fchdir": (81, 50), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "fcntl": (72, 25), "fdatasync": (75, 83), "fgetxattr": (193, 10), "flistxattr": (196, 13), "flock": (73, 32),
    "fork": (57, ABSENT), "fremovexattr": (199, 16), "fsetxattr": (190, 7), "fstat": (5, 80), "fstatfs": (138, 44),
    "fsync": (74, 82), "ftruncate": (77, 46), "futex": (202, 98), "futimesat": (261, ABSENT), "getcpu": (309, 168),
    "getcwd": (79, 17), "getdents": (78, ABSENT), "getdents64": (217, 61), "getegid": (108, 177), "geteuid": (107, 175),
    "getgid": (104, 176), "getgroups": (115, 158), "getitimer": (36, 102), "getpeername": (52, 205),
    "getpgid": (121, 155), "getpgrp": (111, ABSENT), "getpid": (39, 172), "getppid": (110, 173),
    "getpriority": (140, 141), "getrandom": (318, 278), "getresgid": (120, 150), "getresuid": (118, 148),
    "getrlimit": (97, 163), "getrusage": (98, 165), "getsid": (124, 156), "getsockname": (51, 204),
    "getsockopt": (55, 209), "gettid": (186, 178), "gettimeofday": (96, 169), "getuid": (102, 174),
    "getxattr": (191, 8), "getxattrat": (464, 464), "ioctl": (16, 29), "kill": (62, 129),
    "landlock_add_rule": (445, 445), "landlock_create_ruleset": (444, 444), "landlock_restrict_self": (446, 446),
    "lgetxattr": (192, 9), "link": (86, ABSENT), "linkat": (265, 37), "listxattr": (194, 11), "listxattrat": (465, 465),
    "llistxattr": (195, 12), "lremovexattr": (198, 15), "lseek": (8, 62), "lsetxattr": (189, 6), "lstat": (6, ABSENT),
    "madvise": (28, 233), "membarrier": (324, 283), "memfd_create": (319, 279), "mkdir": (83, ABSENT),
    "mkdirat": (258, 34), "mknod": (133, ABSENT), "mknodat": (259, 33), "mmap": (9, 222), "mount_setattr": (442, 442),
    "mprotect": (10, 226), "mremap": (25, 216), "msync": (26, 227), "munmap": (11, 215), "nanosleep": (35, 101),
    "newfstatat": (262, 79), "open": (2, ABSENT), "openat": (257, 56), "openat2": (437, 437), "pause": (34, ABSENT),
    "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pipe": (22, ABSENT), "pipe2": (293, 59),
    "pivot_root": (155, 41), "poll": (7, ABSENT), "ppoll": (271, 73), "prctl": (157, 167), "pread64": (17, 67),
    "preadv": (295, 69), "preadv2": (327, 286), "prlimit64": (302, 261), "pselect6": (270, 72), "pwrite64": (18, 68),
    "pwritev": (296, 70), "pwritev2": (328, 287), "read": (0, 63), "readlink": (89, ABSENT), "readlinkat": (267, 78),
    "readv": (19, 65), "recvfrom": (45, 207), "recvmsg": (47, 212), "removexattr": (197, 14),
    "removexattrat": (466, 466), "rename": (82, ABSENT), "renameat": (264, 38), "renameat2": (316, 276),
    "restart_syscall": (219, 128), "rmdir": (84, ABSENT), "rseq": (334, 293), "rt_sigaction": (13, 134),
    "rt_sigpending": (127, 136), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigsuspend": (130, 133),
    "rt_sigtimedwait": (128, 137), "sched_get_priority_max": (146, 125), "sched_get_priority_min": (147, 126),
    "sched_getaffinity": (204, 123), "sched_getattr": (315, 275), "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120), "sched_rr_get_interval": (148, 127), "sched_setaffinity": (203, 122),
    "sched_yield": (24, 124), "select": (23, ABSENT), "sendfile": (40, 71), "sendmsg": (46, 211), "sendto": (44, 206),
    "set_robust_list": (273, 99), "set_tid_address": (218, 96), "setitimer": (38, 103), "setpgid": (109, 154),
    "setpriority": (141, 140), "setrlimit": (160, 164), "setsid": (112, 157), "setsockopt": (54, 208),
    "setxattr": (188, 5), "setxattrat": (463, 463), "shutdown": (48, 210), "sigaltstack": (131, 132),
    "signalfd": (282, ABSENT), "signalfd4": (289, 74), "socketpair": (53, 199), "stat": (4, ABSENT),
    "statfs": (137, 43), "statx": (332, 291), "symlink": (88, ABSENT), "symlinkat": (266, 36), "sysinfo": (99, 179),
    "tgkill": (234, 131), "time": (201, ABSENT), "timer_create": (222, 107), "timer_delete": (226, 111),
    "timer_getoverrun": (225, 109), "timer_gettime": (224, 108), "timer_settime": (223, 110),
    "timerfd_create": (283, 85), "timerfd_gettime": (287, 87), "timerfd_settime": (286, 86), "times": (100, 153),
    "tkill": (200, 130), "truncate": (76, 45), "umask": (95, 166), "uname": (63, 160), "unlink": (87, ABSENT),
    "unlinkat": (263, 35), "unshare": (272, 97), "utime": (132, ABSENT), "utimensat": (280, 88),
    "utimes": (235, ABSENT), "vfork": (58, ABSENT), "wait4": (61, 260), "waitid": (247, 95), "write": (1, 64),
    "writev": (20, 66),
}  # fmt: skip


def number_of(name: str, machine: str) -> int:
    """The number of a call of NUMBERS, or ABSENT. Raises OSError for an architecture that has no column."""
    if machine not in ARCHITECTURES:
        raise OSError(f"no table of system calls for {machine}: the sandbox runs on {', '.join(ARCHITECTURES)}")
    return NUMBERS[name][ARCHITECTURES.index(machine)]

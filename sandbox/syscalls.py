"""The numbers of the system calls that the sandbox names, for both architectures it runs on. What a run may do with
them is said in `policy`.

Only the standard library; loads under `python -S`.
"""

from typing import Final

ARCHITECTURES: Final = ("x86_64", "aarch64")
"""The columns of NUMBERS, as `uname -m` calls them."""
ABSENT: Final = -1
"""The architecture does not have the call."""

NUMBERS: Final = {
    "accept": (43, 202), "accept4": (288, 242), "acct": (163, 89), "add_key": (248, 217), "adjtimex": (159, 171),
    "bind": (49, 200), "bpf": (321, 280), "capset": (126, 91), "chmod": (90, ABSENT), "chown": (92, ABSENT),
    "chroot": (161, 51), "clock_adjtime": (305, 266), "clock_settime": (227, 112), "clone": (56, 220),
    "clone3": (435, 435), "close_range": (436, 436), "connect": (42, 203), "delete_module": (176, 106),
    "fanotify_init": (300, 262), "fchmodat": (268, 53), "fchmodat2": (452, 452), "fchownat": (260, 54),
    "file_setattr": (469, 469), "finit_module": (313, 273), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fsopen": (430, 430), "fspick": (433, 433), "futimesat": (261, ABSENT), "init_module": (175, 105),
    "inotify_init": (253, ABSENT), "inotify_init1": (294, 26), "io_setup": (206, 0),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "io_uring_setup": (425, 425), "ioctl": (16, 29),
    "ioperm": (173, ABSENT), "iopl": (172, ABSENT), "ioprio_set": (251, 30), "kcmp": (312, 272),
    "kexec_file_load": (320, 294), "kexec_load": (246, 104), "keyctl": (250, 219), "kill": (62, 129),
    "landlock_add_rule": (445, 445), "landlock_create_ruleset": (444, 444), "landlock_restrict_self": (446, 446),
    "lchown": (94, ABSENT), "listen": (50, 201), "lookup_dcookie": (212, 18), "lremovexattr": (198, 15),
    "lsetxattr": (189, 6), "mbind": (237, 235), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "migrate_pages": (256, 238), "mmap": (9, 222), "modify_ldt": (154, ABSENT), "mount": (165, 40),
    "mount_setattr": (442, 442), "move_mount": (429, 429), "move_pages": (279, 239), "mq_open": (240, 180),
    "msgget": (68, 186), "name_to_handle_at": (303, 264), "nfsservctl": (180, 42), "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467), "openat2": (437, 437), "perf_event_open": (298, 241), "personality": (135, 92),
    "pidfd_getfd": (438, 438), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pivot_root": (155, 41),
    "prlimit64": (302, 261), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "ptrace": (101, 117), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "read": (0, 63), "reboot": (169, 142), "removexattr": (197, 14),
    "removexattrat": (466, 466), "request_key": (249, 218), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "sched_setaffinity": (203, 122), "sched_setattr": (314, 274),
    "sched_setparam": (142, 118), "sched_setscheduler": (144, 119), "semget": (64, 190), "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450), "setdomainname": (171, 162), "sethostname": (170, 161), "setns": (308, 268),
    "setpriority": (141, 140), "setrlimit": (160, 164), "settimeofday": (164, 170), "setxattr": (188, 5),
    "setxattrat": (463, 463),
    "shmget": (29, 194), "socket": (41, 198), "socketpair": (53, 199), "swapoff": (168, 225), "swapon": (167, 224),
    "sync": (162, 81), "syncfs": (306, 267),
    "sysfs": (139, ABSENT), "syslog": (103, 116), "tgkill": (234, 131), "tkill": (200, 130), "umount2": (166, 39),
    "unshare": (272, 97), "uselib": (134, ABSENT), "userfaultfd": (323, 282), "ustat": (136, ABSENT),
    "utime": (132, ABSENT), "utimensat": (280, 88), "utimes": (235, ABSENT), "vhangup": (153, 58),
    "vmsplice": (278, 75),
}  # fmt: skip


def number_of(name: str, machine: str) -> int:
    """The number of a call of NUMBERS, or ABSENT. Raises OSError for an architecture that has no column."""
    if machine not in ARCHITECTURES:
        raise OSError(f"no table of system calls for {machine}: the sandbox runs on {', '.join(ARCHITECTURES)}")
    return NUMBERS[name][ARCHITECTURES.index(machine)]

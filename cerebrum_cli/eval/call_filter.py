"""The system calls that a program can make, as a filter for the kernel (seccomp). All others fail with EPERM.

They are what Python and numpy need for computing, for files and for waiting. There are no calls for other processes and
threads, sockets with an address, namespaces, keys, or memory that does not count as the program's own.
"""

from __future__ import annotations

import struct

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # the kernel's numbers of them

# A call, and its numbers on MACHINES. If an argument is limited, its index, counted from 0, and its values.
ALLOWED_CALLS = """
read 0 63
write 1 64
readv 19 65
writev 20 66
pread64 17 67
pwrite64 18 68
preadv 295 69
pwritev 296 70
preadv2 327 286
pwritev2 328 287
lseek 8 62
open 2 -
openat 257 56
close 3 57
close_range 436 436
dup 32 23
dup2 33 -
dup3 292 24
pipe 22 -
pipe2 293 59
sendfile 40 71
copy_file_range 326 285
stat 4 -
lstat 6 -
fstat 5 80
newfstatat 262 79
statx 332 291
statfs 137 43
fstatfs 138 44
access 21 -
faccessat 269 48
faccessat2 439 439
readlink 89 -
readlinkat 267 78
getdents 78 -
getdents64 217 61
getxattr 191 8
lgetxattr 192 9
fgetxattr 193 10
listxattr 194 11
llistxattr 195 12
flistxattr 196 13
truncate 76 45
ftruncate 77 46
fallocate 285 47
fadvise64 221 223
fsync 74 82
fdatasync 75 83
flock 73 32
rename 82 -
renameat 264 38
renameat2 316 276
mkdir 83 -
mkdirat 258 34
rmdir 84 -
unlink 87 -
unlinkat 263 35
link 86 -
linkat 265 37
symlink 88 -
symlinkat 266 36
chmod 90 -
fchmod 91 52
fchmodat 268 53
fchmodat2 452 452
umask 95 166
utime 132 -
utimes 235 -
futimesat 261 -
utimensat 280 88
chdir 80 49
fchdir 81 50
getcwd 79 17
brk 12 214
mmap 9 222
munmap 11 215
mprotect 10 226
mremap 25 216
madvise 28 233
msync 26 227
rt_sigaction 13 134
rt_sigprocmask 14 135
rt_sigreturn 15 139
rt_sigpending 127 136
rt_sigtimedwait 128 137
rt_sigsuspend 130 133
sigaltstack 131 132
kill 62 129 0 1
tkill 200 130
tgkill 234 131
pause 34 -
alarm 37 -
getitimer 36 102
setitimer 38 103
restart_syscall 219 128
execve 59 221
exit 60 93
exit_group 231 94
wait4 61 260
waitid 247 95
arch_prctl 158 -
set_tid_address 218 96
set_robust_list 273 99
rseq 334 293
futex 202 98
getpid 39 172
gettid 186 178
getppid 110 173
getpgid 121 155
getpgrp 111 -
getsid 124 156
getuid 102 174
geteuid 107 175
getgid 104 176
getegid 108 177
getresuid 118 148
getresgid 120 150
getgroups 115 158
getrlimit 97 163
setrlimit 160 164
prlimit64 302 261
getrusage 98 165
sysinfo 99 179
uname 63 160
times 100 153
time 201 -
gettimeofday 96 169
clock_gettime 228 113
clock_getres 229 114
nanosleep 35 101
clock_nanosleep 230 115
getrandom 318 278
sched_yield 24 124
sched_getaffinity 204 123
getcpu 309 168
poll 7 -
ppoll 271 73
select 23 -
pselect6 270 72
epoll_create 213 -
epoll_create1 291 20
epoll_ctl 233 21
epoll_wait 232 -
epoll_pwait 281 22
epoll_pwait2 441 441
eventfd2 290 19
socketpair 53 199 0 1
getsockname 51 204
getsockopt 55 209
sendto 44 206
recvfrom 45 207
shutdown 48 210
fcntl 72 25 1 0 1 2 3 4 5 6 7 1030 1032
ioctl 16 29 1 0x5401 0x5413 0x541b 0x5421 0x5450 0x5451
"""

LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06  # instructions of a filter
CALL_NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets of what a filter can load; 8 bytes for each argument
ALLOW, DENY = (RETURN, 0, 0, 0x7FFF0000), (RETURN, 0, 0, 0x00050001)  # denied: the call fails with EPERM


def call_filter(machine: str) -> bytes:
    """Program in the kernel's filter language (BPF) that allows the machine's ALLOWED_CALLS, and no foreign calls.

    A jump skips as many instructions as its second number says if the values are equal, otherwise as its third.
    """
    column = 1 + list(MACHINES).index(machine)
    instructions = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_EQUAL, 1, 0, MACHINES[machine]),
        DENY,
        (LOAD, 0, 0, CALL_NUMBER),
    ]
    for call in ALLOWED_CALLS.strip().split("\n"):
        fields = call.split()
        if fields[column] == "-":
            continue
        verdict = [ALLOW]
        if fields[3:]:
            verdict = [(LOAD, 0, 0, ARGUMENTS + 8 * int(fields[3]))]
            for value in fields[4:]:
                verdict += [(JUMP_EQUAL, 0, 1, int(value, 0)), ALLOW]
            verdict.append(DENY)
        instructions += [(JUMP_EQUAL, 0, len(verdict), int(fields[column])), *verdict]
    instructions.append(DENY)
    return b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)

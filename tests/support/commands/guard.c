/* Notes in the file of GUARD_LOG, a line each, the names that a program looks up, the addresses that it connects or
   sends to, and the files and directories that it creates, also as the new name of another one. The dynamic linker
   loads it before the C library, whose functions it calls. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void note(const char *what, const char *value) {
    const char *path = getenv("GUARD_LOG");
    int before = errno;
    int log = path ? syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
    if (log >= 0) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%s %.*s\n", what, PATH_MAX, value ? value : "");
        syscall(SYS_write, log, line, length);
        syscall(SYS_close, log);
    }
    errno = before;
}

static void note_address(const char *what, const struct sockaddr *address) {
    char text[INET6_ADDRSTRLEN];
    if (address && address->sa_family == AF_INET)
        note(what, inet_ntop(AF_INET, &((const struct sockaddr_in *)address)->sin_addr, text, sizeof text));
    else if (address && address->sa_family == AF_INET6)
        note(what, inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)address)->sin6_addr, text, sizeof text));
}

static void note_file(int directory, const char *path) {
    char absolute[PATH_MAX + 64] = "", link[64];
    if (path && path[0] != '/') {
        if (directory == AT_FDCWD) {
            if (!getcwd(absolute, PATH_MAX)) absolute[0] = 0;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
            ssize_t length = readlink(link, absolute, PATH_MAX);
            absolute[length > 0 ? length : 0] = 0;
        }
        strncat(absolute, "/", sizeof absolute - strlen(absolute) - 1);
    }
    strncat(absolute, path ? path : "", sizeof absolute - strlen(absolute) - 1);
    note("create", absolute);
}

/* Names. */

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
    if (node) note("lookup", node);
    return NEXT(getaddrinfo)(node, service, hints, result);
}

struct hostent *gethostbyname(const char *name) {
    note("lookup", name);
    return NEXT(gethostbyname)(name);
}

struct hostent *gethostbyname2(const char *name, int family) {
    note("lookup", name);
    return NEXT(gethostbyname2)(name, family);
}

int gethostbyname_r(const char *name, struct hostent *entry, char *buffer, size_t size, struct hostent **result,
                    int *error) {
    note("lookup", name);
    return NEXT(gethostbyname_r)(name, entry, buffer, size, result, error);
}

int getnameinfo(const struct sockaddr *address, socklen_t length, char *host, socklen_t host_size, char *service,
                socklen_t service_size, int flags) {
    if (host && !(flags & NI_NUMERICHOST)) note_address("lookup", address);
    return NEXT(getnameinfo)(address, length, host, host_size, service, service_size, flags);
}

/* Connections, also those of a program to a name server, if it has a resolver of its own. */

int connect(int socket, const struct sockaddr *address, socklen_t length) {
    note_address("connect", address);
    return NEXT(connect)(socket, address, length);
}

ssize_t sendto(int socket, const void *data, size_t size, int flags, const struct sockaddr *address, socklen_t length) {
    note_address("connect", address);
    return NEXT(sendto)(socket, data, size, flags, address, length);
}

ssize_t sendmsg(int socket, const struct msghdr *message, int flags) {
    note_address("connect", message->msg_name);
    return NEXT(sendmsg)(socket, message, flags);
}

int sendmmsg(int socket, struct mmsghdr *messages, unsigned int count, int flags) {
    for (unsigned int at = 0; at < count; at++) note_address("connect", messages[at].msg_hdr.msg_name);
    return NEXT(sendmmsg)(socket, messages, count, flags);
}

/* Files. */

#define OPEN(name)                                            \
    int name(const char *path, int flags, ...) {              \
        mode_t mode = 0;                                      \
        if (flags & (O_CREAT | __O_TMPFILE)) {                \
            va_list arguments;                                \
            va_start(arguments, flags);                       \
            mode = va_arg(arguments, mode_t);                 \
            va_end(arguments);                                \
        }                                                     \
        if (flags & O_CREAT) note_file(AT_FDCWD, path);       \
        return NEXT(name)(path, flags, mode);                 \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                            \
    int name(int directory, const char *path, int flags, ...) { \
        mode_t mode = 0;                                        \
        if (flags & (O_CREAT | __O_TMPFILE)) {                  \
            va_list arguments;                                  \
            va_start(arguments, flags);                         \
            mode = va_arg(arguments, mode_t);                   \
            va_end(arguments);                                  \
        }                                                       \
        if (flags & O_CREAT) note_file(directory, path);        \
        return NEXT(name)(directory, path, flags, mode);        \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                             \
    FILE *name(const char *path, const char *mode) {            \
        if (mode[0] != 'r') note_file(AT_FDCWD, path);          \
        return NEXT(name)(path, mode);                          \
    }
FOPEN(fopen)
FOPEN(fopen64)

int creat(const char *path, mode_t mode) {
    note_file(AT_FDCWD, path);
    return NEXT(creat)(path, mode);
}

int mkdir(const char *path, mode_t mode) {
    note_file(AT_FDCWD, path);
    return NEXT(mkdir)(path, mode);
}

int mkdirat(int directory, const char *path, mode_t mode) {
    note_file(directory, path);
    return NEXT(mkdirat)(directory, path, mode);
}

char *mkdtemp(char *pattern) {
    char *path = NEXT(mkdtemp)(pattern);
    if (path) note_file(AT_FDCWD, path);
    return path;
}

#define MKSTEMP(name)                            \
    int name(char *pattern) {                    \
        int file = NEXT(name)(pattern);          \
        if (file >= 0) note_file(AT_FDCWD, pattern); \
        return file;                             \
    }
MKSTEMP(mkstemp)
MKSTEMP(mkstemp64)

#define MKOSTEMP(name)                           \
    int name(char *pattern, int flags) {         \
        int file = NEXT(name)(pattern, flags);   \
        if (file >= 0) note_file(AT_FDCWD, pattern); \
        return file;                             \
    }
MKOSTEMP(mkostemp)
MKOSTEMP(mkostemp64)

/* Other names of files. */

#define NAMED(name)                                   \
    int name(const char *source, const char *target) { \
        note_file(AT_FDCWD, target);                  \
        return NEXT(name)(source, target);            \
    }
NAMED(rename)
NAMED(link)
NAMED(symlink)

int renameat(int from, const char *source, int to, const char *target) {
    note_file(to, target);
    return NEXT(renameat)(from, source, to, target);
}

int renameat2(int from, const char *source, int to, const char *target, unsigned int flags) {
    note_file(to, target);
    return NEXT(renameat2)(from, source, to, target, flags);
}

int linkat(int from, const char *source, int to, const char *target, int flags) {
    note_file(to, target);
    return NEXT(linkat)(from, source, to, target, flags);
}

int symlinkat(const char *source, int to, const char *target) {
    note_file(to, target);
    return NEXT(symlinkat)(source, to, target);
}

/* Notes in the file of GUARD_LOG, a line each, the names that a program looks up, the addresses that it connects or
   sends to, and the files and directories that it creates. The dynamic linker loads it before the C library. */
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

/* Connections, also of programs with a resolver of their own. */

int connect(int socket, const struct sockaddr *address, socklen_t length) {
    note_address("connect", address);
    return NEXT(connect)(socket, address, length);
}

ssize_t sendto(int socket, const void *data, size_t size, int flags, const struct sockaddr *address, socklen_t length) {
    note_address("connect", address);
    return NEXT(sendto)(socket, data, size, flags, address, length);
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

/* Preloaded library that counts, logs and disturbs the calls of a process that change files below
   one folder. A test compiles it, and arms it in a forked child: see faulty_disk.py.

   Not seen: system calls that bypass the C library, and writes through FILE pointers. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { SHORT = -1, SLOW = -2, KILL = -3 }; /* faults that are not the number of an error */

static char below[PATH_MAX], kept[PATH_MAX];
static int log_file = -1, at, how, lasting;
static int count;

/* Arm: fault `fault` in call number `call` (from 1), and in all later ones if `stays`. The log gets
   a line for each call; folder `keep`, if not empty, a link to each file that is flushed. */
void faulty_disk_arm(const char *folder, const char *log, const char *keep, int call, int fault,
                     int stays) {
  if (log_file >= 0) close(log_file);
  log_file = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  snprintf(kept, sizeof kept, "%s", keep);
  at = call, how = fault, lasting = stays, count = 0;
  snprintf(below, sizeof below, "%s/", folder);
}

/* Add a line to the log that is no call, for example about what a caller was promised. */
void faulty_disk_note(const char *text) {
  if (log_file >= 0) dprintf(log_file, "0\tnote\t0\t%s\t\n", text);
}

static int inside(int folder, const char *path, char *full) {
  if (!below[0]) return 0;
  size_t n = 0;
  if (path == NULL || path[0] != '/') { /* relative to an open folder, or the file itself */
    char link[64];
    if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t got = syscall(SYS_readlinkat, AT_FDCWD, link, full, PATH_MAX - 1);
    if (got <= 0) return 0;
    n = (size_t)got;
    if (path) full[n++] = '/';
  }
  snprintf(full + n, PATH_MAX - n, "%s", path ? path : "");
  /* The folder itself counts as being below it. */
  return strncmp(full, below, strlen(below)) == 0 ||
         (strncmp(full, below, strlen(below) - 1) == 0 && full[strlen(below) - 1] == 0);
}

/* Number the call, and disturb it; return 0, the number of an error, or SHORT. */
static int disturbed(int *number, const char *kind) {
  *number = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
  if (*number != at && !(lasting && at > 0 && *number > at)) return 0;
  /* A full disk does not prevent removals. */
  if (*number != at && how != EROFS && strcmp(kind, "remove") == 0) return 0;
  if (how == KILL) kill(getpid(), SIGKILL);
  if (how == SLOW) usleep(30000);
  return how == SLOW ? 0 : how;
}

static void logged(int number, const char *kind, long result, const char *path, const char *to) {
  int error = errno;
  if (log_file >= 0) dprintf(log_file, "%d\t%s\t%ld\t%s\t%s\n", number, kind, result, path, to);
  errno = error;
}

#define REAL(name)                  \
  static __typeof__(name) *real;    \
  if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
/* Do `call` with its fault, log it with its result, and return that. */
#define DO(type, kind, failed, path, to, call)                   \
  do {                                                           \
    int number, fault = disturbed(&number, kind);                      \
    if (fault > 0) errno = fault;                                \
    type result = fault > 0 ? (failed) : (call);                 \
    logged(number, kind, fault > 0 ? -fault : (result == (failed) ? -errno : 0), path, to); \
    return result;                                               \
  } while (0)

#define WRITING (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)
#define OPEN(name, folder, params, ...)                                       \
  int name params {                                                           \
    REAL(name);                                                               \
    mode_t mode = 0;                                                          \
    va_list more;                                                             \
    va_start(more, flags);                                                    \
    if (flags & O_CREAT) mode = va_arg(more, mode_t);                         \
    va_end(more);                                                             \
    char full[PATH_MAX];                                                      \
    if (!(flags & WRITING) || !inside(folder, path, full)) return real(__VA_ARGS__); \
    DO(int, flags & O_TRUNC ? "create" : "open", -1, full, "", real(__VA_ARGS__)); \
  }
OPEN(open, AT_FDCWD, (const char *path, int flags, ...), path, flags, mode)
OPEN(open64, AT_FDCWD, (const char *path, int flags, ...), path, flags, mode)
OPEN(openat, folder, (int folder, const char *path, int flags, ...), folder, path, flags, mode)
OPEN(openat64, folder, (int folder, const char *path, int flags, ...), folder, path, flags, mode)

#define FOPEN(name)                                                     \
  FILE *name(const char *path, const char *mode) {                      \
    REAL(name);                                                         \
    char full[PATH_MAX];                                                \
    if (mode[0] == 'r' || !inside(AT_FDCWD, path, full)) return real(path, mode); \
    DO(FILE *, mode[0] == 'w' ? "create" : "open", NULL, full, "", real(path, mode)); \
  }
FOPEN(fopen)
FOPEN(fopen64)

#define HALF(size) ((fault == SHORT && (size) > 1) ? (size) / 2 : (size))
ssize_t write(int file, const void *data, size_t size) {
  REAL(write);
  char full[PATH_MAX];
  if (!inside(file, NULL, full)) return real(file, data, size);
  DO(ssize_t, "write", -1, full, "", real(file, data, HALF(size)));
}
ssize_t writev(int file, const struct iovec *parts, int n) {
  REAL(writev);
  char full[PATH_MAX];
  if (!inside(file, NULL, full)) return real(file, parts, n);
  DO(ssize_t, "write", -1, full, "", real(file, parts, HALF(n)));
}

static int flushed(int (*real)(int), int file) {
  char full[PATH_MAX], copy[PATH_MAX + 32];
  if (!inside(file, NULL, full)) return real(file);
  struct stat state = {0};
  fstat(file, &state);
  if (kept[0] && S_ISREG(state.st_mode)) {
    snprintf(copy, sizeof copy, "%s/%d", kept, count + 1);
    syscall(SYS_linkat, AT_FDCWD, full, AT_FDCWD, copy, 0);
  }
  char size[32];
  snprintf(size, sizeof size, "%lld", (long long)state.st_size);
  DO(int, "flush", -1, full, size, 0); /* which would only take time: no test cuts the power */
}
int fsync(int file) { REAL(fsync); return flushed(real, file); }
int fdatasync(int file) { REAL(fdatasync); return flushed(real, file); }

#define ON_PATH(name, kind, folder, params, ...)                         \
  int name params {                                                      \
    REAL(name);                                                          \
    char full[PATH_MAX];                                                 \
    if (!inside(folder, path, full)) return real(__VA_ARGS__);           \
    DO(int, kind, -1, full, "", real(__VA_ARGS__));                      \
  }
ON_PATH(mkdir, "mkdir", AT_FDCWD, (const char *path, mode_t mode), path, mode)
ON_PATH(mkdirat, "mkdir", folder, (int folder, const char *path, mode_t mode), folder, path, mode)
ON_PATH(unlink, "remove", AT_FDCWD, (const char *path), path)
ON_PATH(rmdir, "remove", AT_FDCWD, (const char *path), path)
ON_PATH(unlinkat, "remove", folder, (int folder, const char *path, int flags), folder, path, flags)

int rename(const char *from, const char *to) {
  REAL(rename);
  char full[PATH_MAX], other[PATH_MAX];
  if (!inside(AT_FDCWD, from, full) || !inside(AT_FDCWD, to, other)) return real(from, to);
  DO(int, "rename", -1, full, other, real(from, to));
}

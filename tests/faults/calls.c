/* Faults at chosen calls that change a file system, counted over all processes and threads of a run.

   Preloaded (LD_PRELOAD). Calls count that change something below a directory of FAULTS_UNDER (separated by colons);
   the number of the last one is in the file FAULTS_COUNTER, shared by all. Each is a line of FAULTS_LOG where that is
   set. The call FAULTS_AT, and with FAULTS_LATER all later ones, meets FAULTS_ACT: "group" and "self" kill the group
   of processes or the one that calls, before the call is carried out; "term" and "int" send the group that signal;
   "short" lets a write take half of its bytes; a number is an errno with which the call fails. Before each call that
   makes something last (fsync, rename), FAULTS_COPY is carried out by a shell, with the call's number as $0. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static char under[4 * PATH_MAX];
static long *counter;
static int log_file = -1;
static long at;
static int later;
static char act[16];
static const char *copy;

__attribute__((constructor)) static void begin(void) {
  const char *value = getenv("FAULTS_UNDER");
  snprintf(under, sizeof under, "%s", value ? value : "");
  if ((value = getenv("FAULTS_COUNTER"))) {
    int file = syscall(SYS_openat, AT_FDCWD, value, O_RDWR | O_CLOEXEC, 0);
    if (file >= 0) {
      void *shared = mmap(NULL, sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
      counter = shared == MAP_FAILED ? NULL : shared;
      syscall(SYS_close, file);
    }
  }
  if ((value = getenv("FAULTS_LOG")))
    log_file = syscall(SYS_openat, AT_FDCWD, value, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  at = (value = getenv("FAULTS_AT")) ? atol(value) : 0;
  later = getenv("FAULTS_LATER") != NULL;
  copy = getenv("FAULTS_COPY");
  snprintf(act, sizeof act, "%s", (value = getenv("FAULTS_ACT")) ? value : "");
}

static int is_below(const char *path) {
  for (const char *one = under; *one;) {
    size_t length = strcspn(one, ":");
    if (length && !strncmp(path, one, length) && (path[length] == '/' || !path[length])) return 1;
    one += length + (one[length] == ':');
  }
  return 0;
}

/* The path that a call names, as far as it can be told without a call of its own going wrong. */
static const char *whole(int directory, const char *path, char *into) {
  char link[64], base[PATH_MAX];
  ssize_t length;
  if (path && path[0] == '/') return path;
  if (directory == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
  else snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
  length = syscall(SYS_readlink, link, base, sizeof base - 1);
  if (length < 0) return "";
  base[length] = 0;
  if (!path || !*path) { memcpy(into, base, length + 1); return into; }
  snprintf(into, PATH_MAX, "%s/%s", base, path);
  return into;
}

static void copied(long number) {
  char text[32], *arguments[] = {"sh", "-c", (char *)copy, text, NULL}, *environment[] = {"PATH=/usr/bin:/bin", NULL};
  pid_t child;
  snprintf(text, sizeof text, "%ld", number);
  if (!posix_spawn(&child, "/bin/sh", NULL, NULL, arguments, environment)) waitpid(child, NULL, 0);
}

/* -1: the call fails with errno; 1: it is to be cut short; 0: it is carried out. */
static int meets(const char *name, int directory, const char *path, int takes_room) {
  char place[PATH_MAX], line[PATH_MAX + 64];
  const char *found = whole(directory, path, place);
  int kept = errno;
  if (!counter || !is_below(found)) { errno = kept; return 0; }
  long number = __atomic_add_fetch(counter, 1, __ATOMIC_SEQ_CST);
  if (log_file >= 0) {
    int length = snprintf(line, sizeof line, "%ld %s %s\n", number, name, found);
    syscall(SYS_write, log_file, line, length < (int)sizeof line ? length : (int)sizeof line);
  }
  if (copy && (strstr(name, "sync") || strstr(name, "rename"))) copied(number);
  errno = kept;
  if (!at || number < at || (number > at && !later)) return 0;
  if (!strcmp(act, "group")) kill(0, SIGKILL);
  else if (!strcmp(act, "self")) kill(getpid(), SIGKILL);
  else if (!strcmp(act, "term")) kill(0, SIGTERM);
  else if (!strcmp(act, "int")) kill(0, SIGINT);
  else if (!strcmp(act, "short")) return 1;
  else {
    int code = atoi(act);
    /* A full disk refuses nothing that needs no room. */
    if ((code == ENOSPC || code == EDQUOT) && !takes_room) return 0;
    if (code) { errno = code; return -1; }
  }
  return 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CHANGES(flags) (((flags) & O_ACCMODE) != O_RDONLY || ((flags) & (O_CREAT | O_TRUNC)))

static int opened(const char *name, int directory, const char *path, int flags, mode_t mode) {
  if (CHANGES(flags) && meets(name, directory, path, flags & O_CREAT) < 0) return -1;
  return syscall(SYS_openat, directory, path, flags, mode);
}

#define OPEN(name)                                                                                                     \
  int name(const char *path, int flags, ...) {                                                                         \
    va_list rest;                                                                                                      \
    va_start(rest, flags);                                                                                             \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                            \
    va_end(rest);                                                                                                      \
    return opened("open", AT_FDCWD, path, flags, mode);                                                                \
  }
#define OPENAT(name)                                                                                                   \
  int name(int directory, const char *path, int flags, ...) {                                                          \
    va_list rest;                                                                                                      \
    va_start(rest, flags);                                                                                             \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                            \
    va_end(rest);                                                                                                      \
    return opened("open", directory, path, flags, mode);                                                               \
  }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int file, const void *bytes, size_t count) {
  int met = meets("write", file, NULL, 1);
  if (met < 0) return -1;
  return syscall(SYS_write, file, bytes, met && count > 1 ? count / 2 : count);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
  int met = meets("write", file, NULL, 1);
  if (met < 0) return -1;
  return syscall(SYS_writev, file, parts, met && count > 1 ? count / 2 : count);
}

#define PWRITE(name)                                                                                                   \
  ssize_t name(int file, const void *bytes, size_t count, off_t offset) {                                              \
    int met = meets("write", file, NULL, 1);                                                                           \
    if (met < 0) return -1;                                                                                            \
    return syscall(SYS_pwrite64, file, bytes, met && count > 1 ? count / 2 : count, offset);                           \
  }
PWRITE(pwrite)
PWRITE(pwrite64)

#define SIMPLE(name, parameters, directory, path, takes_room, arguments)                                               \
  int name parameters { return meets(#name, directory, path, takes_room) < 0 ? -1 : REAL(name) arguments; }
SIMPLE(fsync, (int file), file, NULL, 1, (file))
SIMPLE(fdatasync, (int file), file, NULL, 1, (file))
SIMPLE(ftruncate, (int file, off_t size), file, NULL, 1, (file, size))
SIMPLE(ftruncate64, (int file, off_t size), file, NULL, 1, (file, size))
SIMPLE(rename, (const char *from, const char *to), AT_FDCWD, to, 0, (from, to))
SIMPLE(renameat, (int a, const char *from, int b, const char *to), b, to, 0, (a, from, b, to))
SIMPLE(renameat2, (int a, const char *from, int b, const char *to, unsigned flags), b, to, 0, (a, from, b, to, flags))
SIMPLE(mkdir, (const char *path, mode_t mode), AT_FDCWD, path, 1, (path, mode))
SIMPLE(mkdirat, (int directory, const char *path, mode_t mode), directory, path, 1, (directory, path, mode))
SIMPLE(unlink, (const char *path), AT_FDCWD, path, 0, (path))
SIMPLE(unlinkat, (int directory, const char *path, int flags), directory, path, 0, (directory, path, flags))
SIMPLE(rmdir, (const char *path), AT_FDCWD, path, 0, (path))
SIMPLE(link, (const char *from, const char *to), AT_FDCWD, to, 1, (from, to))
SIMPLE(symlink, (const char *from, const char *to), AT_FDCWD, to, 1, (from, to))

/* These return the error instead of setting it. */
#define FALLOCATE(name)                                                                                                \
  int name(int file, off_t offset, off_t size) {                                                                       \
    return meets("fallocate", file, NULL, 1) < 0 ? errno : REAL(name)(file, offset, size);                             \
  }
FALLOCATE(posix_fallocate)
FALLOCATE(posix_fallocate64)

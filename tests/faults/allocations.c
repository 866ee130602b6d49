/* Chosen large allocations are refused, counted over all processes and threads of a run.

   Preloaded (LD_PRELOAD). Allocations of FAULTS_LARGE bytes and more count; the number of the last one is in the file
   FAULTS_COUNTER, shared by all. Each is a line of FAULTS_LOG where that is set. The one with the number FAULTS_AT, and
   with FAULTS_LATER all later ones, gets no memory. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static long *counter;
static int log_file = -1;
static long at;
static int later;
static size_t large = 1 << 20;

__attribute__((constructor)) static void begin(void) {
  const char *value;
  if ((value = getenv("FAULTS_LARGE"))) large = atol(value);
  if ((value = getenv("FAULTS_LOG")))
    log_file = syscall(SYS_openat, AT_FDCWD, value, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  at = (value = getenv("FAULTS_AT")) ? atol(value) : 0;
  later = getenv("FAULTS_LATER") != NULL;
  if ((value = getenv("FAULTS_COUNTER"))) {
    int file = syscall(SYS_openat, AT_FDCWD, value, O_RDWR | O_CLOEXEC, 0);
    if (file >= 0) {
      void *shared = mmap(NULL, sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
      counter = shared == MAP_FAILED ? NULL : shared;
      syscall(SYS_close, file);
    }
  }
}

static int is_refused(const char *name, size_t size) {
  char line[64];
  if (size < large || !counter) return 0;
  long number = __atomic_add_fetch(counter, 1, __ATOMIC_SEQ_CST);
  if (log_file >= 0) syscall(SYS_write, log_file, line, snprintf(line, sizeof line, "%ld %s %zu\n", number, name, size));
  if (!at || number < at || (number > at && !later)) return 0;
  errno = ENOMEM;
  return 1;
}

void *malloc(size_t size) { return is_refused("malloc", size) ? NULL : __libc_malloc(size); }

void *calloc(size_t count, size_t size) {
  return is_refused("calloc", count * size) ? NULL : __libc_calloc(count, size);
}

void *realloc(void *block, size_t size) { return is_refused("realloc", size) ? NULL : __libc_realloc(block, size); }

void *memalign(size_t alignment, size_t size) {
  return is_refused("memalign", size) ? NULL : __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }

int posix_memalign(void **block, size_t alignment, size_t size) {
  void *found = memalign(alignment, size);
  if (found) *block = found;
  return found ? 0 : ENOMEM;
}

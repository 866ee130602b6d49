/* The clock of the day jumps, back and forth by FAULTS_JUMP_S seconds, every FAULTS_EVERY-th time it is looked at.

   Preloaded (LD_PRELOAD). The monotonic clocks go on. */

#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long jump, every = 1, looked;

__attribute__((constructor)) static void begin(void) {
  const char *value;
  if ((value = getenv("FAULTS_JUMP_S"))) jump = atol(value);
  if ((value = getenv("FAULTS_EVERY"))) every = atol(value);
}

static long jumped(void) { return __atomic_add_fetch(&looked, 1, __ATOMIC_RELAXED) / every % 2 ? jump : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
  int failed = syscall(SYS_clock_gettime, clock, now);
  if (!failed && clock == CLOCK_REALTIME) now->tv_sec += jumped();
  return failed;
}

time_t time(time_t *into) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (into) *into = now.tv_sec;
  return now.tv_sec;
}

int gettimeofday(struct timeval *restrict into, void *restrict zone) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  into->tv_sec = now.tv_sec;
  into->tv_usec = now.tv_nsec / 1000;
  return 0;
}

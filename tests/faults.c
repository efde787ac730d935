/* Errors of system calls in one process, as a file server or a bad clock gives them.

   gcc -shared -fPIC -o faults.so faults.c -ldl
   LD_PRELOAD=faults.so FAULT_FLOCK=37 python ...

   FAULT_FLOCK   the error number that every flock() gives
   FAULT_RENAME  NUMBER:TIMES, the error of the first renames of this process
   FAULT_CLOCK   a file that holds seconds, added to the clock of the day as soon as it is there */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static int renamed = 0;

int flock(int file, int how) {
  static int (*real)(int, int);
  const char *wanted = getenv("FAULT_FLOCK");
  if (wanted) {
    errno = atoi(wanted);
    return -1;
  }
  if (!real) real = dlsym(RTLD_NEXT, "flock");
  return real(file, how);
}

int rename(const char *from, const char *to) {
  static int (*real)(const char *, const char *);
  const char *wanted = getenv("FAULT_RENAME");
  int number = 0, times = 0;
  if (wanted && sscanf(wanted, "%d:%d", &number, &times) == 2 && renamed < times) {
    renamed++;
    errno = number;
    return -1;
  }
  if (!real) real = dlsym(RTLD_NEXT, "rename");
  return real(from, to);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  const char *wanted = getenv("FAULT_CLOCK");
  int done;
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  done = real(clock, now);
  if (wanted && clock == CLOCK_REALTIME) {
    FILE *file = fopen(wanted, "r");
    long seconds = 0;
    if (file) {
      if (fscanf(file, "%ld", &seconds) == 1) now->tv_sec += seconds;
      fclose(file);
    }
  }
  return done;
}

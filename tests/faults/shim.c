// Preloaded library that makes calls on files below one directory fail, or kills the process there.
//
// `fault_arm` chooses the directory, the kinds of calls and the numbers of those that are hit. The
// calls are counted in memory that is shared with the parent process. `fault_shift_clock` moves the
// wall clock. Nothing happens before one of them is called.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { OPEN = 1, WRITE = 2, RENAME = 4, SYNC = 8, UNLINK = 16, MKDIR = 32, LOCK = 64, READ = 128 };

struct calls {
  long count;          // calls of the chosen kinds so far
  char first_hit[512]; // the call that was hit first
};

static struct calls *calls;
static char root[PATH_MAX];
static int kinds, action; // action: an error number, or 0 to kill the process
static long first, last;
static long clock_shift; // seconds
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

void fault_arm(const char *directory, int of_kinds, long from, long to, int what, void *shared) {
  strncpy(root, directory, sizeof root - 1);
  kinds = of_kinds, first = from, last = to, action = what, calls = shared;
}

void fault_shift_clock(long seconds) { clock_shift = seconds; }

static int is_below(const char *path) {
  size_t length = strlen(root);
  return strncmp(path, root, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static void name_of(int descriptor, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, PATH_MAX - 1);
  path[length < 0 ? 0 : length] = 0;
}

static void absolute(int directory, const char *path, char *result) {
  char folder[PATH_MAX];
  if (path[0] == '/') {
    snprintf(result, PATH_MAX, "%s", path);
    return;
  }
  if (directory == AT_FDCWD) {
    if (getcwd(folder, sizeof folder) == NULL) folder[0] = 0;
  } else {
    name_of(directory, folder);
  }
  snprintf(result, 2 * PATH_MAX, "%s/%s", folder, path);
}

// Counts a call. Returns 0 to go on, 1 for the first call that is hit, 2 for later ones.
static int hit(int kind, const char *call, const char *path) {
  if (calls == NULL || !(kinds & kind) || !is_below(path)) return 0;
  pthread_mutex_lock(&mutex);
  long number = ++calls->count;
  int result = number < first || number > last ? 0 : number == first ? 1 : 2;
  if (result == 1) snprintf(calls->first_hit, sizeof calls->first_hit, "%s %s", call, path);
  pthread_mutex_unlock(&mutex);
  return result;
}

static int fails(int kind, const char *call, const char *path) {
  if (!hit(kind, call, path)) return 0;
  if (action == 0) kill(getpid(), SIGKILL);
  errno = action;
  return 1;
}

static int fails_at(int kind, const char *call, int directory, const char *path) {
  char full[3 * PATH_MAX];
  if (calls == NULL) return 0;
  absolute(directory, path, full);
  return fails(kind, call, full);
}

static int fails_on(int kind, const char *call, int descriptor) {
  char full[PATH_MAX];
  if (calls == NULL) return 0;
  name_of(descriptor, full);
  return fails(kind, call, full);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define IS_WRITING(flags) (((flags) & O_ACCMODE) != O_RDONLY || ((flags) & (O_CREAT | O_TRUNC)))
#define MODE(flags) \
  mode_t mode = 0; \
  if ((flags) & (O_CREAT | O_TMPFILE)) { \
    va_list more; \
    va_start(more, flags); \
    mode = va_arg(more, mode_t); \
    va_end(more); \
  }

#define OPENS(name) \
  int name(const char *path, int flags, ...) { \
    REAL(name); \
    MODE(flags) \
    if (IS_WRITING(flags) && fails_at(OPEN, #name, AT_FDCWD, path)) return -1; \
    if (!IS_WRITING(flags) && fails_at(READ, #name, AT_FDCWD, path)) return -1; \
    return real(path, flags, mode); \
  }
#define OPENS_AT(name) \
  int name(int directory, const char *path, int flags, ...) { \
    REAL(name); \
    MODE(flags) \
    if (IS_WRITING(flags) && fails_at(OPEN, #name, directory, path)) return -1; \
    if (!IS_WRITING(flags) && fails_at(READ, #name, directory, path)) return -1; \
    return real(directory, path, flags, mode); \
  }
#define OPENS_STREAM(name) \
  FILE *name(const char *path, const char *mode) { \
    REAL(name); \
    if (fails_at(mode[0] == 'r' && !strchr(mode, '+') ? READ : OPEN, #name, AT_FDCWD, path)) \
      return NULL; \
    return real(path, mode); \
  }
OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)
OPENS_STREAM(fopen)
OPENS_STREAM(fopen64)

// A write that is hit first does half of its work: killed in the middle, or short on a full disk.
static int is_short(const char *call, int descriptor, size_t *count) {
  char full[PATH_MAX];
  if (calls == NULL) return 0;
  name_of(descriptor, full);
  int result = hit(WRITE, call, full);
  errno = action;
  if (result == 1 && *count > 1 && (action == 0 || action == ENOSPC)) {
    *count /= 2;
    return 0;
  }
  if (result && action == 0) kill(getpid(), SIGKILL);
  return result != 0;
}

static void end_short(size_t count, size_t asked) {
  if (count != asked && action == 0) kill(getpid(), SIGKILL);
}

#define WRITES(name, parameters, arguments) \
  ssize_t name parameters { \
    REAL(name); \
    size_t asked = count; \
    if (is_short(#name, descriptor, &count)) return -1; \
    ssize_t result = real arguments; \
    end_short(count, asked); \
    return result; \
  }
WRITES(write, (int descriptor, const void *from, size_t count), (descriptor, from, count))
WRITES(pwrite, (int descriptor, const void *from, size_t count, off_t at),
       (descriptor, from, count, at))
WRITES(pwrite64, (int descriptor, const void *from, size_t count, off64_t at),
       (descriptor, from, count, at))
WRITES(sendfile, (int descriptor, int source, off_t *at, size_t count),
       (descriptor, source, at, count))
WRITES(sendfile64, (int descriptor, int source, off64_t *at, size_t count),
       (descriptor, source, at, count))

ssize_t writev(int descriptor, const struct iovec *parts, int count) {
  REAL(writev);
  return fails_on(WRITE, "writev", descriptor) ? -1 : real(descriptor, parts, count);
}

#define CHANGES(kind, name, parameters, arguments, directory, path) \
  int name parameters { \
    REAL(name); \
    return fails_at(kind, #name, directory, path) ? -1 : real arguments; \
  }
#define CHANGES_OPEN(kind, name, parameters, arguments) \
  int name parameters { \
    REAL(name); \
    return fails_on(kind, #name, descriptor) ? -1 : real arguments; \
  }
CHANGES(RENAME, rename, (const char *from, const char *to), (from, to), AT_FDCWD, to)
CHANGES(RENAME, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), b, to)
CHANGES(RENAME, renameat2, (int a, const char *from, int b, const char *to, unsigned flags),
        (a, from, b, to, flags), b, to)
CHANGES(UNLINK, unlink, (const char *path), (path), AT_FDCWD, path)
CHANGES(UNLINK, unlinkat, (int a, const char *path, int flags), (a, path, flags), a, path)
CHANGES(UNLINK, rmdir, (const char *path), (path), AT_FDCWD, path)
CHANGES(UNLINK, remove, (const char *path), (path), AT_FDCWD, path)
CHANGES(MKDIR, mkdir, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path)
CHANGES(MKDIR, mkdirat, (int a, const char *path, mode_t mode), (a, path, mode), a, path)
CHANGES_OPEN(SYNC, fsync, (int descriptor), (descriptor))
CHANGES_OPEN(SYNC, fdatasync, (int descriptor), (descriptor))
CHANGES_OPEN(LOCK, flock, (int descriptor, int operation), (descriptor, operation))
CHANGES_OPEN(WRITE, ftruncate, (int descriptor, off_t size), (descriptor, size))
CHANGES_OPEN(WRITE, ftruncate64, (int descriptor, off64_t size), (descriptor, size))

int clock_gettime(clockid_t clock, struct timespec *now) {
  REAL(clock_gettime);
  int result = real(clock, now);
  if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += clock_shift;
  return result;
}

time_t time(time_t *now) {
  struct timespec wall;
  clock_gettime(CLOCK_REALTIME, &wall);
  if (now) *now = wall.tv_sec;
  return wall.tv_sec;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  REAL(gettimeofday);
  int result = real(now, zone);
  now->tv_sec += clock_shift;
  return result;
}

/* A disk that loses what was not synced. Preloaded into a relay, it watches the file data.mdb and keeps a
 * shadow of it that holds only what the relay made durable:
 *
 *   write, pwrite, writev, pwritev, ftruncate    wait in memory
 *   fsync, fdatasync                             bring all that waits into the shadow, then return
 *   writes through a descriptor with O_DSYNC     go into the shadow at once (LMDB's meta pages)
 *
 * The shadow is what a power cut would leave. The shim lives in the process that is killed, so whatever
 * waits in memory is gone with it. Writes through a shared writable map cannot be seen: the shim ends the
 * process rather than miss them.
 *
 *   LOSE_UNSYNCED_SHADOW       path of the shadow; it is made, or continued, at the first open
 *   LOSE_UNSYNCED_DELAY_US     a sync takes this long before anything is durable
 *   LOSE_UNSYNCED_LIE_AFTER    from this many syncs on, nothing becomes durable although all succeed
 *   LOSE_UNSYNCED_LOG          path to which every operation is appended once it is done: `struct operation`,
 *                              then its bytes
 *   LOSE_UNSYNCED_FAULTS       path of a file of `struct faults`, which a test may write at any time: some of
 *                              the operations above fail. A write that fails is in the page cache all the
 *                              same; a sync that fails forgets what waits, as the kernel takes those pages
 *                              for clean. With `landed` what failed is on the disk nevertheless.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define FDS_MAX 65536
enum { WATCHED = 1, DSYNC = 2 };

struct change {
    struct change *next;
    off_t at;
    size_t len; /* of the bytes; a truncation has none and is_cut set */
    int is_cut;
    char bytes[];
};

struct faults {
    unsigned after; /* operations that succeed first */
    unsigned count; /* then that many fail; 0 = none do */
    unsigned error; /* with this errno */
    unsigned landed;
    unsigned fired; /* how many have failed */
};

struct operation {
    uint64_t what; /* 'w'rite, 'd'urable write, 'c'ut, 's'ync */
    uint64_t at;   /* where, or the new length */
    uint64_t len;  /* of the bytes that follow */
};

static struct faults *faults;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned char fds[FDS_MAX];
static struct change *first, **last = &first;
static int shadow = -1, oplog = -1;
static long syncs, lie_after = -1, delay_us;

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static void die(const char *what) {
    dprintf(2, "lose_unsynced: %s: %s\n", what, strerror(errno));
    abort();
}

static void to_shadow(const char *bytes, size_t len, off_t at) {
    static ssize_t (*real)(int, const void *, size_t, off_t);
    if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, "pwrite64");
    while (len > 0) {
        ssize_t n = real(shadow, bytes, len, at);
        if (n <= 0) die("write to the shadow");
        bytes += n, len -= n, at += n;
    }
}

static void to_log(char what, const char *bytes, size_t len, off_t at) {
    static ssize_t (*real)(int, const struct iovec *, int);
    if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, "writev");
    if (oplog < 0) return;
    struct operation operation = {.what = what, .at = at, .len = len};
    struct iovec parts[] = {{&operation, sizeof operation}, {(void *)bytes, len}};
    if (real(oplog, parts, 2) != (ssize_t)(sizeof operation + len)) die("write to the log");
}

static int lies(void) { return lie_after >= 0 && syncs >= lie_after; }

static void apply(void) {
    static int (*cut)(int, off_t);
    if (!cut) cut = (__typeof__(cut))dlsym(RTLD_NEXT, "ftruncate64");
    while (first) {
        struct change *change = first;
        if (change->is_cut) {
            if (cut(shadow, change->at)) die("cut the shadow");
        } else {
            to_shadow(change->bytes, change->len, change->at);
        }
        first = change->next;
        free(change);
    }
    last = &first;
}

static void forget(void) {
    while (first) {
        struct change *change = first;
        first = change->next;
        free(change);
    }
    last = &first;
}

static void add(const char *bytes, size_t len, off_t at, int is_cut) {
    struct change *change = malloc(sizeof *change + len);
    if (!change) die("no memory");
    *change = (struct change){.at = at, .len = len, .is_cut = is_cut};
    if (len) memcpy(change->bytes, bytes, len);
    *last = change;
    last = &change->next;
}

/* Whether this operation fails; the lock is held. */
static int fails(void) {
    if (!faults || !faults->count) return 0;
    if (faults->after) return faults->after--, 0;
    faults->count--, faults->fired++;
    errno = faults->error;
    return 1;
}

/* Notes that `done` bytes of the vector were written at `at`; what the caller is told. */
static ssize_t note(int fd, const struct iovec *iov, ssize_t done, off_t at) {
    pthread_mutex_lock(&lock);
    int failed = done > 0 && fails(), error = errno;
    ssize_t told = failed ? -1 : done;
    if (failed && !faults->landed) done = 0;
    for (size_t left = done > 0 ? (size_t)done : 0; left > 0; iov++) {
        size_t len = iov->iov_len < left ? iov->iov_len : left;
        if (!(fds[fd] & DSYNC)) {
            add(iov->iov_base, len, at, 0);
        } else if (!lies()) {
            to_shadow(iov->iov_base, len, at);
        }
        to_log(fds[fd] & DSYNC ? 'd' : 'w', iov->iov_base, len, at);
        at += len, left -= len;
    }
    pthread_mutex_unlock(&lock);
    errno = error;
    return told;
}

static int watched(int fd) { return fd >= 0 && fd < FDS_MAX && fds[fd]; }

static int opened(int fd, const char *path, int flags) {
    size_t len = strlen(path);
    if (fd < 0 || fd >= FDS_MAX) return fd;
    int writable = (flags & O_ACCMODE) != O_RDONLY;
    if (len < 8 || strcmp(path + len - 8, "data.mdb") || !writable) {
        fds[fd] = 0;
        return fd;
    }
    pthread_mutex_lock(&lock);
    if (shadow < 0) {
        const char *name = getenv("LOSE_UNSYNCED_SHADOW");
        const char *value = getenv("LOSE_UNSYNCED_DELAY_US");
        if (!name) die("LOSE_UNSYNCED_SHADOW is not set");
        if (value) delay_us = atol(value);
        value = getenv("LOSE_UNSYNCED_LIE_AFTER");
        if (value) lie_after = atol(value);
        value = getenv("LOSE_UNSYNCED_FAULTS");
        if (value) {
            static int (*real)(const char *, int, ...);
            real = (__typeof__(real))dlsym(RTLD_NEXT, "open64");
            int file = real(value, O_RDWR | O_CLOEXEC);
            faults = mmap(NULL, sizeof *faults, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
            if (faults == MAP_FAILED) die("map the faults");
        }
        static int (*real)(const char *, int, ...);
        real = (__typeof__(real))dlsym(RTLD_NEXT, "open64");
        shadow = real(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (shadow < 0) die("open the shadow");
        value = getenv("LOSE_UNSYNCED_LOG");
        if (value) {
            oplog = real(value, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
            if (oplog < 0) die("open the log");
        }
    }
    fds[fd] = WATCHED | (flags & (O_DSYNC | O_SYNC) ? DSYNC : 0);
    if (flags & O_TRUNC) {
        add(NULL, 0, 0, 1);
        to_log('c', NULL, 0, 0);
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { \
        va_list list; \
        va_start(list, flags); \
        mode = va_arg(list, mode_t); \
        va_end(list); \
    }

int open(const char *path, int flags, ...) { MODE(flags) REAL(open); return opened(real(path, flags, mode), path, flags); }
int open64(const char *path, int flags, ...) { MODE(flags) REAL(open64); return opened(real(path, flags, mode), path, flags); }
int openat(int dir, const char *path, int flags, ...) { MODE(flags) REAL(openat); return opened(real(dir, path, flags, mode), path, flags); }
int openat64(int dir, const char *path, int flags, ...) { MODE(flags) REAL(openat64); return opened(real(dir, path, flags, mode), path, flags); }

int close(int fd) {
    REAL(close);
    if (watched(fd)) fds[fd] = 0;
    return real(fd);
}

#define ONE(bytes, n) (struct iovec[]){{(void *)(bytes), (n)}}

ssize_t pwrite(int fd, const void *bytes, size_t len, off_t at) {
    REAL(pwrite);
    ssize_t done = real(fd, bytes, len, at);
    return watched(fd) ? note(fd, ONE(bytes, len), done, at) : done;
}
ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t at) {
    REAL(pwrite64);
    ssize_t done = real(fd, bytes, len, at);
    return watched(fd) ? note(fd, ONE(bytes, len), done, at) : done;
}
ssize_t pwritev(int fd, const struct iovec *iov, int n, off_t at) {
    REAL(pwritev);
    ssize_t done = real(fd, iov, n, at);
    return watched(fd) ? note(fd, iov, done, at) : done;
}
ssize_t pwritev64(int fd, const struct iovec *iov, int n, off64_t at) {
    REAL(pwritev64);
    ssize_t done = real(fd, iov, n, at);
    return watched(fd) ? note(fd, iov, done, at) : done;
}
ssize_t write(int fd, const void *bytes, size_t len) {
    REAL(write);
    if (!watched(fd)) return real(fd, bytes, len);
    off_t at = lseek(fd, 0, SEEK_CUR);
    ssize_t done = real(fd, bytes, len);
    return note(fd, ONE(bytes, len), done, at);
}
ssize_t writev(int fd, const struct iovec *iov, int n) {
    REAL(writev);
    if (!watched(fd)) return real(fd, iov, n);
    off_t at = lseek(fd, 0, SEEK_CUR);
    ssize_t done = real(fd, iov, n);
    return note(fd, iov, done, at);
}

static int cut(int fd, off_t len, int result) {
    if (result == 0 && watched(fd)) {
        pthread_mutex_lock(&lock);
        if (fails()) result = -1;
        if (result == 0 || faults->landed) {
            add(NULL, 0, len, 1);
            to_log('c', NULL, 0, len);
        }
        pthread_mutex_unlock(&lock);
    }
    return result;
}
int ftruncate(int fd, off_t len) { REAL(ftruncate); return cut(fd, len, real(fd, len)); }
int ftruncate64(int fd, off64_t len) { REAL(ftruncate64); return cut(fd, len, real(fd, len)); }

/* The kernel need not sync: the shadow is the disk. */
static int synced(void) {
    if (delay_us) usleep(delay_us);
    pthread_mutex_lock(&lock);
    int failed = fails(), error = errno;
    if (failed && !faults->landed) {
        forget();
    } else if (!lies()) {
        apply();
        to_log('s', NULL, 0, 0);
    }
    syncs++;
    pthread_mutex_unlock(&lock);
    errno = error;
    return failed ? -1 : 0;
}
int fsync(int fd) { REAL(fsync); return watched(fd) ? synced() : real(fd); }
int fdatasync(int fd) { REAL(fdatasync); return watched(fd) ? synced() : real(fd); }

static void no_writable_map(int fd, int protection, int flags) {
    if (watched(fd) && protection & PROT_WRITE && flags & MAP_SHARED) {
        die("a writable shared map of data.mdb cannot be watched");
    }
}
void *mmap(void *at, size_t len, int protection, int flags, int fd, off_t from) {
    REAL(mmap);
    no_writable_map(fd, protection, flags);
    return real(at, len, protection, flags, fd, from);
}
void *mmap64(void *at, size_t len, int protection, int flags, int fd, off64_t from) {
    REAL(mmap64);
    no_writable_map(fd, protection, flags);
    return real(at, len, protection, flags, fd, from);
}

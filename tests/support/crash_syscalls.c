/*
 * Preloaded into a process, has one of its system calls fail, or end the process: the n-th of a kind on files whose
 * path begins in a given way, whichever thread makes it. (strace counts each thread by itself.)
 *
 * how: "kill" ends the process instead of the call, "torn" in the middle of a write; else it fails: "ENOSPC", "EIO".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char armed_call[32], armed_how[32], armed_under[1024];
static long armed_nth;
static atomic_long count, is_armed;

/* Begin to count. */
void crash_arm(const char *call, const char *how, long nth, const char *under)
{
    snprintf(armed_call, sizeof armed_call, "%s", call);
    snprintf(armed_how, sizeof armed_how, "%s", how);
    snprintf(armed_under, sizeof armed_under, "%s", under);
    armed_nth = nth;
    atomic_store(&count, 0);
    atomic_store(&is_armed, 1);
}

/* Return how many there have been. */
long crash_count(void)
{
    return atomic_load(&count);
}

static int is_meant(const char *call, const char *path)
{
    if (!atomic_load(&is_armed) || strcmp(call, armed_call) != 0 || path == NULL
        || strncmp(path, armed_under, strlen(armed_under)) != 0)
        return 0;
    return atomic_fetch_add(&count, 1) + 1 == armed_nth;
}

static int is_meant_fd(const char *call, int fd)
{
    char link[64], path[1024];
    ssize_t length;

    if (!atomic_load(&is_armed) || strcmp(call, armed_call) != 0)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = '\0';
    return is_meant(call, path);
}

static int fail(void)
{
    if (strcmp(armed_how, "ENOSPC") == 0)
        errno = ENOSPC;
    else if (strcmp(armed_how, "EIO") == 0)
        errno = EIO;
    else
        for (;;)
            kill(getpid(), SIGKILL);
    return -1;
}

typedef ssize_t (*writing)(int, const void *, size_t, off64_t);

static ssize_t write_at(const char *name, int fd, const void *data, size_t size, off64_t offset)
{
    writing real = (writing)dlsym(RTLD_NEXT, name);

    if (is_meant_fd("pwrite64", fd)) {
        if (strcmp(armed_how, "torn") == 0)
            real(fd, data, size / 2, offset);
        return fail();
    }
    return real(fd, data, size, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
    return write_at("pwrite64", fd, data, size, offset);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    return write_at("pwrite", fd, data, size, offset);
}

int fdatasync(int fd)
{
    return is_meant_fd("fdatasync", fd) ? fail() : ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}

int fsync(int fd)
{
    return is_meant_fd("fsync", fd) ? fail() : ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}

int ftruncate64(int fd, off64_t size)
{
    return is_meant_fd("ftruncate", fd) ? fail() : ((int (*)(int, off64_t))dlsym(RTLD_NEXT, "ftruncate64"))(fd, size);
}

int ftruncate(int fd, off_t size)
{
    return is_meant_fd("ftruncate", fd) ? fail() : ((int (*)(int, off_t))dlsym(RTLD_NEXT, "ftruncate"))(fd, size);
}

int unlink(const char *path)
{
    return is_meant("unlink", path) ? fail() : ((int (*)(const char *))dlsym(RTLD_NEXT, "unlink"))(path);
}

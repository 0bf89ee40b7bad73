/* Threads and memory that outlive a call: to get them from the system takes longer than some calls compute. */

#ifndef PADAPTER_THREADS_H
#define PADAPTER_THREADS_H

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "attention.h"

#define MOST_THREADS 256

/* A call that wants helpers. */
typedef struct Call {
    Problem *it;
    int (*work)(Problem *);
    long wanted;  /* helpers that may still come */
    long running; /* helpers at work */
    int failed;   /* all that came had no memory */
    pthread_cond_t done;
    struct Call *next;
} Call;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards all that follows */
static pthread_cond_t news = PTHREAD_COND_INITIALIZER;
static Call *calls;
static long helpers;

static void *help(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&lock);
    for (;;) {
        Call *call = calls;
        while (call && !call->wanted) call = call->next;
        if (!call) {
            pthread_cond_wait(&news, &lock);
            continue;
        }
        call->wanted--;
        call->running++;
        pthread_mutex_unlock(&lock);
        int failed = call->work(call->it);
        pthread_mutex_lock(&lock);
        call->failed &= failed;
        if (--call->running == 0) pthread_cond_signal(&call->done);
    }
    return 0;
}

/* Signals are left to the caller's threads: Python's handler knows nothing of these. A helper that cannot be had is not
   missed, since all take pairs from one counter. */
static void have_helpers(long wanted)
{
    sigset_t everything, before;
    pthread_t thread;
    if (helpers >= wanted) return;
    sigfillset(&everything);
    pthread_sigmask(SIG_SETMASK, &everything, &before);
    while (helpers < wanted && !pthread_create(&thread, 0, help, 0)) {
        pthread_detach(thread);
        helpers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, 0);
}

/* Works on a problem, this thread among others; returns when all are done with it. 1 if nobody had memory. */
static int by_threads(Problem *it, int (*work)(Problem *))
{
    long wanted = (it->threads < MOST_THREADS ? it->threads : MOST_THREADS) - 1;
    if (wanted < 1) return work(it);
    Call call = {it, work, wanted, 0, 1, PTHREAD_COND_INITIALIZER, 0};
    pthread_mutex_lock(&lock);
    have_helpers(wanted);
    call.next = calls;
    calls = &call;
    for (long i = 0; i < wanted; i++) pthread_cond_signal(&news);
    pthread_mutex_unlock(&lock);
    int failed = work(it);
    pthread_mutex_lock(&lock);
    Call **at = &calls;
    while (*at != &call) at = &(*at)->next;
    *at = call.next;
    while (call.running) pthread_cond_wait(&call.done, &lock);
    failed &= call.failed;
    pthread_mutex_unlock(&lock);
    pthread_cond_destroy(&call.done);
    return failed;
}

/* A fork has only the thread that forked. */
static void before_fork(void) { pthread_mutex_lock(&lock); }
static void behind_fork(void) { pthread_mutex_unlock(&lock); }
static void in_child(void)
{
    pthread_mutex_init(&lock, 0);
    pthread_cond_init(&news, 0);
    calls = 0;
    helpers = 0;
}
__attribute__((constructor)) static void mind_forks(void) { pthread_atfork(before_fork, behind_fork, in_child); }

/* A block of memory is in one place or with one thread, whatever dies or forks meanwhile. */
#define KEPT 64
#define LARGEST_KEPT (8L << 20) /* bytes */
#define HEAD 64                 /* bytes before a block, the first of which hold its size */

static char *kept[KEPT];

static void *take_memory(long bytes)
{
    for (int i = 0; i < KEPT; i++) {
        char *block = __atomic_exchange_n(&kept[i], 0, __ATOMIC_ACQ_REL);
        if (!block) continue;
        if (*(long *)block >= bytes) return block + HEAD;
        free(block);
    }
    char *block = aligned_alloc(HEAD, (size_t)(bytes + HEAD));
    if (!block) return 0;
    *(long *)block = bytes;
    return block + HEAD;
}

static void give_memory(void *at)
{
    char *block = (char *)at - HEAD;
    if (*(long *)block <= LARGEST_KEPT)
        for (int i = 0; i < KEPT; i++) {
            char *empty = 0;
            if (__atomic_compare_exchange_n(&kept[i], &empty, block, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) return;
        }
    free(block);
}

#endif

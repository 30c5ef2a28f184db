/* Python's lock, let go while C code works that does not need Python, and taken where it does. Included by codec.c. */

typedef struct { /* all zeros: this thread has it */
    PyThreadState *let_go; /* NULL while this thread has it */
    int times_taken;
} Lock;

#define MOST_TAKEN 32 /* whoever lets it go may wait for it for 5 ms: who wants it so often keeps it */

static void take_lock(Lock *lock)
{
    if (lock->let_go != NULL) PyEval_RestoreThread(lock->let_go);
    lock->let_go = NULL;
}

static void let_lock_go(Lock *lock)
{
    if (lock->times_taken++ < MOST_TAKEN) lock->let_go = PyEval_SaveThread();
}

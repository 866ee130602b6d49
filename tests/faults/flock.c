/* A file system on which a lock is always granted. Preloaded (LD_PRELOAD). */

int flock(int file, int operation) { return 0; }

"""Support of compiled and parallel code: kernels, threads, shards, progress, checks. It knows no mathematics."""

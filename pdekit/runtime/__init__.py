"""What compiled and parallel code runs on: kernels, threads, shards, progress, checks. It knows no mathematics."""

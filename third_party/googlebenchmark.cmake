# Google Benchmark as installed on the system, for example by Debian's libbenchmark-dev.
find_package(benchmark REQUIRED)

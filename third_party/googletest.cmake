# GoogleTest as installed on the system, for example by Debian's libgtest-dev.
find_package(GTest REQUIRED)

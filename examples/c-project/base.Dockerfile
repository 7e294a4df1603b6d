# Debian with a C compiler, from a root file system created by mmdebstrap.
FROM scratch
ADD toolchain.tar /

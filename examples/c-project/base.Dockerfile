# Debian with a C compiler, from a root file system that mmdebstrap made on this machine.
FROM scratch
ADD toolchain.tar /

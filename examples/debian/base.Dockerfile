# A base image from a root file system that mmdebstrap made on this machine. No VM is needed.
FROM scratch
ADD debian.tar /
CMD ["/bin/bash"]

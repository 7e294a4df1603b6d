# A base image from a root file system created by mmdebstrap. This build needs no VM.
FROM scratch
ADD debian.tar /
CMD ["/bin/bash"]

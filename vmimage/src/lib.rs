//! What is in the builder VM: modules, boot parameters, initramfs

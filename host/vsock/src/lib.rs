//! The virtio-vsock device, served over vhost-user

//! Boots builder VMs and runs steps in them
